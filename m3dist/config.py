"""Every value a run depends on: frozen pydantic models, one section per stage, unknown keys refused.

A config file is YAML; `key=value` on the command line overrides it. All problems of a config are reported
together, and an unknown key names the nearest known one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from omegaconf import OmegaConf
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from m3dist.cluster.settings import Cluster
from m3dist.method import registry
from m3dist.method.fusions import FUSIONS
from m3dist.section import Section
from m3dist.values import ConfigError, read, read_own

__all__ = ["Config", "ConfigError", "load", "load_own", "read", "read_own", "validate"]


class Fit(Section):
    """How one training loop runs."""

    epochs: NonNegativeInt | Literal["auto"] = "auto"  # auto: 10, or what makes 1,500 steps where that is more
    batch_size: PositiveInt = 2048  # interactions of the global batch, over all workers
    lr: PositiveFloat = 2e-2
    decay: Literal["linear", "none"] = "linear"  # of lr: to 0 at the end of the last epoch, or constant
    patience: NonNegativeInt = 5  # evaluations without a better validation metric; 0 never stops early
    evaluate_every: PositiveInt | Literal["auto"] = "auto"  # epochs; auto: a tenth of them all

    def length(self, interactions: int) -> int:
        """Epochs on so many training interactions."""
        if self.epochs != "auto":
            return self.epochs
        return max(10, -(-1500 // -(-interactions // self.batch_size)))

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
    l2: NonNegativeFloat = 3e-2  # on the rows of a step, per sample
    init_std: PositiveFloat = 0.1
    content_l2: NonNegativeFloat = 3e-2  # on the projected content and the users' content embeddings, per sample
    projection_l2: NonNegativeFloat | None = None  # on ||W||^2; ultragcn: 1e-2, without which W undoes a mask
    projection_rate: PositiveFloat | None = None  # learning rate of W, b, in those of the tables; softmax: 0.1

    @pydantic.model_validator(mode="before")
    @classmethod
    def _ungrouped(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("sampling") == "per_positive":
            return {"groups": 1, **values}  # the default is for shared negatives
        return values

    @pydantic.model_validator(mode="after")
    def _grouped(self) -> Backbone:
        if self.groups > 1 and self.sampling == "per_positive":
            raise ValueError("groups share negatives, and with sampling=per_positive none are shared; use groups=1")
        if self.sampling == "per_positive" and self.loss != "ultragcn":
            raise ValueError("sampling: per_positive is for loss=ultragcn; softmax shares negatives")
        return self

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
    projection_l2: NonNegativeFloat
    projection_rate: PositiveFloat

    @property
    def content_columns(self) -> int:
        """Columns of rows that content has for itself."""
        return self.content_dim if self.content == "concat" else 0


_OF_LOSS: dict[str, dict[str, Any]] = {
    "softmax": {"content": "add", "tau": 0.25, "kappa": 0.0, "nu": 0.0, "projection_l2": 1e-3, "projection_rate": 0.1},
    "ultragcn": {
        "content": "concat", "tau": 0.25, "kappa": 1.0, "nu": 0.1, "projection_l2": 1e-2, "projection_rate": 1.0,
    },
}  # fmt: skip


class Race(Section):
    """How long each loss is tried where `backbone.loss` is auto: a fit of its own, learning rate and all."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.2  # of the epochs of stage 3
    steps: PositiveInt = 300  # optimiser steps, where the share has fewer

    def length(self, interactions: int) -> int:
        """One line, of what all losses reached."""
        return 1


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


class Invariance(Section):
    """Stage 2 (eq. 7-10)."""

    environments: PositiveInt = 10  # E
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

    init: Literal["align", "fresh"] = "fresh"  # id embeddings
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


_OURS_IN_DEEPSPEED = {  # keys of DeepSpeed's config that would change what a run computes: what to use instead
    "train_batch_size": "each stage's batch_size",
    "train_micro_batch_size_per_gpu": "each stage's batch_size",
    "gradient_accumulation_steps": "each stage's batch_size",
    "optimizer": "each stage's lr",
    "scheduler": "each stage's decay",
    "fp16": "precision",
    "bf16": "precision",
}


