"""Section `gpu`: what a GPU makes of every stage: a step captured and launch by launch, plain torch at the same batch,
larger batches and other precisions, all users ranked, memory, and a whole run. Runs on a CPU too, where nothing is
captured."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, peak_mib, repeated, seconds
from benchmarks.steps import TIMES
from benchmarks.subjects import STEPS, Subject
from benchmarks.versus import plain_batches, plain_environments, plain_members
from benchmarks.whole import ran
from m3dist.evaluation import metrics

ON_CPU = "on the CPU: steps are not captured"
LARGE = 65_536  # a batch that a large GPU is busy with


def measure(subject: Subject, size: str, data: Path | None = None) -> Iterator[Row]:
    """data: a prepared data set to train on as a user would."""
    for kind in STEPS:
        yield step(kind, subject, size)
    if subject.device == "cuda":
        yield from precisions(subject, size)
    yield ranks(subject, size)
    if data is not None:
        yield trains(data, subject.device)


def precisions(subject: Subject, size: str) -> Iterator[Row]:
    """Steps of stage 3 at the default batch and at a large one, with groups of one size, in each precision."""
    small, groups = subject.config.merge.batch_size, subject.config.backbone.groups
    for batch in (small, LARGE):
        for precision in ("float32", "auto", "bf16"):
            other = subject.other(
                f"merge.batch_size={batch}", f"backbone.groups={groups * batch // small}", f"precision={precision}"
            )
            for kind in ("backbone", "merge"):
                ms = _ms(other.step(kind), other.device)
                values = {"captured ms": ms, "interactions/s": batch / ms * 1e3}
                values["peak MiB"] = peak_mib(repeated(other.step(kind), 5), other.device)
                yield Row("gpu", f"{kind} step, {size}, {precision}, {batch:,}", values, _together(kind, other))


def step(kind: str, subject: Subject, size: str) -> Row:
    """A step of one kind; in stage 2 of all representations."""
    device, stage2 = subject.device, kind in ("environments", "masks")
    settings = (
        subject.config.invariance if stage2 else subject.config.align if kind == "align" else subject.config.merge
    )
    batch, members = min(settings.batch_size, len(subject.user)), _together(kind, subject)
    values = {"eager ms": _ms(subject.step(kind, captured=False), device)}
    fastest = values["eager ms"]
    if device == "cuda":
        fastest = values["captured ms"] = _ms(subject.step(kind), device)
    values["interactions/s"] = batch / fastest * 1e3
    values["peak MiB"] = peak_mib(repeated(subject.step(kind), 5), device)
    if plain := _plain(kind, subject):
        values["plain ms"] = _ms(plain, device)
        values["times plain"] = values["plain ms"] / fastest
    note = f"batch {batch:,}, {members}"
    return Row("gpu", f"{kind} step, {size}", values, note if device == "cuda" else f"{note}; {ON_CPU}")


def _ms(call: Callable[[], object], device: str) -> float:
    times = TIMES[device]
    return seconds(repeated(call, times), 5, device=device) / times * 1e3


def _together(kind: str, subject: Subject) -> str:
    """What one step trains."""
    if kind in ("environments", "masks"):
        return f"{len(subject.representations)} representations"
    return f"{subject.merge.members.user.weight.shape[0]} members" if kind == "merge" else "1 member"


def _plain(kind: str, subject: Subject) -> Callable[[], object] | None:
    """The same work by plain torch, where there is such."""
    if kind in ("backbone", "merge"):
        return plain_members(subject, getattr(subject, kind).contents.each())
    if kind == "environments":
        return plain_environments(subject, plain_batches(subject, subject.config.invariance.batch_size))[1]
    return None


def ranks(subject: Subject, size: str) -> Row:
    """Every user ranked by one member's scores and by all of them, fused, with the default block."""
    evaluator, device = subject.context.evaluator, subject.device
    users, judged = np.arange(subject.data.n_users), evaluator.judged("val")
    one, all_ = (subject.lists(score) for score in (subject.single, subject.fused))
    values = {
        f"{name} ms": seconds(lambda lists=lists: metrics.evaluate(lists, users, judged), 3, device=device) * 1e3
        for name, lists in (("one member", one), ("fused", all_))
    }
    values["users/s"] = len(users) / values["one member ms"] * 1e3
    values["peak MiB"] = peak_mib(lambda: metrics.evaluate(all_, users, judged), device)
    note = f"{len(users):,} users, {subject.data.n_items:,} items, blocks of {one.block:,}"
    return Row("gpu", f"ranking of all users, {size}", values, note if device == "cuda" else f"{note}; on the CPU")


def trains(data: Path, device: str) -> Row:
    """`m3dist train data=DATA` with defaults, in a process of its own; raises ValueError when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out, began = Path(folder) / "run", time.perf_counter()
        result = ran([sys.executable, "-m", "m3dist", "train", f"data={data}", f"out={out}"], out)
        took = time.perf_counter() - began
    values = {"s": took, **{f"{split} ndcg@10": result[split]["ndcg@10"] for split in ("validation", "test")}}
    return Row("gpu", f"m3dist train {data.name}", values, "defaults" if device == "cuda" else "defaults; on the CPU")
