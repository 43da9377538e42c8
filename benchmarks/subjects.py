"""What is measured: m3dist's own tasks on a data set, made when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from m3dist.config import Config, Fit, load
from m3dist.data.dataset import Dataset
from m3dist.data.draws import Draws
from m3dist.distributed.engine import Engine
from m3dist.evaluation.ranking import Product, Ranking
from m3dist.method import environments
from m3dist.method.align import AlignTask
from m3dist.method.assignment import Models
from m3dist.method.backbone import Backbones
from m3dist.method.merge import Fused, MergeTask
from m3dist.method.trainer import Trainer
from m3dist.models.gate import Gate
from m3dist.models.ultragcn import Weights
from m3dist.training.context import Context
from m3dist.training.data import DeviceData
from m3dist.training.loop import Task, stepper


class Subject:
    """The stages' tasks on one data set, untrained: a step costs the same at the start of training and at its end."""

    def __init__(self, dataset: Dataset, *overrides: str, device: str = "cpu"):
        self.dataset, self.overrides, self.device = dataset, overrides, device
        self.config: Config = load(None, overrides)
        self.context = Context(dataset, self.config, Engine.of(self.config, device=device))
        self.user, self.item = self.data.pairs

    @property
    def data(self) -> DeviceData:
        return self.context.data

    @property
    def weights(self) -> Weights:
        return self.data.weights(self.config.backbone)

    def other(self, *overrides: str) -> Subject:
        """The same data under further overrides."""
        return Subject(self.dataset, *self.overrides, *overrides, device=self.device)

    def part(self, steps: int = 12, *overrides: str) -> Subject:
        """The same under overrides, with the interactions of `steps` steps of stage 2 alone, drawn at random."""
        out = self.other(*overrides)
        n = steps * out.config.invariance.batch_size
        if n < len(out.user):
            kept = torch.randperm(len(out.user), generator=torch.Generator().manual_seed(0))[:n].sort().values
            kept = kept.to(out.user.device)
            out.user, out.item = out.user[kept], out.item[kept]
        return out

    @cached_property
    def backbone(self) -> MergeTask:
        """One member on the concatenated features: naive UltraGCN."""
        return MergeTask(self.context, [self.data.all_features])

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Users' rows and items' of `backbone`, whose products are its scores."""
        return self.backbone.members.user.weight[0], self.backbone.matrices()["0.matrix"]

    def lists(self, user_Ud: Tensor, item_Id: Tensor) -> Ranking:
        """Validation lists by products of these rows."""
        product = Product(user_Ud, item_Id)
        return self.context.evaluator.ranking(
            lambda user_u, mask: (product(user_u), None), max(self.config.evaluation.k), "val"
        )

    @cached_property
    def ids(self) -> MergeTask:
        """One member on ids alone, as matrix factorisation has it."""
        return MergeTask(self.context, [None])

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
        *specific, common = self.representations
        return MergeTask(self.context, [torch.cat([v, common], dim=1) for v in specific])

    @cached_property
    def fused(self) -> Fused:
        return self.merge.fused(self.config.merge.fusion, self.merge.matrices())

    @cached_property
    def trainer(self) -> Trainer:
        """Stage 2 in this process."""
        tensors = environments.Frozen.tensors(self.dataset, self.aligned)
        return Trainer(tensors | {"user": self.user, "item": self.item}, self.device, self.config)

    def environments(self, split: list[Tensor]) -> list[Tensor]:
        """Train the environments of every representation at half its mask, and give each interaction its best one."""
        names, xs = range(self.config.invariance.environments), dict(enumerate(self.representations))
        scale = {r: torch.full((x.shape[1],), 0.5) for r, x in xs.items()}
        trained = self.trainer.environments(dict.fromkeys(xs, names), scale, dict(enumerate(split)), 0)
        return [self.trainer.assign(Models(r, scale[r], names, trained[r])) for r in xs]

    def masks(self, split: list[Tensor]) -> None:
        """One round of mask learning for every representation."""
        settings = self.config.invariance
        logits = {
            r: Gate(x.shape[1], settings.gate, settings.init).logit.detach() for r, x in enumerate(self.representations)
        }
        self.trainer.masks(logits, dict(enumerate(split)), 0)

    def split(self, environments: int | None = None) -> list[Tensor]:
        """A random environment for every interaction, per representation."""
        E, n = environments or self.config.invariance.environments, len(self.user)
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(E, (n,), generator=generator) for _ in self.representations]


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


def stepping(task: Task, settings: Fit) -> Callable[[], object]:
    """A call that takes the next step as a fit does, drawing included; one epoch after another, without end."""
    draws, take, epoch, left = task.draws, stepper(task, settings), -1, 0

    def one() -> None:
        nonlocal epoch, left
        if not left:
            epoch, left = (epoch + 1) % settings.epochs, draws.steps
            draws.seek(epoch, 0)
        take()
        left -= 1

    return one