class Config(Section):
    """One run. `m3dist train --print-config` shows it resolved."""

    data: str = "synthetic"  # a prepared data set, or `synthetic`
    out: str = "runs/default"  # the run folder
    seed: NonNegativeInt = 0
    model: str = "m3-invrl"  # ultragcn: one backbone on all features; invrl: on those it masks; or a recommender
    stages: tuple[str, ...] | None = None  # the model's first stages; default: all of them
    artifacts: str | None = None  # finished stages, shared between runs; default: a folder of the run
    workers: NonNegativeInt | tuple[PositiveInt, PositiveInt] = 0  # 0: this process; [min, max]: elastic
    use_gpu: bool | Literal["auto"] = "auto"  # one for each worker; auto: where there are as many
    resources_per_worker: dict[str, PositiveFloat] = Field(default={})  # Ray's names; default: 1 CPU, and 1 GPU if used
    strategy: Literal["ddp", "deepspeed"] = "ddp"
    zero_stage: Literal[0, 1, 2, 3] = 1  # of deepspeed
    deepspeed: dict[str, Any] = Field(default={})  # further values of DeepSpeed's own config
    embeddings: Literal["replicated", "sharded"] = "replicated"  # all rows of tables on every worker, or its part
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"  # of steps; auto: tf32 on GPUs, float32 on CPUs
    actors: NonNegativeInt = 0  # Ray actors that train environment models and masks; 0: in turn in this process
    actor_resources: dict[str, PositiveFloat] = Field(default={})  # of each; default: 1 CPU
    autoscaling: bool = False  # the cluster can grow: wait for workers instead of refusing
    report_to: tuple[Literal["mlflow", "wandb"], ...] = ()  # experiment trackers, beside metrics.jsonl and TensorBoard
    max_failures: NonNegativeInt = 3  # of workers, per stage, before the run gives up
    checkpoint: Checkpoint = Checkpoint()
    optimizer: Literal["lazy", "dense"] = "lazy"  # do table rows outside a step keep still, or follow Adam's moments
    backbone: Backbone = Backbone()
    race: Race = Race()
    align: Align = Align()
    invariance: Invariance = Invariance()
    merge: Merge = Merge()
    baseline: Baseline = Baseline()
    evaluation: Evaluation = Evaluation()
    synthetic: Synthetic = Synthetic()
    cluster: Cluster = Cluster()  # where and how a run is carried out; changes no result

    @pydantic.field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        registry.model(model)
        return model

    @pydantic.field_validator("data", "out", "artifacts", mode="before")
    @classmethod
    def _folder(cls, path: Any) -> Any:
        """~ as the shell has it; YAML reads a lone ~ as None."""
        return str(Path(path).expanduser()) if isinstance(path, str) and path.startswith("~") else path

    @pydantic.field_validator("out", "artifacts")
    @classmethod
    def _below(cls, path: str | None) -> str | None:
        if path is not None and "://" not in path and Path(path).resolve() in (Path("/"), Path.home().resolve()):
            raise ValueError("expected a folder of its own, such as runs/mine")
        return path

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Config:
        spec = registry.model(self.model)
        stages = tuple(stage.name for stage in spec.planned(self))
        if self.stages is not None and (not self.stages or self.stages != stages[: len(self.stages)]):
            raise ValueError(f"stages: a stage needs the ones before it, in the order {', '.join(stages)}")
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers: expected [min, max] with min <= max, got {list(self.workers)}")
        for key, instead in _OURS_IN_DEEPSPEED.items():
            if key in self.deepspeed:
                raise ValueError(f"deepspeed.{key}: is set by m3dist; use {instead}")
        if "stage" in dict(self.deepspeed.get("zero_optimization", {})):
            raise ValueError("deepspeed.zero_optimization.stage: is set by m3dist; use zero_stage")
        if self.deepspeed and self.strategy != "deepspeed":
            raise ValueError("deepspeed: values are given but strategy is ddp; set strategy=deepspeed or remove them")
        if self.embeddings == "sharded" and spec.members == "nodes":
            raise ValueError(
                f"embeddings: {self.model} trains whole tables on every worker; use replicated, or strategy=deepspeed "
                f"zero_stage=3, which shards them with all other parameters"
            )
        name, _, k = self.evaluation.metric.partition("@")
        if name not in METRICS or not k.isdigit():
            raise ValueError(f"evaluation.metric: expected NAME@K with NAME one of {', '.join(METRICS)}")
        if int(k) not in self.evaluation.k:
            raise ValueError(f"evaluation.metric is at {k}, which evaluation.k {list(self.evaluation.k)} lacks")
        return self

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages that a run trains, in order."""
        return self.stages or tuple(stage.name for stage in registry.model(self.model).planned(self))


METRICS = ("precision", "recall", "ndcg", "hit", "mrr", "ndcg_hits", "coverage")


def load(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML config, apply `key=value` overrides and validate.

    Raises ConfigError naming the file, every bad key and what was expected.
    """
    return validate(read(path, overrides), str(path) if path is not None else "command line")


def load_own(path: str | Path, name: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a run folder, which may be a stranger's: as `load`, but its values are what they are.

    name: of the file, for messages.
    """
    return validate(read_own(path, name, overrides), name)


def validate(raw: dict[str, Any], source: str = "config", model: type[Section] = Config) -> Any:
    """Build `model` from plain values; ConfigError lists all problems at once."""
    try:
        return model.model_validate(raw)
    except pydantic.ValidationError as error:
        lines = [_explain(problem, model) for problem in error.errors()]
        raise ConfigError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _explain(problem: Any, model: type[Section]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = known_keys(model)
        near = difflib.get_close_matches(where, known, n=1, cutoff=0.5) or difflib.get_close_matches(
            where.rsplit(".", 1)[-1], [key.rsplit(".", 1)[-1] for key in known], n=1
        )
        full = next((key for key in known if near and (key == near[0] or key.endswith("." + near[0]))), None)
        return f"{where}: unknown key" + (f"; did you mean {full}?" if full else "")
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f", got {given!r}"
    return f"{where}: {message}{shown}" if where else message


def known_keys(model: type[Section] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of a config, sections included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def value(config: Config, key: str) -> Any:
    """The plain value of a dotted key; of a section, all of its values."""
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found.model_dump() if isinstance(found, Section) else found


def to_yaml(config: Section) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def digest(value: Any) -> str:
    """A short hash of plain values; the key of artifacts."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
