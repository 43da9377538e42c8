"""Section `steps`: every stage's step at four sizes: rate, share of the roof, peak memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks import costs
from benchmarks.measure import Roof, Row, against_roof, alternate, peak_mib, repeated
from benchmarks.subjects import Subject, stepping, touched
from m3dist.evaluation import metrics

TIMES = {"cpu": 1, "cuda": 20}  # steps between two looks at the clock: waiting for a GPU takes longer than some steps
ROUND = {"cpu": 12, "cuda": 200}  # steps of stage 2 in a round: on a GPU the first ones prepare a graph of the others


def measure(subject: Subject, size: str, limits: Roof) -> Iterator[Row]:
    yield train("backbone", subject, size, limits)
    yield train("align", subject, size, limits)
    yield environments(subject, size, limits)
    yield masks(subject, size, limits)
    yield train("merge", subject, size, limits)
    yield ranks(subject, size, limits)


def losses(subject: Subject, size: str) -> Iterator[Row]:
    """A step of each kind under both losses, in turns."""
    under = {loss: subject.other(f"backbone.loss={loss}") for loss in ("softmax", "ultragcn")}
    device = subject.data.device.type
    for kind in ("backbone", "align", "merge"):
        calls = {loss: repeated(one.step(kind), 3 * TIMES[device]) for loss, one in under.items()}
        took = alternate(calls, 12, device=device)
        values = {f"{loss} ms": seconds * 1e3 / (3 * TIMES[device]) for loss, seconds in took.items()}
        yield Row(
            "losses", f"{kind} step, {size}", {**values, "softmax / ultragcn": took["softmax"] / took["ultragcn"]}
        )


def cost(kind: str, subject: Subject) -> costs.Cost:
    """Of one step of `backbone`, `align` or `merge`."""
    config, backbone, widths = subject.config, subject.resolved, list(subject.dataset.modalities.values())
    task = getattr(subject, kind)
    D, s = config.align.dim, backbone.neighbour_samples if backbone.nu else 0
    members = task.member if kind == "align" else task.members
    U, R = touched(task.draws, members)
    rows = costs.Rows(backbone.dim, backbone.content_columns, U, R)
    samples = costs.Samples(task.draws.layout.size, backbone.negatives, s)
    if kind == "backbone":
        return costs.backbone(samples, rows, sum(widths))
    if kind == "merge":
        *own, shared = config.align.representations(widths)
        members = sum((costs.backbone(samples, rows, width + shared, read=0) for width in own), costs.Cost())
        return members + costs.Cost(moved=4 * R * task.contents.columns)
    task.draws.seek(0, 0)
    C = int(task.contrast(task.draws.draw()).valid_MC.any(0).sum())
    identity = config.align.encoder == "identity"
    return costs.backbone(samples, rows, sum(widths)) + costs.align(C, widths, D, config.align.club_hidden, identity)


def train(kind: str, subject: Subject, size: str, limits: Roof) -> Row:
    task, settings = getattr(subject, kind), subject.config.align if kind == "align" else subject.config.merge
    spent, times = cost(kind, subject), TIMES[limits.device]
    values = against_roof(repeated(stepping(task, settings), times), spent * times, limits)
    values["ms"] /= times
    rate = task.draws.layout.size / values["ms"] * 1e3
    several = repeated(stepping(task, settings), 5)  # on a GPU their graph is captured anew, and its memory counts
    peak = peak_mib(several, limits.device)
    return Row("steps", f"{kind} step, {size}", {"interactions/s": rate, **values, "peak MiB": peak})


def _stage2(subject: Subject, steps: int) -> costs.Cost:
    """So many steps of every representation."""
    frozen, draws = subject.trainer.frozen, subject.trainer.frozen.draws("cost")
    draws.seek(0, 0)
    batch = draws.draw()
    U = len(batch.user_Pb[batch.valid_Pb].unique())
    R = len(torch.cat([batch.item_Pb[batch.valid_Pb], batch.negative.view(-1)]).unique())
    widths = [x.shape[1] for x in subject.representations]
    d = subject.resolved.dim if frozen.tau is None else 0  # under the softmax ids are not scored
    samples = costs.Samples(draws.layout.size, subject.config.invariance.negatives)
    return costs.stage2(samples, costs.Rows(d, frozen.content, U, R), widths) * steps


def environments(subject: Subject, size: str, limits: Roof) -> Row:
    """Some steps of all environment models of all representations, and their interactions scored under each."""
    short = subject.part(ROUND[limits.device])
    settings, split, x = short.config.invariance, short.split(), short.representations
    n, D, c, E = len(short.user), sum(part.shape[1] for part in x), short.trainer.frozen.content, settings.environments
    rated = len(short.item.unique())
    scoring = costs.Cost(2.0 * rated * D * E * c + 2.0 * n * E * c * len(x))

    def run() -> None:
        short.environments(split)

    values = against_roof(run, _stage2(short, settings.environment_steps) + scoring, limits, repeats=2, least=0)
    rate = settings.environment_steps * settings.batch_size * len(x) / values["ms"] * 1e3
    what = f"environment steps and scoring, E={E}, {len(x)} representations, {size}"
    return Row("steps", what, {"interactions/s": rate, **values, "peak MiB": peak_mib(run, limits.device)})


def masks(subject: Subject, size: str, limits: Roof) -> Row:
    """Some steps of mask learning, all representations."""
    short = subject.part(ROUND[limits.device])
    settings, split, x = short.config.invariance, short.split(), short.representations

    def run() -> None:
        short.masks(split)

    values = against_roof(run, _stage2(short, settings.mask_steps), limits, repeats=2, least=0)
    rate = settings.mask_steps * settings.batch_size * len(x) / values["ms"] * 1e3
    values = {"interactions/s": rate, **values, "peak MiB": peak_mib(run, limits.device)}
    return Row("steps", f"mask steps, {len(x)} representations, {size}", values)


def ranks(subject: Subject, size: str, limits: Roof) -> Row:
    """Full ranking with one member's scores, over at most 4096 users with validation items."""
    judged = subject.context.evaluator.judged("val")
    users = np.flatnonzero(np.diff(judged.relevant.here))[:4096]
    lists = subject.lists(subject.single)

    def pass_() -> object:
        return metrics.evaluate(lists, users, judged)

    spent = costs.ranking(len(users), subject.data.n_items, subject.factors[0].shape[1])
    values = against_roof(pass_, spent, limits, repeats=5)
    rate = len(users) / values["ms"] * 1e3
    return Row("steps", f"ranking, {size}", {"users/s": rate, **values, "peak MiB": peak_mib(pass_, limits.device)})
