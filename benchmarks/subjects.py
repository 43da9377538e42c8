"""What is measured: m3dist's own tasks on a data set, made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from m3dist.config import Config, Fit, ResolvedBackbone, load
from m3dist.data.dataset import Dataset
from m3dist.data.draws import Draws
from m3dist.data.shards import Part
from m3dist.distributed.engine import Engine
from m3dist.evaluation.ranking import Product, Ranking, Scorer
from m3dist.method import environments
from m3dist.method.align import AlignTask
from m3dist.method.assignment import Models
from m3dist.method.backbone import Backbones
from m3dist.method.content import Contents
from m3dist.method.fused import Fused
from m3dist.method.merge import MergeTask, joined, whole
from m3dist.method.trainer import Steps, Trainer
from m3dist.models.gate import Gate
from m3dist.models.ultragcn import Weights
from m3dist.training.context import Context
from m3dist.training.data import DeviceData
from m3dist.training.loop import Task, stepper

STEPS = ("backbone", "align", "merge", "environments", "masks")  # what `Subject.step` takes
_EAGER = "launches are measured one by one"


def configured(values: Sequence[str]) -> Config:
    """A config of these values, under the softmax where they leave the loss to a race."""
    config = load(None, values)
    return config if config.backbone.loss != "auto" else load(None, [*values, "backbone.loss=softmax"])


class Subject:
    """The stages' tasks on one data set, untrained: a step costs the same at the start of training and at its end."""

    def __init__(self, dataset: Dataset, *overrides: str, device: str = "cpu", engine: Engine | None = None):
        self.dataset, self.overrides, self.device = dataset, overrides, device
        self.config = configured(overrides)
        self.context = Context(dataset, self.config, engine or Engine.of(self.config, device=device))
        self.user, self.item = self.data.pairs

    @property
    def data(self) -> DeviceData:
        return self.context.data

    @property
    def resolved(self) -> ResolvedBackbone:
        """The backbone's values."""
        return self.config.backbone.resolved

    @property
    def weights(self) -> Weights:
        return self.data.weights(self.resolved)

    def other(self, *overrides: str) -> Subject:
        """The same data under further overrides."""
        return Subject(self.dataset, *self.overrides, *overrides, device=self.device)

    def part(self, steps: int = 12, *overrides: str) -> Subject:
        """The same under overrides, with rounds of `steps` steps and their interactions alone, drawn at random."""
        each = [f"invariance.{name}={steps}" for name in ("environment_steps", "mask_steps")]
        out = self.other(*each, *overrides)
        n = steps * out.config.invariance.batch_size
        if n < len(out.user):
            kept = torch.randperm(len(out.user), generator=torch.Generator().manual_seed(0))[:n].sort().values
            kept = kept.to(out.user.device)
            out.user, out.item = out.user[kept], out.item[kept]
        return out

    @cached_property
    def backbone(self) -> MergeTask:
        """One member on the concatenated features: naive UltraGCN."""
        return MergeTask(self.context, whole(self.context))

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Users' rows and items' of `backbone`, whose products are its scores."""
        return factors(self.backbone)

    @property
    def single(self) -> Scorer:
        """`backbone` as it is, as a scorer."""
        product = Product(*self.factors)
        return lambda user_u, mask: (product(user_u), None)

    def lists(self, score: Scorer) -> Ranking:
        """Validation lists by a scorer."""
        return self.context.evaluator.ranking(score, max(self.config.evaluation.k), "val")

    @cached_property
    def ids(self) -> MergeTask:
        """One member on ids alone, as matrix factorisation has it."""
        return MergeTask(self.context, Contents.beside([None]))

    @cached_property
    def align(self) -> AlignTask:
        return AlignTask(self.context)

    @cached_property
    def aligned(self) -> dict[str, Tensor]:
        """What stage 1 leaves."""
        return self.align.output({}).tensors

    @cached_property
    def representations(self) -> list[Tensor]:
        return [self.aligned[f"representation.{r}"] for r in range(len(self.dataset.modalities) + 1)]

    @cached_property
    def merge(self) -> MergeTask:
        return MergeTask(self.context, joined(self.context, "one", self.representations))

    @cached_property
    def fused(self) -> Fused:
        """The members of `merge` as one scorer, weighted by entropies that are taken as they are."""
        learned = {f"entropy_{name}": torch.ones((), device=self.data.device) for name in ("temperature", "strength")}
        return Fused.of(self.merge.ranked(self.merge.matrices()), "entropy", learned)

    @cached_property
    def trainer(self) -> Trainer:
        """Stage 2 in this process."""
        tensors = environments.Frozen.tensors(self.dataset, self.aligned)
        part = torch.tensor(Part.even(len(self.user), 0, 1).numbers)
        return Trainer(tensors | {"user": self.user, "item": self.item, "part": part}, self.device, self.config)

    def environments(self, split: list[Tensor]) -> list[Tensor]:
        """Train the environments of every representation at half its mask, and give each interaction its best one."""
        names, scale = self._names, self._scale
        trained = self.trainer.environments(names, scale, dict(enumerate(split)), 0)
        return [self.trainer.assign(Models(r, scale[r], names[r], trained[r])) for r in names]

    @property
    def _names(self) -> dict[int, range]:
        return dict.fromkeys(range(len(self.representations)), range(self.config.invariance.environments))

    @property
    def _scale(self) -> dict[int, Tensor]:
        return {
            r: torch.full((x.shape[1],), 0.5, device=self.data.device) for r, x in enumerate(self.representations)
        }  # fmt: skip

    def masks(self, split: list[Tensor]) -> None:
        """One round of mask learning for every representation."""
        self.trainer.masks(self._logits, dict(enumerate(split)), 0)

    @property
    def _logits(self) -> dict[int, Tensor]:
        settings = self.config.invariance
        return {
            r: Gate(x.shape[1], settings.gate, settings.init).logit.detach() for r, x in enumerate(self.representations)
        }

    def split(self, environments: int | None = None) -> list[Tensor]:
        """A random environment for every interaction, per representation."""
        E, n = environments or self.config.invariance.environments, len(self.user)
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(E, (n,), generator=generator) for _ in self.representations]

    def step(self, kind: str, captured: bool = True) -> Callable[[], object]:
        """A call that takes the next step of one of `STEPS`, of all representations in stage 2.

        captured: whether a GPU replays a graph of a step, as in training.
        """
        if kind in ("backbone", "align", "merge"):
            settings = self.config.align if kind == "align" else self.config.merge
            return stepping(getattr(self, kind), settings, captured)
        split = dict(enumerate(self.split()))
        if kind == "environments":
            return _repeating(self.trainer.environment_steps(self._names, self._scale, split, 0)[0], captured)
        return _repeating(self.trainer.mask_steps(self._logits, split, 1)[0], captured)


def factors(task: MergeTask) -> tuple[Tensor, Tensor]:
    """Rows of all users and items whose products are the scores of a task's first member."""
    return task.members.users()[0], task.matrices()["0.matrix"]


