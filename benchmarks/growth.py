"""Section `growth`: how cost grows with users, items, environments and modalities; everything else held fixed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Row, alternate, repeated, seconds
from benchmarks.sizes import SIZES, Size, made
from benchmarks.subjects import Subject, stepping, touched
from m3dist.evaluation import metrics, ranking

TABLES = (10**4, 10**5, 10**6, 10**7)
CATALOGUES = (10**4, 10**5, 10**6)
ENVIRONMENTS = (1, 10, 25)
MODALITIES = (1, 2, 4, 8)
SHAPE = Size(6000, 6000, 100_000, (128,))  # of the data for MODALITIES


def measure(folder: Path) -> Iterator[Row]:
    for what in ("users", "items"):
        yield from tables(what, TABLES, folder)
    yield from environments(SIZES["tiktok"], "tiktok", ENVIRONMENTS, folder)
    yield from modalities(MODALITIES, folder)
    yield from evaluation(CATALOGUES)


def _step(size: Size, folder: Path) -> tuple[float, int]:
    """Milliseconds of a step on ids, and distinct rows that it touches."""
    subject = Subject(made(size, folder), "backbone.dim=32")
    task = subject.ids
    step = stepping(task, subject.config.merge)
    for _ in range(task.draws.steps):  # the system hands out a table's memory when it is first written
        step()
    return seconds(step, 30, 1.0) * 1e3, sum(touched(task.draws, task.members))


def tables(what: str, counts: tuple[int, ...], folder: Path, pairs: int = 200_000) -> Iterator[Row]:
    """A step on ids alone, id width 32, against the number of users or of items."""
    first = 0.0
    for n in counts:
        size = Size(n, 10**4, pairs, ()) if what == "users" else Size(10**4, n, pairs, ())
        took, rows = _step(size, folder / f"{what}-{n}")
        gc.collect()
        first = first or took
        yield Row("growth", f"step, {n:,} {what}", {"ms": took, "times the smallest": took / first, "rows": rows})


def environments(size: Size, name: str, counts: tuple[int, ...], folder: Path) -> Iterator[Row]:
    """A whole round of environments, and 48 steps of masks, of all representations; measured in turns."""
    whole = Subject(made(size, folder / name))
    for kind, repeats in (("environments", 2), ("masks", 3)):
        calls: dict[str, Callable[[], object]] = {}
        for E in counts:
            one = f"invariance.environments={E}"
            subject = whole.other(one) if kind == "environments" else whole.part(48, one)
            calls[str(E)] = partial(getattr(subject, kind), subject.split())
        took = alternate(calls, repeats)
        for E in counts:
            times = took[str(E)] / took[str(counts[0])]
            what = f"{kind}, E={E}, {name}"
            yield Row("growth", what, {"ms": took[str(E)] * 1e3, f"times E={counts[0]}": times})


def modalities(counts: tuple[int, ...], folder: Path, shape: Size = SHAPE) -> Iterator[Row]:
    """A round of stage 2 against M, 128 features each: M specific representations and the common one."""
    per: dict[int, float] = {}
    for M in counts:
        size = replace(shape, widths=shape.widths * M)
        part = Subject(made(size, folder / f"M{M}")).part(12)
        split = part.split()

        def round_(part: Subject = part, split: list[torch.Tensor] = split) -> None:
            part.environments(split)
            part.masks(split)

        per[M] = seconds(round_, 3) / (M + 1)
        values = {"ms per representation": per[M] * 1e3, f"times M={counts[0]}": per[M] / per[counts[0]]}
        yield Row("growth", f"round of stage 2, M={M}", values)


def evaluation(counts: tuple[int, ...], users: int = 512, width: int = 128) -> Iterator[Row]:
    """Ranking 512 users against the number of items, blocks of at most 256 MiB of scores."""
    generator = torch.Generator().manual_seed(0)
    user_Ud = torch.randn(users, width, generator=generator)
    seen = torch.arange(users).repeat_interleave(20).numpy()
    first = 0.0
    for n in counts:
        item_Id = torch.randn(n, width, generator=generator)
        drawn = torch.randint(n, (2, len(seen)), generator=generator).numpy()
        masked, held = (ranking.Seen.of((seen, part), users) for part in drawn)
        product, judged = ranking.Product(user_Ud, item_Id), metrics.Judged(held, (10, 20))
        score = lambda u, mask, product=product: (product(u), None)  # noqa: E731
        lists = ranking.Ranking(score, [masked], n, 20, max(16, min(256, 2**26 // n)))

        def pass_(lists: ranking.Ranking = lists, judged: metrics.Judged = judged) -> object:
            return metrics.evaluate(lists, np.arange(users), judged)

        per = seconds(repeated(pass_, max(1, 10**5 // n)), 3) / max(1, 10**5 // n) / n
        first = first or per
        values = {"ms": per * n * 1e3, "ns per user and item": per / users * 1e9, "times the smallest": per / first}
        yield Row("growth", f"evaluation, {n:,} items", values)
