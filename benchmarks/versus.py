"""Section `plain`: the same work by plain.py, in turns with m3dist's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch

from benchmarks.measure import Row, alternate
from benchmarks.plain import PlainEnvironment, PlainUltraGCN, ndcg
from benchmarks.subjects import Subject, stepping
from m3dist.data.sampling import Batch, Draws, Sampler
from m3dist.evaluation import ranking

NEGATIVES = 50  # of each positive, as the published scripts draw them


def measure(subject: Subject, size: str) -> Iterator[Row]:
    yield backbone(subject, size)
    yield merge(subject, size)
    yield environments(subject, size)
    yield ranks(subject, size)


def plain_sampler(subject: Subject, batch: int) -> Sampler:
    return subject.sampler(batch, Draws(NEGATIVES, per_positive=True), "plain")


def plain_model(subject: Subject, content: torch.Tensor) -> PlainUltraGCN:
    return PlainUltraGCN(subject.data.n_users, content, subject.config.backbone, subject.weights)


def plain_step(
    model: PlainUltraGCN, subject: Subject, lr: float
) -> tuple[Callable[[Batch], object], torch.optim.Optimizer]:
    """One step of dense Adam, and that Adam."""
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    columns = torch.arange(subject.config.backbone.neighbour_samples)

    def step(batch: Batch) -> None:
        adam.zero_grad()
        model.loss(batch.user_b, batch.item_b, batch.negative, columns).backward()
        adam.step()

    return step, adam


def _against(what: str, batch: int, ours: Callable[[], object], plain: Callable[[], object]) -> Row:
    took = alternate({"plain": plain, "ours": ours}, 5, 4.0)
    values = {"interactions/s": batch / took["ours"], "times plain": took["plain"] / took["ours"]}
    return Row("plain", what, {**values, "plain interactions/s": batch / took["plain"]})


def backbone(subject: Subject, size: str) -> Row:
    task = subject.backbone
    sampler = plain_sampler(subject, task.sampler.batch_size)
    content = task.contents[0]
    assert content is not None
    plain = stepping(plain_step(plain_model(subject, content), subject, subject.config.merge.lr)[0], sampler)
    return _against(f"backbone step, {size}", sampler.batch_size, stepping(task.step, task.sampler), plain)


def merge(subject: Subject, size: str) -> Row:
    """Stage 3's members; the plain ones step after one another."""
    task = subject.merge
    sampler = plain_sampler(subject, task.sampler.batch_size)
    models = [plain_model(subject, x) for x in task.contents if x is not None]
    plain = [plain_step(model, subject, subject.config.merge.lr)[0] for model in models]

    def step(batch: Batch) -> None:
        for one in plain:
            one(batch)

    ours = stepping(task.step, task.sampler)
    return _against(f"merge step, {size}", sampler.batch_size, ours, stepping(step, sampler))


def environments(subject: Subject, size: str) -> Row:
    """One environment round of all representations: ours whole on a part of the interactions, the plain one from the
    time of its step and of its scoring pass, which repeat without change."""
    part = subject.part()
    config = part.config.invariance
    x, split, frozen = part.representations, part.split(), part.trainer.frozen
    n, E = len(part.user), config.environments

    def ours() -> None:
        part.environments(split)

    batch = part.config.merge.batch_size
    sampler = plain_sampler(part, batch)
    backbone = plain_model(part, x[0])
    models = [PlainEnvironment(frozen.user_Uk, frozen.item_Id, 0.5 * part_ID, backbone) for part_ID in x]
    adams = [torch.optim.Adam(model.parameters(), lr=config.environment_lr) for model in models]
    number = count()

    def plain_steps() -> None:
        """One step of each representation."""
        for model, adam in zip(models, adams, strict=True):
            drawn = sampler(0, next(number) % (sampler.steps - 1))
            adam.zero_grad()
            model.loss(drawn.user_b, drawn.item_b, drawn.negative).backward()
            adam.step()

    some = slice(0, 8 * batch)

    def plain_scoring() -> None:
        for model in models:
            model.content_scores(part.user[some], part.item[some], batch)

    took = alternate({"ours": ours, "plain steps": plain_steps, "plain scoring": plain_scoring}, 3)
    steps = config.environment_epochs * n / batch  # over all environments, which share out the interactions
    plain = steps * took["plain steps"] + E * n / (8 * batch) * took["plain scoring"]
    what = f"environment round, E={E}, {len(x)} representations, {size}"
    rate = n * config.environment_epochs * len(x) / took["ours"]
    return Row("plain", what, {"interactions/s": rate, "times plain": plain / took["ours"]})


def ranks(subject: Subject, size: str, few: int = 100) -> Row:
    """Validation metrics with one member; the plain loop ranks `few` users."""
    data, evaluation = subject.data, subject.config.evaluation
    user_Ud, item_Id = subject.factors
    pairs = [subject.dataset.interactions(split) for split in ("train", "val")]
    held = subject.context.evaluator.items("val")
    users = (held.count(torch.arange(data.n_users)) > 0).nonzero().squeeze(1)[:2048]
    sets: list[list[set[int]]] = []
    for user, item in pairs:
        sets.append([set(item[slice(*np.searchsorted(user, [u, u + 1]))].tolist()) for u in users[:few].tolist()])

    lists, judged = subject.lists(user_Ud, item_Id), ranking.Judged(held, data.n_items, evaluation.k)

    def ours() -> object:
        return ranking.evaluate(lists, users, judged)

    took = alternate({"ours": ours, "plain": lambda: ndcg((user_Ud[users[:few]] @ item_Id.T).numpy(), *sets, 20)}, 3)
    rate = len(users) / took["ours"]
    return Row("plain", f"evaluation, {size}", {"users/s": rate, "times plain": took["plain"] / few * rate})