def touched(draws: Draws, backbones: Backbones, steps: int = 5) -> tuple[int, int]:
    """Distinct users and items of a step, on average over the first ones of an epoch."""
    draws.seek(0, 0)
    steps = min(steps, draws.steps)
    count = torch.zeros(2, dtype=torch.int64)
    for _ in range(steps):
        sampled = backbones.sample(draws.draw())
        count += torch.tensor([int((x.slots.ids_R < x.table.n).sum()) for x in (sampled.user, sampled.item)])
        draws.advance()
    users, items = (count // steps).tolist()
    return users, items


def stepping(task: Task, settings: Fit, captured: bool = True) -> Callable[[], object]:
    """A call that takes the next step as a fit does, drawing included; one epoch after another, without end."""
    draws, take, epoch, left = task.draws, stepper(task, settings), -1, 0
    epochs = settings.length(len(draws.pairs.user))
    if not captured:
        take.why_not = _EAGER

    def one() -> None:
        nonlocal epoch, left
        if not left:
            epoch, left = (epoch + 1) % epochs, draws.steps
            draws.seek(epoch, 0)
        take()
        left -= 1

    return one


def _repeating(steps: Steps, captured: bool) -> Callable[[], object]:
    """A round's steps one after another, from the first one again when they are over."""
    taken = 0
    if not captured:
        steps._stepper.why_not = _EAGER

    def one() -> None:
        nonlocal taken
        if taken == steps.count:
            taken = 0
        if taken % steps.draws.steps == 0:
            steps.draws.seek(taken // steps.draws.steps, 0)
        steps()
        taken += 1

    return one
