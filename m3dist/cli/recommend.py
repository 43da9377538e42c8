"""`m3dist recommend RUN --k 20 --out top.parquet`"""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="recommend")
@click.argument("run")
@click.option("--k", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--out", required=True, help="Parquet file to write: a path or a URI.")
@click.option("--user", "users", multiple=True, help="Original id; repeat it. Without users: all of them.")
@click.option("--users", "file", help="A text file of original ids, one a line.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(run: str, k: int, out: str, users: tuple[str, ...], file: str | None, device: str) -> None:
    """Write each user's best unseen items: original ids, score and the modalities' weights."""
    import pyarrow.parquet as pq

    from m3dist.serving.run import Run
    from m3dist.storage.folders import Folder

    target = Folder(out)  # an unknown kind of URI is told before anything is ranked
    wanted = [*users, *(_listed(file) if file else [])]
    table = Run(run, device).recommend(wanted or None, k)
    try:
        pq.write_table(table, target.path, filesystem=target.fs)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error})") from None
    click.echo(f"{table.num_rows} recommendations: {out}")


def _listed(path: str) -> list[str]:
    """The ids in a text file; ValueError where it cannot be read or holds none."""
    try:
        ids = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a text file of user ids, one a line ({error})") from None
    if not ids:
        raise ValueError(f"{path}: holds no user ids; expected one a line, or leave --users out for all users")
    return ids
