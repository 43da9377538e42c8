"""What one process computes in a round of stage 2: environment models, assignments and masks of some representations.

A process that has several representations takes them through its batches together. What it finds of each depends on
that one's arguments alone, bit for bit, so it does not matter which process finds it.

Shapes: n interactions, g environments, c content width of users, D representation width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from m3dist.config import Config
from m3dist.distributed.engine import Dense, Engine
from m3dist.method.assignment import Blocks, Models, assign
from m3dist.method.environments import EnvironmentModels, Frozen, Masks, Step, Trained
from m3dist.training.divergence import suspect
from m3dist.training.steps import Stepper, Sums

Learned = tuple[Tensor, dict[str, float]]  # a gate's new logits [D], and the means of its terms


class Steps:
    """`count` steps over the training interactions of what one purpose trains, whose learning rate falls to 0."""

    def __init__(self, purpose: tuple[Frozen, str, int], step: Callable[[Step], dict[str, Tensor]], dense: Dense):
        frozen, name, self.count = purpose
        self.engine, self.dense, self.sums = frozen.engine, dense, Sums()
        self.draws = draws = frozen.draws(name)
        draws.seek(0, 0)

        count, sums = self.count, self.sums

        def one() -> None:  # which does not hold these steps, so that their memory goes with them
            dense.scale(1 - draws.number / count, 1 - draws.number_here / count)
            sums.add(step(frozen.step(draws)))
            draws.advance()

        self._stepper = Stepper(one, self.engine, dense.why_not)

    def __call__(self) -> None:
        """The next step."""
        self._stepper()

    def take(self, interrupted: Callable[[], bool]) -> dict[str, float]:
        """Every step; the means of what they report, over all workers.

        Raises KeyboardInterrupt when it is interrupted: a round of large data is long.
        """
        for number in range(self.count):
            if interrupted():
                raise KeyboardInterrupt
            if number % self.draws.steps == 0:
                self.draws.seek(number // self.draws.steps, 0)
            self()
        totals = self.engine.totals(self.sums.read())
        self._stepper.close()
        return {name: total / self.count for name, total in totals.items()}


def check(terms: Mapping[str, float], round_: int, config: Config) -> None:
    """Raises FloatingPointError, which names the likeliest cause, where a mean of a round's steps is not finite."""
    if bad := [value for value in terms.values() if not math.isfinite(value)]:
        cause = suspect("invariance", config.invariance, config.align, config.backbone)
        raise FloatingPointError(f"invariance: the loss is {bad[0]} in round {round_}; lower {cause}")


class Trainer:
    """Holds what stage 2 reads. interrupted: asked between steps; a round of large data is long."""

    def __init__(
        self, tensors: dict[str, Tensor], device: str | torch.device, config: Config, engine: Engine | None = None
    ):
        self.frozen = Frozen(tensors, device, config, engine)
        self.engine, self.config, self.settings = self.frozen.engine, config, config.invariance
        self.blocks = Blocks.of(self.frozen.item)
        self.interrupted: Callable[[], bool] = lambda: False

    def on_device(self, tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {r: x.to(self.engine.device) for r, x in tensors.items()}

    def _stacked(self, environment: Mapping[int, Tensor], rs: Iterable[int]) -> Tensor:
        """Every interaction's environment under these representations, int8 or int16 [R, n]."""
        return torch.stack([environment[r].to(self.engine.device) for r in rs])

    def environment_steps(
        self, names: Mapping[int, Sequence[int]], psi: Mapping[int, Tensor], environment: Mapping[int, Tensor],
        round_: int,
    ) -> tuple[Steps, EnvironmentModels]:  # fmt: skip
        """Steps of the models of the named environments of each representation, and the models.

        psi: 1 - m of every representation, [D]. environment: of every interaction, [n].
        """
        here_Rn = self._stacked(environment, names)
        module = EnvironmentModels(self.frozen, names, self.on_device(psi), round_)
        dense = self.engine.wrap(module, [{"params": [*module.parameters()], "lr": self.settings.environment_lr}])

        def step(step: Step) -> dict[str, Tensor]:
            loss = dense(step, here_Rn)
            dense.backward(loss)
            dense.step()
            return {"loss": loss.detach()}

        return Steps((self.frozen, f"environments.{round_}", self.settings.environment_steps), step, dense), module

    def mask_steps(
        self, logits: Mapping[int, Tensor], environment: Mapping[int, Tensor], round_: int
    ) -> tuple[Steps, Masks]:
        """Steps of the masks of some representations, and the masks."""
        here_Rn = self._stacked(environment, logits)
        module = Masks(self.frozen, logits, round_)
        gates, settings = [*module.gates.parameters()], self.settings
        projections = [x for name, x in module.named_parameters() if not name.startswith("gates.")]
        rates = (settings.mask_lr, settings.projection_lr)
        groups = [{"params": x, "lr": lr} for x, lr in zip((gates, projections), rates, strict=True)]
        dense = self.engine.wrap(module, groups)

        def step(step: Step) -> dict[str, Tensor]:
            loss, terms = dense(step, here_Rn)
            dense.backward(loss)
            dense.step()
            return terms

        return Steps((self.frozen, f"masks.{round_}", self.settings.mask_steps), step, dense), module

    def environments(
        self, names: Mapping[int, Sequence[int]], psi: Mapping[int, Tensor], environment: Mapping[int, Tensor],
        round_: int,
    ) -> dict[int, Trained]:  # fmt: skip
        """W [g, c, D] and b [g, c] of the trained models of the named environments of each representation."""
        steps, module = self.environment_steps(names, psi, environment, round_)
        check(steps.take(self.interrupted), round_, self.config)
        return module.trained(steps.dense.state())

    def masks(self, logits: Mapping[int, Tensor], environment: Mapping[int, Tensor], round_: int) -> dict[int, Learned]:
        """One round of mask learning of some representations."""
        steps, _ = self.mask_steps(logits, environment, round_)
        means: dict[int, dict[str, float]] = {r: {} for r in logits}
        found = steps.take(self.interrupted)
        check(found, round_, self.config)
        for name, mean in found.items():
            r, _, term = name.partition("/")
            means[int(r)][term] = mean
        state = steps.dense.state()
        return {r: (state[f"gates.{r}.logit"].cpu(), means[r]) for r in logits}

    def assign(self, models: Models, part: tuple[int, int] = (0, 1)) -> Tensor:
        """The best environment of each interaction, int8 or int16 [n]; 0 outside a part of all."""
        return assign(self.frozen, self.blocks, models, part)

    def assign_part(self, models: Models, part: tuple[int, int]) -> Tensor:
        """The same of the part alone, in the order of `blocks.interactions(*part)`."""
        return self.assign(models, part)[self.blocks.interactions(*part)]
