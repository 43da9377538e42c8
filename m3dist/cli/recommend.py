"""`m3dist recommend RUN --k 20 --out top.parquet`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(name="recommend")
@click.argument("run")
@click.option("--k", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--out", required=True, help="Parquet file to write: a path or a URI.")
@click.option("--user", "users", multiple=True, help="Original id; repeat it. Without users: all of them.")
@click.option("--users", "file", type=click.Path(path_type=Path), help="Ids, one a line, or a table of any kind.")
@click.option("--users-column", help="The column of --users.  Default: the one with a known name, or the only one.")
@click.option("--skip-unknown", is_flag=True, help="Leave users out whom the data set does not have.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(run: str, k: int, out: str, users: tuple[str, ...], **given: Any) -> None:
    """Write each user's best unseen items: original ids, score and the modalities' weights."""
    import pyarrow.parquet as pq

    from m3dist.data.importers.idlists import known_ids, read_ids
    from m3dist.serving.run import Run
    from m3dist.storage.folders import Folder

    target = Folder(out)  # an unknown kind of URI is told before anything is ranked
    file = given["file"]
    wanted = [*users, *(read_ids(file, given["users_column"]) if file else [])]
    opened = Run(run, given["device"])
    if wanted:
        source = str(file) if file else "--user"
        wanted = known_ids(wanted, opened.dataset.user_ids, source, given["skip_unknown"])
    table = opened.recommend(wanted or None, k)
    try:
        if target.is_local and not Path(target.path).parent.is_dir():
            raise OSError(f"{Path(target.path).parent} is no folder")
        with target.writing() as path:
            pq.write_table(table, path)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error})") from None
    click.echo(f"{table.num_rows} recommendations: {out}")
