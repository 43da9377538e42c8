"""What one process computes in a round of stage 2: environment models, assignments and masks of some representations.

A process that has several representations takes them through its batches together. What it finds of each depends on
that one's arguments alone, bit for bit, so it does not matter which process finds it.

Shapes: n interactions, g environments, c content width of users, D representation width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from m3dist.config import Config
from m3dist.distributed.engine import Engine
from m3dist.losses import Projection
from m3dist.method.assignment import Blocks, Models, assign
from m3dist.method.environments import EnvironmentModels, Frozen, Masks

Learned = tuple[Tensor, dict[str, float]]  # a gate's new logits [D], and the means of its terms


class Trainer:
    """Holds what stage 2 reads. interrupted: asked between steps; a round of large data is long."""

    def __init__(
        self, tensors: dict[str, Tensor], device: str | torch.device, config: Config, engine: Engine | None = None
    ):
        self.frozen = Frozen(tensors, device, config, engine)
        self.engine, self.settings = self.frozen.engine, config.invariance
        self.blocks = Blocks.of(self.frozen.item)
        self.interrupted: Callable[[], bool] = lambda: False

    def on_device(self, tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {r: x.to(self.engine.device) for r, x in tensors.items()}

    def environments(
        self, groups: Mapping[int, Sequence[int]], psi: Mapping[int, Tensor], environment: Mapping[int, Tensor],
        round_: int,
    ) -> dict[int, Projection]:  # fmt: skip
        """W [g, c, D] and b [g, c] of the trained models of each representation's group of environments.

        psi: 1 - m of every representation, [D]. environment: of every interaction, [n].
        """
        settings, here = self.settings, self.on_device(environment)
        module = EnvironmentModels(self.frozen, groups, self.on_device(psi), round_)
        dense = self.engine.wrap(module, [{"params": [*module.parameters()], "lr": settings.environment_lr}])
        sampler = self.frozen.sampler(f"environments.{round_}")
        for epoch in range(settings.environment_epochs):
            for step in range(sampler.steps):
                self._heed()
                dense.backward(dense(self.frozen.step(sampler, epoch, step), here))
                dense.step()
        state = dense.state()
        return {r: Projection(state[f"W_{r}"], state[f"b_{r}"]) for r in groups}

    def masks(self, logits: Mapping[int, Tensor], environment: Mapping[int, Tensor], round_: int) -> dict[int, Learned]:
        """One round of mask learning of some representations."""
        settings, here = self.settings, self.on_device(environment)
        module = Masks(self.frozen, logits, round_)
        dense = self.engine.wrap(module, [{"params": [*module.parameters()], "lr": settings.mask_lr}])
        sampler = self.frozen.sampler(f"masks.{round_}")
        sums: dict[str, Tensor] = {}
        for epoch in range(settings.mask_epochs):
            for step in range(sampler.steps):
                self._heed()
                terms = dense(self.frozen.step(sampler, epoch, step), here)
                dense.backward(torch.stack([part["loss"] for part in terms.values()]).sum())
                dense.step()
                for r, part in terms.items():
                    for name, value in part.items():
                        key = f"{r}/{name}"
                        sums[key] = sums.get(key, torch.zeros((), device=self.engine.device)) + value.detach()
        steps = max(settings.mask_epochs * sampler.steps, 1)
        totals = self.engine.totals({name: float(x) for name, x in sums.items()})
        means: dict[int, dict[str, float]] = {r: {} for r in logits}
        for name, total in totals.items():
            r, _, term = name.partition("/")
            means[int(r)][term] = total / steps
        state = dense.state()
        return {r: (state[f"gates.{r}.logit"].cpu(), means[r]) for r in logits}

    def assign(self, models: Models, part: tuple[int, int] = (0, 1)) -> Tensor:
        """The best environment of each interaction of a part of all, in the order of `blocks.interactions(*part)`."""
        return assign(self.frozen, self.blocks, models, part)

    def _heed(self) -> None:
        """Raises KeyboardInterrupt when the run was interrupted."""
        if self.interrupted():
            raise KeyboardInterrupt
