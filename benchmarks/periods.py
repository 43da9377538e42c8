"""`python -m benchmarks.periods FOLDER`: training on as data grow, against training from nothing every time.

FOLDER holds interactions.tsv (user_id, item_id, timestamp) and a Parquet file of features for each modality (item_id
and a column of vectors). Interactions are cut by time into periods of equal size. The data set of a period has all
interactions up to its end, a tenth of them each for validation and test: an interaction keeps its split in all periods,
so that nothing which was trained on is tested later. The first period is trained from nothing; every later one from
nothing, and from the run before it (`warm_from`), which itself started from the one before. Seconds are CPU seconds of
this process, of training, validation and test together.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch

import m3dist
from m3dist import config as configs
from m3dist.data.dataset import Dataset

RATIOS = (0.8, 0.9)  # where validation and test begin


@dataclass(frozen=True)
class Period:
    """One period: sizes of its data set, users and items of them who are new, and both ways of training it."""

    period: int
    interactions: int
    users: int
    new_users: int
    items: int
    new_items: int
    anew: float  # test NDCG@10
    warm: float
    anew_seconds: float
    warm_seconds: float


def cut(folder: Path, periods: int, out: Path, seed: int = 0) -> Iterator[Dataset]:
    """The data set of each period, at `out`."""
    table = pa.csv.read_csv(folder / "interactions.tsv", parse_options=pa.csv.ParseOptions(delimiter="\t"))
    table = table.sort_by([(name, "ascending") for name in ("timestamp", "user_id", "item_id")])
    drawn = np.random.default_rng(seed).random(len(table))
    split = np.select([drawn < RATIOS[0], drawn < RATIOS[1]], ["train", "val"], "test")
    table = table.select(["user_id", "item_id"]).append_column("split", pa.array(split))
    features = {path.stem: pq.read_table(path) for path in sorted(folder.glob("*.parquet"))}
    for period in range(1, periods + 1):
        part = table.slice(0, len(table) * period // periods)
        known = pc.unique(part["item_id"])
        of_known = {name: x.filter(pc.is_in(x["item_id"], value_set=known)) for name, x in features.items()}
        yield Dataset.from_arrow(part, of_known, out / str(period), m3dist.Options.of(split_column="split"))


def trained(dataset: Dataset, values: Sequence[str], out: Path, metric: str) -> tuple[float, float]:
    """The test metric of a run, and its CPU seconds."""
    began = time.process_time()
    run = m3dist.train(dataset, configs.load(None, [*values, f"out={out}"]), quiet=True)
    return run.result["test"][metric], time.process_time() - began


def measure(folder: Path, periods: int, values: Sequence[str], out: Path) -> Iterator[Period]:
    """Every period after the first."""
    before: Dataset | None = None
    for number, dataset in enumerate(cut(folder, periods, out / "data"), 1):
        anew, anew_seconds = trained(dataset, values, out / f"anew-{number}", "ndcg@10")
        if before is not None:
            source = out / (f"warm-{number - 1}" if number > 2 else "anew-1")
            warm = trained(dataset, [*values, f"warm_from={source}"], out / f"warm-{number}", "ndcg@10")
            yield Period(
                number,
                sum(dataset.meta["interactions"].values()),
                dataset.n_users,
                _new(dataset.user_ids, before.user_ids),
                dataset.n_items,
                _new(dataset.item_ids, before.item_ids),
                anew,
                warm[0],
                anew_seconds,
                warm[1],
            )
        before = dataset


def _new(ids: pa.ChunkedArray, before: pa.ChunkedArray) -> int:
    return pc.sum(pc.invert(pc.is_in(ids, value_set=before))).as_py()


def table(rows: Sequence[Period]) -> str:
    """In Markdown."""
    lines = [
        "| period | interactions | users (new) | items (new) | NDCG@10 from nothing | from the run before | of it | "
        "CPU s from nothing | from the run before | of it |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.period} | {row.interactions:,} | {row.users:,} ({row.new_users:,}) | {row.items:,} "
            f"({row.new_items:,}) | {row.anew:.4f} | {row.warm:.4f} | {row.warm / row.anew:.1%} | "
            f"{row.anew_seconds:.0f} | {row.warm_seconds:.0f} | {row.warm_seconds / row.anew_seconds:.1%} |"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--periods", default=5, show_default=True, type=click.IntRange(min=2))
@click.option("--set", "values", multiple=True, metavar="KEY=VALUE", help="A config value; may be repeated.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the numbers here.")
def main(folder: Path, periods: int, values: tuple[str, ...], path: Path | None) -> None:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as out:
        for row in measure(folder, periods, values, Path(out)):
            rows.append(row)
            click.echo(table(rows).splitlines()[-1])
            if path:
                path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
