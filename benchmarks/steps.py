"""Section `steps`: every stage's step at four sizes: rate, share of the roof, peak memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks import costs
from benchmarks.measure import Roof, Row, against_roof, peak_mib, repeated
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


def cost(kind: str, subject: Subject) -> costs.Cost:
    """Of one step of `backbone`, `align` or `merge`."""
    config, widths = subject.config, list(subject.dataset.modalities.values())
    task = getattr(subject, kind)
    B, N, D = task.draws.layout.size, config.backbone.negatives, config.align.dim
    s = config.backbone.neighbour_samples if config.backbone.nu else 0
    U, R = touched(task.draws, task.member if kind == "align" else task.members)
    d, c = config.backbone.dim, config.backbone.content_dim
    if kind == "backbone":
        return costs.backbone(B, N, d, c, sum(widths), s, U, R)
    own = widths if config.align.encoder == "identity" else [D] * len(widths)
    if kind == "merge":
        return sum((costs.backbone(B, N, d, c, width + D, s, U, R) for width in own), costs.Cost())
    task.draws.seek(0, 0)
    C = int(task.contrast(task.draws.draw()).valid_MC.any(0).sum())
    through = costs.backbone(B, N, d, c, sum(own) + D, s, U, R, through=True)
    return through + costs.align(R, C, widths, D, config.align.club_hidden, config.align.encoder == "identity")


def train(kind: str, subject: Subject, size: str, limits: Roof) -> Row:
    task, settings = getattr(subject, kind), subject.config.align if kind == "align" else subject.config.merge
    spent, times = cost(kind, subject), TIMES[limits.device]
    values = against_roof(repeated(stepping(task, settings), times), spent * times, limits)
    values["ms"] /= times
    rate = task.draws.layout.size / values["ms"] * 1e3
    several = repeated(stepping(task, settings), 5)  # on a GPU their graph is captured anew, and its memory counts
    peak = peak_mib(several, limits.device)
    return Row("steps", f"{kind} step, {size}", {"interactions/s": rate, **values, "peak MiB": peak})


def _stage2(subject: Subject) -> costs.Cost:
    """All steps of an epoch, of every representation."""
    settings, backbone, draws = subject.config.invariance, subject.config.backbone, subject.trainer.frozen.draws("cost")
    draws.seek(0, 0)
    batch = draws.draw()
    U = len(batch.user_Pb[batch.valid_Pb].unique())
    R = len(torch.cat([batch.item_Pb[batch.valid_Pb], batch.negative.view(-1)]).unique())
    widths = [x.shape[1] for x in subject.representations]
    one = costs.stage2(draws.layout.size, settings.negatives, backbone.dim, backbone.content_dim, widths, U, R)
    return one * draws.steps


def environments(subject: Subject, size: str, limits: Roof) -> Row:
    """Some steps of all environment models of all representations, and their interactions scored under each."""
    short = subject.part(ROUND[limits.device], "invariance.environment_epochs=1")
    split, x = short.split(), short.representations
    n, D, c = len(short.user), sum(part.shape[1] for part in x), short.config.backbone.content_dim
    E = short.config.invariance.environments
    rated = len(short.item.unique())
    scoring = costs.Cost(2.0 * rated * D * E * c + 2.0 * n * E * c * len(x))

    def run() -> None:
        short.environments(split)

    values = against_roof(run, _stage2(short) + scoring, limits, repeats=2, least=0)
    rate = n * len(x) / values["ms"] * 1e3
    what = f"environment steps and scoring, E={E}, {len(x)} representations, {size}"
    return Row("steps", what, {"interactions/s": rate, **values, "peak MiB": peak_mib(run, limits.device)})


def masks(subject: Subject, size: str, limits: Roof) -> Row:
    """Some steps of mask learning, all representations."""
    short = subject.part(ROUND[limits.device], "invariance.mask_epochs=1")
    split, x = short.split(), short.representations

    def run() -> None:
        short.masks(split)

    values = against_roof(run, _stage2(short), limits, repeats=2, least=0)
    rate = len(short.user) * len(x) / values["ms"] * 1e3
    values = {"interactions/s": rate, **values, "peak MiB": peak_mib(run, limits.device)}
    return Row("steps", f"mask steps, {len(x)} representations, {size}", values)


def ranks(subject: Subject, size: str, limits: Roof) -> Row:
    """Full ranking with one member's scores, over at most 4096 users with validation items."""
    user_Ud, item_Id = subject.factors
    judged = subject.context.evaluator.judged("val")
    users = np.flatnonzero(np.diff(judged.relevant.here))[:4096]
    lists = subject.lists(user_Ud, item_Id)

    def pass_() -> object:
        return metrics.evaluate(lists, users, judged)

    spent = costs.ranking(len(users), subject.data.n_items, user_Ud.shape[1])
    values = against_roof(pass_, spent, limits, repeats=5)
    rate = len(users) / values["ms"] * 1e3
    return Row("steps", f"ranking, {size}", {"users/s": rate, **values, "peak MiB": peak_mib(pass_, limits.device)})
