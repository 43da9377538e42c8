"""`python -m benchmarks.folded DATA`: users who are folded in from their histories, and items that are new.

A fifth of the users is left out of training. The same users are then ranked by a run that was trained with them, and,
folded in from their training interactions, by one that was trained without. Cold items are ranked as the data set has
them, where it has any, and added to the run as new ones. Histories a second: rows alone, and with lists of 20; and
users a second of `m3dist recommend --parts`, opening the run and writing the files included.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import torch

import m3dist
from benchmarks.measure import Row
from m3dist import config as configs
from m3dist.data.dataset import SPLITS, Dataset
from m3dist.data.importers.newitems import NewItems
from m3dist.data.writer import Writer
from m3dist.evaluation.evaluator import Evaluator
from m3dist.evaluation.ranking import Seen
from m3dist.method.fused import Fused, Members
from m3dist.serving import parts

SHARE = 5  # one user of so many is left out
HISTORIES = 10_000
PARTS = 4


def without(dataset: Dataset, out: Path, users: np.ndarray) -> Dataset:
    """The same data set without the interactions of some users, bool [U], who keep their places."""
    with Writer(out) as writer:
        for name in dataset.modalities:
            writer.features(name, np.array(dataset.features(name)), dataset.present(name))
        parts = {split: dataset.interactions(split) for split in SPLITS}
        kept = {split: (user[~users[user]], item[~users[user]]) for split, (user, item) in parts.items()}
        writer.interactions(dataset.n_users, dataset.n_items, kept)
        writer.finish(provenance={})
    return Dataset(out)


def trained(dataset: Dataset, values: Sequence[str], out: Path) -> m3dist.Run:
    return m3dist.train(dataset, configs.load(None, [*values, f"out={out}"]), quiet=True)


def metric(run: m3dist.Run, score: Fused, dataset: Dataset, users: np.ndarray) -> dict[str, float]:
    """NDCG@10 of some users, bool [U], on val and test of a data set."""
    evaluator, out = Evaluator(dataset, run.config.evaluation), {}
    for split in ("val", "test"):
        user, item = dataset.interactions(split)
        held = Seen.of((user[users[user]], item[users[user]]), dataset.n_users)
        out[split] = evaluator.evaluate(score, split, relevant=held)[0]["ndcg@10"]
    return out


def folded(run: m3dist.Run, dataset: Dataset, users: np.ndarray) -> Fused:
    """The run's scorer with the rows of some users, bool [U], from their training interactions in a data set."""
    user, item = dataset.interactions("train")
    here = users[user]
    rows = run.fold_in.rows(Seen.of((user[here], item[here]), dataset.n_users))
    members = run.score.members
    tables = [
        torch.where(torch.from_numpy(users)[:, None], row, own) for row, own in zip(rows, members.user, strict=True)
    ]
    return Fused(members.of(tables), run.score.fusion)


def left_out(dataset: Dataset, values: Sequence[str], out: Path, seed: int = 0) -> Iterator[Row]:
    """The same users trained with the others, and left out and folded in."""
    rng = np.random.default_rng(seed)
    users = np.zeros(dataset.n_users, dtype=bool)
    users[rng.permutation(dataset.n_users)[: dataset.n_users // SHARE]] = True
    whole = trained(dataset, values, out / "whole")
    part = trained(without(dataset, out / "part-data", users), values, out / "part")
    one = metric(whole, whole.score, dataset, users)
    other = metric(part, folded(part, dataset, users), dataset, users)
    for split in one:
        told = {"trained": one[split], "folded in": other[split], "of it": other[split] / one[split]}
        yield Row("folded", f"{int(users.sum())} users left out, NDCG@10, {split}", told)
    yield from rates(part, dataset)
    yield in_parts(whole, out / "parts")


def rates(run: m3dist.Run, dataset: Dataset) -> Iterator[Row]:
    """Histories a second, of users' training interactions over and over."""
    user, item = dataset.interactions("train")
    count = np.bincount(user, minlength=dataset.n_users)
    whom = np.resize(np.flatnonzero(count), HISTORIES)
    first = np.cumsum(count) - count
    at = np.concatenate([np.arange(first[u], first[u] + count[u]) for u in whom])
    seen = Seen.of(
        (np.repeat(np.arange(HISTORIES), count[whom]).astype(np.int64), item[at].astype(np.int64)), HISTORIES
    )
    ids = run.dataset.item_ids.to_pylist()
    histories = {n: [ids[i] for i in item[first[u] : first[u] + count[u]].tolist()] for n, u in enumerate(whom)}
    run.fold_in.rows(seen)
    for what, call in (
        ("rows", lambda: run.fold_in.rows(seen)),
        ("rows and lists of 20, from ids to a table", lambda: run.recommend(k=20, histories=histories)),
    ):
        began = time.perf_counter(), time.process_time()
        call()
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        told = {"a second": HISTORIES / wall, "a CPU second": HISTORIES / cpu, "threads": torch.get_num_threads()}
        yield Row("folded", f"histories of {len(at) / HISTORIES:.0f} items, {what}", told)


def in_parts(run: m3dist.Run, out: Path) -> Row:
    """Users a second of lists of 20 in parts, made by this process."""
    request = parts.Request(run.root.path, 20, run.dataset.user_ids.to_pylist())
    began = time.perf_counter(), time.process_time()
    parts.write(request, parts.Parts(str(out), PARTS), lambda _: None)
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    users = len(request.users)
    told = {"a second": users / wall, "a CPU second": users / cpu, "threads": torch.get_num_threads()}
    return Row("folded", f"{users} users' lists of 20 in {PARTS} parts", told)


def cold(dataset: Dataset, values: Sequence[str], out: Path) -> Iterator[Row]:
    """Items without training interactions as the data set has them, and the same items added to the run as new ones."""
    items = dataset.degrees[1] == 0
    if not items.any():
        return
    run = trained(dataset, values, out / "cold")
    features = {name: np.array(dataset.features(name))[items] for name in dataset.modalities}
    present = {name: dataset.present(name)[items] for name in dataset.modalities}
    ids = dataset.item_ids.cast(pa.string()).filter(pa.array(items)).to_pylist()
    kind = dataset.item_ids.type
    new = [f"new {x}" for x in ids] if pa.types.is_string(kind) else [10**9 + n for n in range(len(ids))]
    added, place = run.add_items(NewItems(pa.array(new), features, present)), torch.from_numpy(np.flatnonzero(items))
    tables = {f"{m}.user": user for m, user in enumerate(run.score.members.user)}
    for m, item_Ik in enumerate(added.score.members.item):
        tables[f"{m}.matrix"] = item_Ik[: dataset.n_items].index_copy(0, place, item_Ik[dataset.n_items :])
    replaced = Fused(Members(tables), run.score.fusion)
    inside, other = (run.evaluator.evaluate(score, "test")[0] for score in (run.score, replaced))
    for name in sorted(inside):
        if name.startswith("ndcg@10"):
            yield Row("folded", f"{len(ids)} cold items, test {name}", {"inside": inside[name], "added": other[name]})


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--set", "values", multiple=True, metavar="KEY=VALUE", help="A config value; may be repeated.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the numbers here.")
def main(data: Path, values: tuple[str, ...], threads: int, path: Path | None) -> None:
    torch.set_num_threads(threads)
    rows, dataset = [], Dataset(data)
    with tempfile.TemporaryDirectory() as out:
        for part in (left_out, cold):
            for row in part(dataset, values, Path(out)):
                rows.append(row)
                click.echo(f"{row.what}: " + ", ".join(f"{name} {value:,.4g}" for name, value in row.values.items()))
    if path:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
