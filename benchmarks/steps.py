"""Section `steps`: every stage's step at four sizes: rate, share of the roof, peak memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import costs
from benchmarks.measure import Roof, Row, against_roof, peak_mib
from benchmarks.subjects import Subject, stepping
from m3dist.data.sampling import Draws
from m3dist.evaluation import ranking


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
    B, N, D = task.sampler.batch_size, config.backbone.negatives, config.align.dim
    s = config.backbone.neighbour_samples if config.backbone.nu else 0
    U, R = subject.touched(task.sampler)
    d, c = config.backbone.dim, config.backbone.content_dim
    if kind == "backbone":
        return costs.backbone(B, N, d, c, sum(widths), s, U, R)
    own = widths if config.align.encoder == "identity" else [D] * len(widths)
    if kind == "merge":
        return sum((costs.backbone(B, N, d, c, width + D, s, U, R) for width in own), costs.Cost())
    batches = [task.sampler(0, step) for step in range(min(5, task.sampler.steps))]
    C = sum(len(task.contrast(batch).item_C) for batch in batches) // len(batches)
    through = costs.backbone(B, N, d, c, sum(own) + D, s, U, R, through=True)
    return through + costs.align(R, C, widths, D, config.align.club_hidden, config.align.encoder == "identity")


def train(kind: str, subject: Subject, size: str, limits: Roof) -> Row:
    task = getattr(subject, kind)
    step = stepping(task.step, task.sampler)
    spent = cost(kind, subject)
    values = against_roof(step, spent.flop, spent.moved, limits)
    rate = task.sampler.batch_size / values["ms"] * 1e3
    return Row("steps", f"{kind} step, {size}", {"interactions/s": rate, **values, "peak MiB": peak_mib(step)})


def _stage2(subject: Subject) -> costs.Cost:
    """One step of every representation."""
    config = subject.config
    settings, backbone = config.invariance, config.backbone
    B = min(settings.batch_size, len(subject.user))
    batch = subject.sampler(B, Draws(settings.negatives), "touched")(0, 0)
    U, R = len(batch.user_b.unique()), len(torch.cat([batch.item_b, batch.negative]).unique())
    widths = [x.shape[1] for x in subject.representations]
    return costs.stage2(B, settings.negatives, backbone.dim, backbone.content_dim, widths, U, R)


def environments(subject: Subject, size: str, limits: Roof) -> Row:
    """Twelve steps of all environment models of all representations, and their interactions scored under each."""
    short = subject.part(12, "invariance.environment_epochs=1")
    split, x = short.split(), short.representations
    steps = short.trainer.frozen.sampler("count").steps
    n, D, c = len(short.user), sum(part.shape[1] for part in x), short.config.backbone.content_dim
    E = short.config.invariance.environments
    rated = len(short.item.unique())
    scoring = costs.Cost(2.0 * rated * D * E * c + 2.0 * n * E * c * len(x))
    spent = _stage2(short) * steps + scoring

    def run() -> None:
        short.environments(split)

    values = against_roof(run, spent.flop, spent.moved, limits, repeats=2, least=0)
    rate = n * len(x) / values["ms"] * 1e3
    what = f"environment steps and scoring, E={E}, {len(x)} representations, {size}"
    return Row("steps", what, {"interactions/s": rate, **values, "peak MiB": peak_mib(run)})


def masks(subject: Subject, size: str, limits: Roof) -> Row:
    """Twelve steps of mask learning, all representations."""
    short = subject.part(12, "invariance.mask_epochs=1")
    split, x = short.split(), short.representations
    steps = short.trainer.frozen.sampler("count").steps
    spent = _stage2(short) * steps

    def run() -> None:
        short.masks(split)

    values = against_roof(run, spent.flop, spent.moved, limits, repeats=2, least=0)
    rate = len(short.user) * len(x) / values["ms"] * 1e3
    return Row(
        "steps",
        f"mask steps, {len(x)} representations, {size}",
        {"interactions/s": rate, **values, "peak MiB": peak_mib(run)},
    )


def ranks(subject: Subject, size: str, limits: Roof) -> Row:
    """Full ranking with one member's scores, over at most 4096 users with validation items."""
    data, evaluation = subject.data, subject.config.evaluation
    user_Ud, item_Id = subject.factors
    held = subject.context.evaluator.items("val")
    users = (held.count(torch.arange(data.n_users)) > 0).nonzero().squeeze(1)[:4096]
    judged = ranking.Judged(held, data.n_items, evaluation.k)
    lists = subject.lists(user_Ud, item_Id)

    def pass_() -> object:
        return ranking.evaluate(lists, users, judged)

    spent = costs.ranking(len(users), data.n_items, user_Ud.shape[1])
    values = against_roof(pass_, spent.flop, spent.moved, limits, repeats=5)
    rate = len(users) / values["ms"] * 1e3
    return Row("steps", f"ranking, {size}", {"users/s": rate, **values, "peak MiB": peak_mib(pass_)})
