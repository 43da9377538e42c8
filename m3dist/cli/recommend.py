"""`m3dist recommend RUN --k 20 --out top.parquet`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_FILE = click.Path(path_type=Path)


@click.command(name="recommend")
@click.argument("run")
@click.option("--k", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--out", required=True, help="Parquet file to write: a path or a URI.")
@click.option("--user", "users", multiple=True, help="Original id; repeat it. Without users: all of them.")
@click.option("--users", "file", type=_FILE, help="Ids, one a line, or a table of any kind.")
@click.option("--users-column", help="The column of --users.  Default: the one with a known name, or the only one.")
@click.option("--history", type=_FILE, help="A table of users and items: new users, or more of those named.")
@click.option("--candidates", type=_FILE, help="Rank these items only: one a line, or by user.")
@click.option("--exclude", type=_FILE, help="Leave these items out: one a line, or by user.")
@click.option("--boosts", type=_FILE, help="A table of items and numbers, which are added to scores.")
@click.option("--include-seen", is_flag=True, help="Rank what users have seen, too.")
@click.option("--only-new", is_flag=True, help="Rank only items without training interactions.")
@click.option("--diverse", type=click.FloatRange(0, 1), default=0.0, help="How much unlikeness to items above counts.")
@click.option("--reasons", is_flag=True, help="Say which modality weighed most, and the nearest items of the history.")
@click.option("--new-items", type=_FILE, help="A folder of items and their features, which are ranked too.")
@click.option("--skip-unknown", is_flag=True, help="Leave users and items out whom the data set does not have.")
@click.option(
    "--parts", type=click.IntRange(min=1), help="Write a folder of so many files; again: those that are missing."
)
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Ray actors that make parts.  Default: none.")
@click.option("--gpus-per-worker", type=click.FloatRange(0), default=0.0, help="Of each actor; a fraction shares one.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(run: str, k: int, out: str, users: tuple[str, ...], **given: Any) -> None:
    """Write each user's best unseen items: original ids, score and the modalities' weights.

    With --history, users without a name in --user or --users are those of the history alone."""
    import pyarrow.parquet as pq

    from m3dist.data.importers import idlists
    from m3dist.serving import parts
    from m3dist.serving.rules import Rules
    from m3dist.serving.run import Run
    from m3dist.storage.folders import Folder, refuse_other_kinds

    if not given["parts"]:
        refuse_other_kinds(out)
    target = Folder(out)  # an unknown kind of URI is told before anything is ranked
    file = given["file"]
    wanted = [*users, *(idlists.read_ids(file, given["users_column"]) if file else [])]
    histories = idlists.read_histories(given["history"]) if given["history"] else None
    rules = Rules(
        idlists.read_items(given["candidates"]) if given["candidates"] else None,
        idlists.read_items(given["exclude"]) if given["exclude"] else (),
        given["include_seen"],
        given["only_new"],
        idlists.read_boosts(given["boosts"]) if given["boosts"] else {},
        given["diverse"],
        skip_unknown=given["skip_unknown"],
    )
    if (given["workers"] or given["gpus_per_worker"]) and not given["parts"]:
        raise click.UsageError("--workers and --gpus-per-worker make parts; give --parts, too")
    opened = Run(run, given["device"])
    if given["new_items"]:
        opened = opened.add_items(given["new_items"])
    if wanted:
        source = str(file) if file else "--user"
        wanted = idlists.known_ids(wanted, opened.dataset.user_ids, source, given["skip_unknown"])
    if given["parts"]:
        named = wanted if wanted or histories else opened.dataset.user_ids.to_pylist()
        new_items = str(given["new_items"]) if given["new_items"] else None
        root = opened.root.path if opened.root.is_local else run  # actors may stand in another folder
        request = parts.Request(root, k, named, histories, rules, given["reasons"], new_items)
        place = target.path if target.is_local else out
        many = parts.Parts(place, given["parts"], given["workers"], given["gpus_per_worker"])
        parts.write(request, many, click.echo)
        return
    table = opened.recommend(wanted or None, k, histories, rules, given["reasons"])
    try:
        if target.is_local and not Path(target.path).parent.is_dir():
            raise OSError(f"{Path(target.path).parent} is no folder")
        with target.writing() as path:
            pq.write_table(table, path)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error})") from None
    click.echo(f"{table.num_rows} recommendations: {out}")
