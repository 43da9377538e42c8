"""What one process computes in a round of stage 2: environment models, assignments and masks of some representations.

A process that has several representations takes them through its batches together. What it finds of each depends on
that one's arguments alone, bit for bit, so it does not matter which process finds it.

Shapes: n interactions, g environments, c content width of users, D representation width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from m3dist.config import Config
from m3dist.distributed.engine import Engine
from m3dist.method.assignment import Blocks, Models, assign
from m3dist.method.environments import EnvironmentModels, Frozen, Masks, Step, Trained
from m3dist.training.steps import Stepper, Sums

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

    def _stacked(self, environment: Mapping[int, Tensor], rs: Iterable[int]) -> Tensor:
        """Every interaction's environment under these representations, int16 [R, n]."""
        return torch.stack([environment[r].to(self.engine.device, torch.int16) for r in rs])

    def environments(
        self, names: Mapping[int, Sequence[int]], psi: Mapping[int, Tensor], environment: Mapping[int, Tensor],
        round_: int,
    ) -> dict[int, Trained]:  # fmt: skip
        """W [g, c, D] and b [g, c] of the trained models of the named environments of each representation.

        psi: 1 - m of every representation, [D]. environment: of every interaction, [n].
        """
        settings, here_Rn = self.settings, self._stacked(environment, names)
        module = EnvironmentModels(self.frozen, names, self.on_device(psi), round_)
        dense = self.engine.wrap(module, [{"params": [*module.parameters()], "lr": settings.environment_lr}])

        def step(step: Step) -> dict[str, Tensor]:
            loss = dense(step, here_Rn)
            dense.backward(loss)
            dense.step()
            return {"loss": loss.detach()}

        self._train(step, f"environments.{round_}", settings.environment_epochs)
        return module.trained(dense.state())

    def masks(self, logits: Mapping[int, Tensor], environment: Mapping[int, Tensor], round_: int) -> dict[int, Learned]:
        """One round of mask learning of some representations."""
        settings, here_Rn = self.settings, self._stacked(environment, logits)
        module = Masks(self.frozen, logits, round_)
        dense = self.engine.wrap(module, [{"params": [*module.parameters()], "lr": settings.mask_lr}])

        def step(step: Step) -> dict[str, Tensor]:
            loss, terms = dense(step, here_Rn)
            dense.backward(loss)
            dense.step()
            return terms

        found = self._train(step, f"masks.{round_}", settings.mask_epochs)
        means: dict[int, dict[str, float]] = {r: {} for r in logits}
        for name, mean in found.items():
            r, _, term = name.partition("/")
            means[int(r)][term] = mean
        state = dense.state()
        return {r: (state[f"gates.{r}.logit"].cpu(), means[r]) for r in logits}

    def _train(self, step: Callable[[Step], dict[str, Tensor]], purpose: str, epochs: int) -> dict[str, float]:
        """Take every step of some epochs; means of what they report, over all workers."""
        draws, sums = self.frozen.draws(purpose), Sums()

        def one() -> None:
            sums.add(step(self.frozen.step(draws)))
            draws.advance()

        why_not = "several workers train together" if self.engine.world > 1 else ""
        stepper = Stepper(one, self.engine.device, why_not)
        for epoch in range(epochs):
            draws.seek(epoch, 0)
            for _ in range(draws.steps):
                self._heed()
                stepper()
        totals = self.engine.totals(sums.read())
        return {name: total / max(epochs * draws.steps, 1) for name, total in totals.items()}

    def assign(self, models: Models, part: tuple[int, int] = (0, 1)) -> Tensor:
        """The best environment of each interaction, int16 [n]; 0 outside a part of all."""
        return assign(self.frozen, self.blocks, models, part)

    def assign_part(self, models: Models, part: tuple[int, int]) -> Tensor:
        """The same of the part alone, in the order of `blocks.interactions(*part)`."""
        return self.assign(models, part)[self.blocks.interactions(*part)]

    def _heed(self) -> None:
        """Raises KeyboardInterrupt when the run was interrupted."""
        if self.interrupted():
            raise KeyboardInterrupt
