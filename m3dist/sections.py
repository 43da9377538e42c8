"""The sections of a config: one per stage, evaluation, planted data and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from m3dist.method.fusions import FUSIONS
from m3dist.section import Section


class Fit(Section):
    """How one training loop runs."""

    least: ClassVar[int] = 10  # epochs of `auto`

    epochs: NonNegativeInt | Literal["auto"] = "auto"  # auto: 10 (merge: 20), or 1,500 steps where these are more
    batch_size: PositiveInt = 2048  # interactions of the global batch, over all workers
    lr: PositiveFloat = 2e-2
    decay: Literal["linear", "none"] = "linear"  # of lr: to 0 at the end of the last epoch, or constant
    patience: NonNegativeInt = 0  # evaluations without a better validation metric; 0, as lr falls, never stops early
    level: NonNegativeFloat = (
        0.03  # of epochs whose validation metrics are within this share of the best, the last is kept
    )
    evaluate_every: PositiveInt | Literal["auto"] = "auto"  # epochs; auto: a tenth of them all

    def length(self, interactions: int) -> int:
        """Epochs on so many training interactions."""
        if self.epochs != "auto":
            return self.epochs
        return max(self.least, -(-1500 // -(-interactions // self.batch_size)))

    def interval(self, interactions: int) -> int:
        """Epochs from one evaluation to the next."""
        return max(1, self.length(interactions) // 10) if self.evaluate_every == "auto" else self.evaluate_every


class Backbone(Section):
    """The model behind every recommender of the method: id embeddings, projected content, and their loss.

    ultragcn: the paper's loss (Mao et al., CIKM 2021); kappa and nu weigh L_C and L_I. softmax: cosines over a
    temperature, each positive among the negatives of its group; L_C and L_I beside it where kappa or nu are given.
    auto: the better of both on validation data, after a short race of each. What is None follows the loss, see
    `resolved`.
    """

    loss: Literal["auto", "softmax", "ultragcn"] = "auto"
    tau: PositiveFloat | None = None  # temperature of softmax; default: found in the race, or 0.25 without one
    content: Literal["add", "concat"] | None = None  # to ids' embeddings, or beside them; softmax: add
    dim: PositiveInt = 64  # width of the id embeddings
    content_dim: PositiveInt = 64  # width that content is projected to where it stands beside ids
    pool: Literal["seen", "all"] = "seen"  # negatives: items with training interactions, or all; all without content
    sampling: Literal["shared", "per_positive"] = "shared"
    negatives: PositiveInt = 128  # per group when shared, per positive otherwise
    groups: PositiveInt = 16  # when shared: equal parts of a global batch, each with negatives of its own
    negative_weight: PositiveFloat = 10.0  # weight of the mean over negatives beside the mean over positives
    w1: NonNegativeFloat = 1.0  # base weight of a positive
    w2: NonNegativeFloat = 1.0  # weight of kappa * beta_ui
    w3: NonNegativeFloat = 1.0  # base weight of a negative
    w4: NonNegativeFloat = 1.0  # weight of kappa * beta_uj
    kappa: NonNegativeFloat | None = None  # ultragcn: 1
    nu: NonNegativeFloat | None = None  # ultragcn: 0.1
    neighbours: PositiveInt = 10  # of each item in the item-item graph
    neighbour_samples: PositiveInt = 1  # of them drawn in a step, scaled to the sum over all
    l2: NonNegativeFloat | None = None  # on the rows of a step, per sample; softmax: 5e-2, ultragcn: 3e-2
    id_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None  # share of ids that a step leaves out; None: raced, 0
    init_std: PositiveFloat = 0.1
    content_l2: NonNegativeFloat = 3e-2  # on the projected content and the users' content embeddings, per sample
    projection_l2: NonNegativeFloat | None = None  # on ||W||^2; ultragcn: 1e-2, without which W undoes a mask
    projection_rate: PositiveFloat | None = None  # learning rate of W, b, in those of the tables; softmax: 0.1

    @pydantic.model_validator(mode="before")
    @classmethod
    def _ungrouped(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("sampling") == "per_positive":
            return {"groups": 1, "loss": "ultragcn", **values}  # defaults are for shared negatives
        return values

    @pydantic.model_validator(mode="after")
    def _grouped(self) -> Backbone:
        if self.groups > 1 and self.sampling == "per_positive":
            raise ValueError("groups share negatives, and with sampling=per_positive none are shared; use groups=1")
        if self.sampling == "per_positive" and self.loss != "ultragcn":
            raise ValueError("sampling: per_positive is for loss=ultragcn; softmax shares negatives")
        return self

    @property
    def reads_graph(self) -> bool:
        """Whether its loss, or one that is raced, reads the item-item graph."""
        return self.loss == "auto" or bool(self.resolved.nu)

    @property
    def resolved(self) -> ResolvedBackbone:
        """The same with every value that follows the loss. Raises ValueError for `auto`, which a race decides."""
        if isinstance(self, ResolvedBackbone):
            return self
        if self.loss == "auto":
            raise ValueError("backbone.loss: auto is decided by the stage `race`")
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return ResolvedBackbone.model_validate({**_OF_LOSS[self.loss], **given})


class ResolvedBackbone(Backbone):
    """A backbone whose loss is known."""

    loss: Literal["softmax", "ultragcn"]
    tau: PositiveFloat
    content: Literal["add", "concat"]
    kappa: NonNegativeFloat
    nu: NonNegativeFloat
    l2: NonNegativeFloat
    id_dropout: Annotated[float, Field(ge=0, lt=1)]
    projection_l2: NonNegativeFloat
    projection_rate: PositiveFloat

    @property
    def content_columns(self) -> int:
        """Columns of rows that content has for itself."""
        return self.content_dim if self.content == "concat" else 0


_OF_LOSS: dict[str, dict[str, Any]] = {
    "softmax": {
        "content": "add", "tau": 0.25, "kappa": 0.0, "nu": 0.0, "l2": 5e-2, "id_dropout": 0.0,
        "projection_l2": 1e-3, "projection_rate": 0.1,
    },
    "ultragcn": {
        "content": "concat", "tau": 0.25, "kappa": 1.0, "nu": 0.1, "l2": 3e-2, "id_dropout": 0.0,
        "projection_l2": 1e-2, "projection_rate": 1.0,
    },
}  # fmt: skip


class Graph(Section):
    """The item-item graph, from which UltraGCN's loss takes each item's neighbours; made once for a run."""

    per_user: PositiveInt = 2500  # interactions of a user that count; of more a sample, since the work is their square

    def length(self, interactions: int) -> int:
        """Lines that it logs: none."""
        return 0


class Race(Section):
    """How long each candidate is tried where validation data decide: `backbone.loss` or `merge.masks` is auto."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.15  # of the epochs of stage 3
    steps: PositiveInt = 300  # optimiser steps, where the share has fewer

    def length(self, interactions: int) -> int:
        """One line, of what all losses reached."""
        return 1


