"""Section `gpu`: what a GPU makes of every stage: a step captured and launch by launch, plain torch at the same batch,
all users ranked, and memory. Runs on a CPU too, where nothing is captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.measure import Row, peak_mib, repeated, seconds
from benchmarks.steps import TIMES
from benchmarks.subjects import STEPS, Subject
from benchmarks.versus import plain_batches, plain_environments, plain_members
from m3dist.evaluation import metrics

ON_CPU = "on the CPU: steps are not captured"


def measure(subject: Subject, size: str) -> Iterator[Row]:
    for kind in STEPS:
        yield step(kind, subject, size)
    yield ranks(subject, size)


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
        return plain_members(subject, getattr(subject, kind).contents)
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
