"""`m3dist recommend RUN --k 20 --out top.parquet`"""

from __future__ import annotations

import click


@click.command(name="recommend")
@click.argument("run")
@click.option("--k", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--out", required=True, help="Parquet file to write.")
@click.option("--user", "users", multiple=True, help="Original id; repeat it. Without it: all users.")
def command(run: str, k: int, out: str, users: tuple[str, ...]) -> None:
    """Write each user's best unseen items: original ids, score and the modalities' weights."""
    import pyarrow.parquet as pq

    from m3dist.run import Run

    table = Run(run).recommend(list(users) or None, k)
    pq.write_table(table, out)
    click.echo(f"{table.num_rows} recommendations: {out}")
