"""What is measured: m3dist's own tasks on a data set, made when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import count

import torch
from torch import Tensor

from m3dist.config import Config, load
from m3dist.data.dataset import Dataset
from m3dist.data.sampling import Batch, Draws, Sampler
from m3dist.evaluation.ranking import Product, Ranking
from m3dist.method import environments
from m3dist.method.align import AlignTask
from m3dist.method.assignment import Models
from m3dist.method.backbone import Rows
from m3dist.method.merge import Fused, MergeTask
from m3dist.method.trainer import Trainer
from m3dist.models.gate import Gate
from m3dist.models.ultragcn import Weights
from m3dist.training.context import Context
from m3dist.training.data import DeviceData


class Subject:
    """The stages' tasks on one data set, untrained: a step costs the same at the start of training and at its end."""

    def __init__(self, dataset: Dataset, *overrides: str):
        self.dataset, self.overrides = dataset, overrides
        self.config: Config = load(None, overrides)
        self.context = Context(dataset, self.config)
        self.user, self.item = self.data.pairs

    @property
    def data(self) -> DeviceData:
        return self.context.data

    @property
    def weights(self) -> Weights:
        return self.data.weights(self.config.backbone)

    def other(self, *overrides: str) -> Subject:
        """The same data under further overrides."""
        return Subject(self.dataset, *self.overrides, *overrides)

    def part(self, steps: int = 12, *overrides: str) -> Subject:
        """The same under overrides, with the interactions of `steps` steps of stage 2 alone, drawn at random."""
        out = self.other(*overrides)
        n = steps * out.config.invariance.batch_size
        if n < len(out.user):
            kept = torch.randperm(len(out.user), generator=torch.Generator().manual_seed(0))[:n].sort().values
            out.user, out.item = out.user[kept], out.item[kept]
        return out

    def sampler(self, batch_size: int, draws: Draws, purpose: str) -> Sampler:
        """Global steps over the interactions."""
        return Sampler((self.user, self.item), self.data.n_items, batch_size, draws, (self.config.seed, purpose))

    @cached_property
    def backbone(self) -> MergeTask:
        """One member on the concatenated features: naive UltraGCN."""
        return MergeTask(self.context, [self.data.all_features])

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Users' rows and items' of `backbone`, whose products are its scores."""
        return self.backbone.members[0].user.weight, self.backbone.matrices()["0.matrix"]

    def lists(self, user_Ud: Tensor, item_Id: Tensor) -> Ranking:
        """Validation lists by products of these rows."""
        product, settings = Product(user_Ud, item_Id), self.config.evaluation
        seen = self.context.evaluator.seen("val")
        return Ranking(lambda user_u: (product(user_u), None), seen, max(settings.k), settings.block)

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
        return Trainer(tensors | {"user": self.user, "item": self.item}, "cpu", self.config)

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

    def touched(self, sampler: Sampler, steps: int = 5) -> tuple[int, int]:
        """Distinct users and items of a step, on average."""
        rows = [Rows(self.data, self.config.backbone, sampler(0, step % sampler.steps)) for step in range(steps)]
        return sum(len(r.user.ids_R) for r in rows) // steps, sum(len(r.item.ids_R) for r in rows) // steps


def stepping(step: Callable[[Batch], object], sampler: Sampler) -> Callable[[], object]:
    """A call that takes the next step, sampling included."""
    number = count()

    def one() -> object:
        epoch, at = divmod(next(number), sampler.steps)
        return step(sampler(epoch, at))

    return one