class Warm(Section):
    """What a run that starts from another one (`warm_from`) trains: stage 3 alone, with the rows that it takes over."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.15  # of the epochs of stage 3
    lr: PositiveFloat = 0.5  # of the learning rate of stage 3


class Align(Fit):
    """Stage 1 (eq. 2-6)."""

    dim: PositiveInt = 64  # D, width of every representation
    encoder: Literal["linear", "mlp", "identity"] = "identity"  # f_r; identity masks the given features themselves
    shared: Literal["code", "features", "both"] = "features"  # what stands for z_{M+1} in stages 2 and 3
    lambda_com: NonNegativeFloat = 0.1
    lambda_mi: NonNegativeFloat = 0.01
    tau: PositiveFloat = 0.5  # initial; learned as log(tau) unless tau_fixed
    tau_fixed: bool = False
    contrastive_items: PositiveInt = 256  # at most this many distinct items of a batch enter L_com and L_MI
    club_hidden: PositiveInt = 64
    club_lr: PositiveFloat = 1e-3
    encoder_lr: PositiveFloat = 1e-3  # of f, g, k and tau; slow, so that dimensions of z_{M+1} keep their meaning

    def representations(self, given: Sequence[int]) -> list[int]:
        """Widths of v_1..v_M and of the shared representation, of features of these widths."""
        own = list(given) if self.encoder == "identity" else [self.dim] * len(given)
        return [*own, {"code": self.dim, "features": sum(given), "both": self.dim + sum(given)}[self.shared]]


class Invariance(Section):
    """Stage 2 (eq. 7-10)."""

    environments: Annotated[int, Field(ge=1, le=32767)] = 10  # E; an interaction's is kept in 16 bits
    rounds: NonNegativeInt = 5  # T; 0 keeps every dimension (all masks one)
    gate: Literal["sigmoid", "hard_sigmoid", "softmax"] = "sigmoid"
    gate_noise: NonNegativeFloat = 0.1  # std of the noise of hard_sigmoid while training
    init: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of every mask entry
    gamma: NonNegativeFloat = 1.0  # weight of the penalty on dimensions in which environments differ
    gamma_warmup: bool = True  # grow it from 0 in the first round to its value in the last
    effect: PositiveFloat = 0.02  # f^2 of environments at which a dimension pays half of the penalty
    rho: NonNegativeFloat = 0.01  # weight of the masks' distance from 1/2
    environment_steps: PositiveInt = 64  # per round, of each environment model
    environment_lr: PositiveFloat = 1e-2
    mask_steps: PositiveInt = 192  # per round; masks start anew in each
    mask_lr: PositiveFloat = 3e-2
    projection_lr: PositiveFloat = 1e-2  # of W beside a mask
    projection_l2: NonNegativeFloat = 1e-3  # on ||W||^2 of environments and masks: what gives a mask its scale
    batch_size: PositiveInt = 1024
    negatives: PositiveInt = 256  # shared by a step of this stage
    moved: Annotated[float, Field(ge=0, le=1)] = 0.01  # stop when fewer interactions than this share move
    empty: Literal["reseed", "drop"] = "reseed"

    def length(self, interactions: int) -> int:
        """Rounds."""
        return self.rounds


class Merge(Fit):
    """Stage 3 (eq. 11-15)."""

    least: ClassVar[int] = 20

    init: Literal["align", "fresh"] = "fresh"  # id embeddings
    masks: Literal["auto", "learned", "one", "shuffled"] = "auto"  # auto: learned or one, by validation data
    losses: Literal["auto", "one"] = (
        "auto"  # auto: members of both raced losses, where these are close; one: the winner
    )
    fusion: str = "entropy"  # or equal, loss, attention, or one that another package adds

    @pydantic.field_validator("fusion")
    @classmethod
    def _known(cls, fusion: str) -> str:
        return FUSIONS.check(fusion)


class Baseline(Fit):
    """Every recommender of one stage."""

    epochs: NonNegativeInt | Literal["auto"] = 20
    evaluate_every: PositiveInt | Literal["auto"] = 2
    batch_size: PositiveInt = 4096  # interactions; where a sample is a user's history, so many users as hold them
    dim: PositiveInt = 64
    l2: NonNegativeFloat = 1e-3  # on the rows of a step, per sample
    sampling: Literal["shared", "per_positive"] = "shared"
    negatives: PositiveInt = 256  # per global batch when shared, per positive otherwise
    options: dict[str, Any] = Field(default={})  # further settings of one recommender


class Evaluation(Section):
    k: tuple[PositiveInt, ...] = (10, 20)
    metric: str = "ndcg@10"  # the validation metric that selects
    block: PositiveInt | Literal["auto"] = "auto"  # users ranked at once: 256 on a CPU, on a GPU by its free memory


class Synthetic(Section):
    """The planted data that `data: synthetic` makes."""

    users: PositiveInt = 1000
    items: PositiveInt = 1000
    environments: PositiveInt = 4
    modalities: PositiveInt = 3
    invariant: PositiveInt = 4  # planted dimensions per modality
    spurious: PositiveInt = 4
    interactions: PositiveInt = 40  # per user, over all splits


class Checkpoint(Section):
    """Checkpoints inside a stage; a stage that is done keeps only its artifact."""

    every_epochs: NonNegativeInt = 1  # 0: by time alone
    every_minutes: NonNegativeFloat = 10.0  # between steps too; 0: by epochs alone
    keep: PositiveInt = 2  # the latest ones
