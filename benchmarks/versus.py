"""Section `plain`: the same work by plain.py, in turns with m3dist's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.measure import Row, alternate, repeated
from benchmarks.plain import Batch, PlainBackbone, PlainEnvironment, batches, ndcg
from benchmarks.steps import ROUND, TIMES
from benchmarks.subjects import Subject, stepping
from m3dist.evaluation import metrics


def measure(subject: Subject, size: str) -> Iterator[Row]:
    yield backbone(subject, size)
    yield merge(subject, size)
    yield environments(subject, size)
    yield ranks(subject, size)


def plain_batches(subject: Subject, size: int) -> Iterator[Batch]:
    return batches(subject.user, subject.item, subject.data.n_items, size)


def plain_model(subject: Subject, content: torch.Tensor) -> PlainBackbone:
    model = PlainBackbone(subject.data.n_users, content, subject.resolved, subject.weights)
    return model.to(subject.device)


def plain_step(
    model: PlainBackbone, subject: Subject, lr: float
) -> tuple[Callable[[Batch], object], torch.optim.Optimizer]:
    """One step of dense Adam, and that Adam."""
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    columns = torch.arange(subject.config.backbone.neighbour_samples, device=subject.device)

    def step(batch: Batch) -> None:
        adam.zero_grad()
        model.loss(*batch, columns).backward()
        adam.step()

    return step, adam


def _against(what: str, subject: Subject, ours: Callable[[], object], plain: Callable[[], object]) -> Row:
    """Of steps on batches of stage 3's size."""
    times, batch = TIMES[subject.device], subject.config.merge.batch_size
    took = alternate({"plain": repeated(plain, times), "ours": repeated(ours, times)}, 5, 4.0, subject.device)
    rate, plain_rate = (times * batch / took[name] for name in ("ours", "plain"))
    values = {"interactions/s": rate, "times plain": rate / plain_rate, "plain interactions/s": plain_rate}
    return Row("plain", what, values)


def plain_members(subject: Subject, contents: list[torch.Tensor | None]) -> Callable[[], object]:
    """The plain models' next step, one model after another on the same batch."""
    settings = subject.config.merge
    drawn = plain_batches(subject, settings.batch_size)
    # spare rows, which steps of fixed shape need, are no part of a catalogue
    models = [plain_model(subject, x[: subject.data.n_items]) for x in contents if x is not None]
    plain = [plain_step(model, subject, settings.lr)[0] for model in models]

    def step() -> None:
        batch = next(drawn)
        for one in plain:
            one(batch)

    return step


def backbone(subject: Subject, size: str) -> Row:
    task = subject.backbone
    ours = stepping(task, subject.config.merge)
    return _against(f"backbone step, {size}", subject, ours, plain_members(subject, task.contents.each()))


def merge(subject: Subject, size: str) -> Row:
    """Stage 3's members; the plain ones step after one another."""
    task = subject.merge
    ours = stepping(task, subject.config.merge)
    return _against(f"merge step, {size}", subject, ours, plain_members(subject, task.contents.each()))


def environments(subject: Subject, size: str) -> Row:
    """One environment round of all representations: ours whole on a part of the interactions, the plain one from the
    time of its step and of its scoring pass, which repeat without change."""
    part = subject.part(ROUND[subject.device])
    config = part.config.invariance
    x, split, n, E = part.representations, part.split(), len(part.user), config.environments

    def ours() -> None:
        part.environments(split)

    drawn = plain_batches(part, config.batch_size)
    models, plain_steps = plain_environments(part, drawn)
    some = slice(0, 8 * config.batch_size)

    def plain_scoring() -> None:
        for model in models:
            model.content_scores(part.user[some], part.item[some], config.batch_size)

    calls: dict[str, Callable[[], object]] = {"ours": ours, "steps": plain_steps, "scoring": plain_scoring}
    took = alternate(calls, 3, device=part.device)
    steps = config.environment_steps  # over all environments, which share out the interactions
    plain = steps * took["steps"] + E * n / min(some.stop, n) * took["scoring"]
    what = f"environment round, E={E}, {len(x)} representations, {size}"
    rate = steps * config.batch_size * len(x) / took["ours"]
    return Row("plain", what, {"interactions/s": rate, "times plain": plain / took["ours"]})


def plain_environments(part: Subject, drawn: Iterator[Batch]) -> tuple[list[PlainEnvironment], Callable[[], object]]:
    """A plain model of one environment of each representation, and a call that takes a step of each."""
    frozen, x = part.trainer.frozen, part.representations
    backbone = plain_model(part, x[0])
    content_Uc = frozen.content_Uc[: part.data.n_users]
    ids = None if frozen.tau is not None else (frozen.id_Ud[: part.data.n_users], frozen.item_Id[: part.data.n_items])
    models = [PlainEnvironment(content_Uc, ids, 0.5 * part_ID, backbone).to(part.device) for part_ID in x]
    adams = [torch.optim.Adam(model.parameters(), lr=part.config.invariance.environment_lr) for model in models]

    def steps() -> None:
        for model, adam in zip(models, adams, strict=True):
            adam.zero_grad()
            model.loss(*next(drawn)).backward()
            adam.step()

    return models, steps


def ranks(subject: Subject, size: str, few: int = 100) -> Row:
    """Validation metrics with one member; the plain loop ranks `few` users."""
    user_Ud, item_Id = subject.factors
    judged = subject.context.evaluator.judged("val")
    users = np.flatnonzero(np.diff(judged.relevant.here))[:2048]
    pairs = [subject.dataset.interactions(split) for split in ("train", "val")]
    sets: list[list[set[int]]] = []
    for user, item in pairs:
        sets.append([set(item[slice(*np.searchsorted(user, [u, u + 1]))].tolist()) for u in users[:few].tolist()])
    lists = subject.lists(subject.single)

    def ours() -> object:
        return metrics.evaluate(lists, users, judged)

    def plain() -> object:
        return ndcg((user_Ud[users[:few]] @ item_Id.T).cpu().numpy(), *sets, 20)

    took = alternate({"ours": ours, "plain": plain}, 3, device=subject.device)
    rate = len(users) / took["ours"]
    return Row("plain", f"evaluation, {size}", {"users/s": rate, "times plain": took["plain"] / few * rate})
