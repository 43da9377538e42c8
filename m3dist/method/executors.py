"""Who computes a round of stage 2: this process, with the other workers where there are several, or Ray actors.

Both executors give the same numbers. Representations do not meet, nor do environments inside a round, so actors can
share them out.

Shapes: n interactions, n_w of this worker, R representations, E environments, D representation width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from m3dist.data.arrays import counted
from m3dist.distributed.engine import Engine
from m3dist.method.assignment import Blocks, Models
from m3dist.method.environments import Trained
from m3dist.method.trainer import Learned, Trainer

if TYPE_CHECKING:
    from m3dist.distributed.actors import Pool


class Executor(Protocol):
    """Both halves of a round, for all representations."""

    def environments(self, psi: list[Tensor], environment: list[Tensor], round_: int) -> list[Tensor]:
        """The new environments of this worker's interactions, [n_w], per representation. Empty ones take no part.

        psi: 1 - m of every representation, [D]. environment: before, int8 or int16, which the new ones are, too.
        """

    def masks(self, logits: list[Tensor], environment: list[Tensor], round_: int) -> list[Learned]:
        """New logits and mean terms of every representation."""


def sizes(environment: Sequence[Tensor], environments: int, engine: Engine | None = None) -> Tensor:
    """Interactions of all workers in every environment of each representation, int64 [R, E] on the CPU."""
    count_RE = torch.stack([counted(x, environments) for x in environment])
    if engine is None or engine.world == 1:
        return count_RE
    count_RE = count_RE.to(engine.device)
    engine.add_up([count_RE])
    return count_RE.cpu()


def _alive(count_RE: Tensor) -> list[list[int]]:
    """The environments of each representation that have interactions."""
    return [count_E.nonzero().flatten().tolist() for count_E in count_RE]


class Together:
    """This process, or all workers side by side: each takes its share of every batch and assigns its interactions."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.engine = trainer, trainer.engine

    def environments(self, psi: list[Tensor], environment: list[Tensor], round_: int) -> list[Tensor]:
        trainer = self.trainer
        names = dict(enumerate(_alive(sizes(environment, trainer.settings.environments, self.engine))))
        trained = trainer.environments(names, dict(enumerate(psi)), dict(enumerate(environment)), round_)
        models = [Models(r, psi[r], names[r], trained[r]) for r in names]
        return [trainer.assign(each).cpu() for each in models]

    def masks(self, logits: list[Tensor], environment: list[Tensor], round_: int) -> list[Learned]:
        learned = self.trainer.masks(dict(enumerate(logits)), dict(enumerate(environment)), round_)
        return [learned[r] for r in range(len(logits))]


class OnActors:
    """Ray actors, each with all that stage 2 reads. item_n: of the training interactions."""

    def __init__(self, pool: Pool, environments: int, item_n: Tensor, stop: Callable[[], bool]):
        self.pool, self.E, self.stop = pool, environments, stop
        self.blocks = Blocks.of(item_n)

    def environments(self, psi: list[Tensor], environment: list[Tensor], round_: int) -> list[Tensor]:
        parts = _parts(len(self.pool.actors), len(psi), self.E)
        names = _alive(sizes(environment, self.E))
        put = [self.pool.put(x) for x in environment]
        groups: list[dict[int, Sequence[int]]]
        if parts == 1:
            groups = [{r: names[r] for r in bundle} for bundle in self._bundles(len(psi))]
        else:
            groups = [{r: names[r][at::parts]} for r in range(len(psi)) for at in range(parts) if names[r][at::parts]]
        tasks = [(group, {r: psi[r] for r in group}, {r: put[r] for r in group}, round_) for group in groups]
        found = self.pool.map(Trainer.environments, tasks, self.stop)
        models = [_joined(r, psi[r], groups, found) for r in range(len(psi))]
        shares = [(model, (at, parts)) for model in models for at in range(parts)]
        chosen = self.pool.map(Trainer.assign_part, shares, self.stop)
        order = torch.cat([self.blocks.interactions(at, parts) for at in range(parts)]).cpu()
        out = [torch.empty_like(x) for x in environment]
        for r, new in enumerate(out):
            new[order] = torch.cat(chosen[r * parts : (r + 1) * parts]).to(new)
        return out

    def masks(self, logits: list[Tensor], environment: list[Tensor], round_: int) -> list[Learned]:
        tasks = [
            ({r: logits[r] for r in bundle}, {r: environment[r] for r in bundle}, round_)
            for bundle in self._bundles(len(logits))
        ]
        found: dict[int, Learned] = {}
        for learned in self.pool.map(Trainer.masks, tasks, self.stop):
            found |= learned
        return [found[r] for r in range(len(logits))]

    def _bundles(self, representations: int) -> list[tuple[int, ...]]:
        """Representations that one actor takes through its batches together: the ids' scores are the same for all."""
        lots = min(max(1, len(self.pool.actors)), representations)
        return [tuple(range(at, representations, lots)) for at in range(lots)]


def _joined(r: int, psi_D: Tensor, groups: list[dict[int, Sequence[int]]], found: list[dict[int, Any]]) -> Models:
    """The models of one representation, which actors trained in groups, in the order of their names."""
    names = [e for group in groups for e in group.get(r, ())]
    order = sorted(range(len(names)), key=names.__getitem__)
    W, b = (torch.cat([x[r][k] for x in found if r in x])[order] for k in (0, 1))
    return Models(r, psi_D, sorted(names), Trained(W, b))


def _parts(actors: int, representations: int, environments: int) -> int:
    """Into how many tasks a representation's environments go, so that actors end together."""
    most = min(environments, max(1, math.ceil(2 * actors / representations)))
    waves = {parts: math.ceil(parts * representations / actors) / parts for parts in range(1, most + 1)}
    return min(waves, key=lambda parts: (waves[parts], parts))
