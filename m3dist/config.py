"""Every value a run depends on: frozen pydantic models, one section per stage, unknown keys refused.

A config file is YAML; `key=value` on the command line overrides it. All problems of a config are reported
together, and an unknown key names the nearest known one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pydantic
from omegaconf import OmegaConf
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from m3dist import checksums
from m3dist.cluster.settings import Cluster
from m3dist.method import registry
from m3dist.section import Section
from m3dist.sections import (
    Align,
    Backbone,
    Baseline,
    Checkpoint,
    Evaluation,
    Fit,
    Graph,
    Invariance,
    Merge,
    Race,
    ResolvedBackbone,
    Synthetic,
    Warm,
)
from m3dist.values import STAMP, ConfigError, read, read_own

__all__ = [
    "METRICS", "Align", "Backbone", "Baseline", "Checkpoint", "Cluster", "Config", "ConfigError", "Evaluation", "Fit",
    "Graph", "Invariance", "Merge", "Race", "ResolvedBackbone", "Synthetic", "Warm", "digest", "known_keys", "load",
    "load_own", "read", "read_own", "to_own", "to_yaml", "validate", "value",
]  # fmt: skip


_OURS_IN_DEEPSPEED = {  # keys of DeepSpeed's config that would change what a run computes: what to use instead
    "train_batch_size": "each stage's batch_size",
    "train_micro_batch_size_per_gpu": "each stage's batch_size",
    "gradient_accumulation_steps": "each stage's batch_size",
    "optimizer": "each stage's lr",
    "scheduler": "each stage's decay",
    "fp16": "precision",
    "bf16": "precision",
}
_FOLDERS = ("data", "out", "artifacts", "warm_from")  # keys that name one


class Config(Section):
    """One run. `m3dist train --print-config` shows it resolved."""

    data: str = "synthetic"  # a prepared data set, or `synthetic`
    out: str = "runs/default"  # the run folder
    seed: NonNegativeInt = 0
    model: str = "m3-invrl"  # ultragcn: one backbone on all features; invrl: on those it masks; others: docs/study.md
    warm_from: str | None = (
        None  # a finished run on earlier data whose rows, encoders, masks and choices are taken over
    )
    warm: Warm = Warm()
    stages: tuple[str, ...] | None = None  # the model's first stages; default: all of them
    artifacts: str | None = None  # finished stages, shared between runs; default: a folder of the run
    workers: NonNegativeInt | tuple[PositiveInt, PositiveInt] = 0  # 0: this process; [min, max]: elastic
    use_gpu: bool | Literal["auto"] = "auto"  # one for each worker; auto: where there are as many
    resources_per_worker: dict[str, PositiveFloat] = Field(default={})  # of a worker or trial; 1 CPU, 1 GPU if used
    strategy: Literal["ddp", "deepspeed"] = "ddp"
    zero_stage: Literal[0, 1, 2, 3] = 1  # of deepspeed
    deepspeed: dict[str, Any] = Field(default={})  # further values of DeepSpeed's own config
    embeddings: Literal["replicated", "sharded"] = "replicated"  # items' rows on every worker, or its part
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"  # of steps; auto: tf32 on GPUs, float32 on CPUs
    actors: NonNegativeInt = 0  # Ray actors that train environment models and masks; 0: in turn in this process
    actor_resources: dict[str, PositiveFloat] = Field(default={})  # of each; default: 1 CPU
    autoscaling: bool = False  # the cluster can grow: wait for workers instead of refusing
    report_to: tuple[Literal["mlflow", "wandb"], ...] = ()  # experiment trackers, beside metrics.jsonl and TensorBoard
    max_failures: NonNegativeInt = 3  # of workers, per stage, before the run gives up
    checkpoint: Checkpoint = Checkpoint()
    optimizer: Literal["lazy", "dense"] = "lazy"  # do table rows outside a step keep still, or follow Adam's moments
    backbone: Backbone = Backbone()
    graph: Graph = Graph()
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

    @pydantic.field_validator(*_FOLDERS, mode="before")
    @classmethod
    def _folder(cls, path: Any) -> Any:
        """~ as the shell has it; YAML reads a lone ~ as None."""
        return str(Path(path).expanduser()) if isinstance(path, str) and path.startswith("~") else path

    @pydantic.field_validator("out", "artifacts")
    @classmethod
    def _below(cls, path: str | None) -> str | None:
        if path is not None and re.match("[a-z][a-z0-9+.-]+:/(?!/)", path):
            raise ValueError("expected a path, or a URI with two slashes, such as s3://bucket/mine")
        local = None if path is None or ("://" in path and not path.startswith("file:")) else path
        if local is not None and Path(local.removeprefix("file://")).resolve() in (Path("/"), Path.home().resolve()):
            raise ValueError("expected a folder of its own, such as runs/mine")
        return path

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Config:
        spec = registry.model(self.model)
        stages = tuple(stage.name for stage in spec.planned(self))
        if self.stages is not None and (not self.stages or self.stages != stages[: len(self.stages)]):
            raise ValueError(f"stages: a stage needs the ones before it, in the order {', '.join(stages)}")
        if self.warm_from is not None and not spec.final.warm_start:
            able = ", ".join(name for name, other in registry.MODELS.items() if other.final.warm_start)
            raise ValueError(f"warm_from: {self.model} starts from nothing; of {able} a run can start from another one")
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers: expected [min, max] with min <= max, got {list(self.workers)}")
        for key, instead in _OURS_IN_DEEPSPEED.items():
            if key in self.deepspeed:
                raise ValueError(f"deepspeed.{key}: is set by m3dist; use {instead}")
        zero = self.deepspeed.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError(f"deepspeed.zero_optimization: expected a mapping of keys to values, got {zero!r}")
        if "stage" in zero:
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

    def placed(self) -> Config:
        """The same with absolute paths of all folders, for processes that have another current folder."""
        named = {name: getattr(self, name) for name in _FOLDERS if (name, self.data) != ("data", "synthetic")}
        local = {name: path for name, path in named.items() if path and "://" not in path}
        return self.model_copy(update={name: str(Path(path).absolute()) for name, path in local.items()})

    @property
    def fuses_losses(self) -> bool:
        """Whether members may be of both losses that are raced."""
        return self.merge.losses == "auto" and self.backbone.loss == "auto"

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
        lines = [_explain(problem, model) for problem in _alternatives_joined(error.errors(), model)]
        raise ConfigError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _alternatives_joined(problems: list[Any], model: type[Section]) -> list[Any]:
    """Problems with one for each value: pydantic states one for each kind that a value may have, and puts the kind's
    name among the keys. Where a kind fits but for something inside it, that is the problem."""
    kinds = _of_several_kinds(model)
    found: dict[tuple, list[Any]] = {}
    for problem in problems:
        at = next((n for n in range(len(problem["loc"])) if problem["loc"][:n] in kinds), None)
        where = problem["loc"] if at is None else problem["loc"][:at] + problem["loc"][at + 1 :]
        found.setdefault(where[:at], []).append({**problem, "loc": where})
    out = []
    for key, same in found.items():
        if inside := [one for one in same if len(one["loc"]) > len(key)]:
            out.append(inside[0])
        else:
            said = dict.fromkeys(_expected(one) for one in same)
            out.append({**same[0], "msg": f"Input should be {' or '.join(said)}"} if len(same) > 1 else same[0])
    return out


def _expected(problem: Any) -> str:
    return problem["msg"].partition(", ")[0].removeprefix("Input should be ")


def _of_several_kinds(model: type[Section], prefix: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Where values are that may be of two kinds and more, None apart."""
    out = set()
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            out |= _of_several_kinds(field.annotation, (*prefix, name))
        elif get_origin(field.annotation) in (Union, UnionType):
            out |= {(*prefix, name)} if len({*get_args(field.annotation)} - {type(None)}) > 1 else set()
    return out


def _explain(problem: Any, model: type[Section]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = known_keys(model)
        if where in known:  # with dots, as on a command line
            *sections, last = where.split(".")
            nested = f"{': {'.join(sections)}: {{{last}: ...{'}' * len(sections)}"
            return f"{where}: sections of a file are nested; write {nested}"
        near = difflib.get_close_matches(where, known, n=1, cutoff=0.5) or difflib.get_close_matches(
            where.rsplit(".", 1)[-1], [key.rsplit(".", 1)[-1] for key in known], n=1
        )
        full = next((key for key in known if near and (key == near[0] or key.endswith("." + near[0]))), None)
        return f"{where}: unknown key" + (f"; did you mean {full}?" if full else "")
    message = problem["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list in brackets")
    message = re.sub("a valid dictionary or instance of .*", "a section of keys and values", message)
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


def to_own(config: Config) -> str:
    """The text of a run folder's config.yaml, which states its own checksum."""
    text = to_yaml(config)
    return f"{text}{STAMP}{checksums.of(text.encode()):08x}\n"


def digest(value: Any) -> str:
    """A short hash of plain values; the key of artifacts."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
