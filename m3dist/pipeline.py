"""Run the stages in order; a stage whose artifact is already there is skipped.

A stage's key hashes what its output depends on: the data, the seed, the values of its sections and the stage before;
never how many workers compute it. Test data is read once, after everything was chosen on validation data.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from omegaconf import OmegaConf
from torch import Tensor

import m3dist
from m3dist import config as configs
from m3dist.config import RECOMMENDERS, Config, digest, to_yaml
from m3dist.data.dataset import SPLITS, Dataset
from m3dist.distributed.engine import Engine
from m3dist.distributed.tables import send_rows
from m3dist.evaluation import ranking
from m3dist.evaluation.masks import input_masks, mask_table, mask_truth
from m3dist.method import align, invariance, merge
from m3dist.method import recommender as baseline
from m3dist.method.backbone import Data
from m3dist.method.merge import Fused
from m3dist.storage.artifacts import Store
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder, Stored
from m3dist.training.tracking import Interrupts, Listener, Tracker

Held = dict[str, tuple[np.ndarray, np.ndarray]]
Claim = Callable[[str, str], contextlib.AbstractContextManager[Any]]


def open_data(config: Config, held: Held | None = None) -> Dataset:
    """The run's data set, local or by URI; `synthetic` is made on first use, in the run folder.

    held: interactions by split that are in memory already.
    """
    if config.data != "synthetic":
        return Dataset(Folder(config.data).here() if "://" in config.data else config.data, held)
    from m3dist.data import synthetic

    folder = Folder(config.out) / f"data-{digest([config.synthetic.model_dump(), config.seed])}"
    if not folder.exists("dataset.json"):
        with tempfile.TemporaryDirectory() as temporary:
            made = Path(folder.path) if folder.is_local else Path(temporary) / "data"
            synthetic.write(made, config.synthetic, config.seed)
            if not folder.is_local:
                folder.upload(made)
    return Dataset(folder.here(), held)


def artifact_store(config: Config) -> Store:
    """Where a run's finished stages are."""
    return Store(Folder(config.artifacts) if config.artifacts else Folder(config.out) / "artifacts")


def keys(config: Config, dataset: Dataset) -> dict[str, str]:
    """The artifact key of every step of a run, in order; `test` is the reading of the test split."""
    root = [dataset.fingerprint, config.seed, config.backbone.model_dump(), config.optimizer]
    # what changes numbers beyond the last bits, and only when asked for: keys stay where nothing was
    root += [{"precision": config.precision}] if config.precision != "auto" else []
    root += [{"deepspeed": config.deepspeed}] if config.deepspeed else []
    selects = config.evaluation.metric
    if config.model in RECOMMENDERS:
        trained = [dataset.fingerprint, config.seed, config.model, config.baseline.model_dump(), selects, *root[4:]]
        out = {"baseline": digest(trained)}
    elif config.model == "ultragcn":
        out = {"merge": digest([root, "ultragcn", config.merge.model_dump(), selects])}
    elif config.model == "invrl":
        out = {"pretrain": digest([root, "ultragcn", config.merge.model_dump(), selects])}
        out["invariance"] = digest([out["pretrain"], "invrl", config.invariance.model_dump()])
        out["merge"] = digest([out["invariance"], config.merge.model_dump(), selects])
    else:
        out = {"align": digest([root, config.align.model_dump(), selects])}
        out["invariance"] = digest([out["align"], config.invariance.model_dump()])
        out["merge"] = digest([out["invariance"], config.merge.model_dump(), selects])
    return out | {"test": digest([out[final_stage(config)], config.evaluation.k])}


def final_stage(config: Config) -> str:
    """The stage whose artifact ranks."""
    return "baseline" if config.model in RECOMMENDERS else "merge"


def planned(config: Config, test: bool) -> list[str]:
    """The steps that a run of `config` takes, in order."""
    if config.model in RECOMMENDERS:
        stages = ["baseline"]
    elif config.model == "ultragcn":
        stages = [name for name in config.stages if name == "merge"]
    elif config.model == "invrl":
        stages = ["pretrain" if name == "align" else name for name in config.stages]
    else:
        stages = [*config.stages]
    return [*stages, "test"] if test and final_stage(config) in stages else stages


def scorer(config: Config, tensors: dict[str, Tensor]) -> ranking.Scorer:
    """The final stage's tensors, ready to rank."""
    if config.model in RECOMMENDERS:
        return baseline.scorer(config.model, tensors)
    return Fused(tensors, config.merge.fusion)


def predict_memory(config: Config, dataset: Dataset) -> dict[str, int]:
    """Bytes of each worker by formula: tables with Adam moments and the best copy, features, and one step's scores."""
    backbone, M = config.backbone, max(len(dataset.modalities), 1)
    members = M if config.model == "m3-invrl" else 1
    table = dataset.n_users * (backbone.dim + backbone.content_dim) + dataset.n_items * backbone.dim
    batch, negatives = config.merge.batch_size, backbone.negatives
    if config.model in RECOMMENDERS:  # the widest have a table of nodes per modality
        table = (dataset.n_users + dataset.n_items) * config.baseline.dim * (1 + M)
        batch, negatives = config.baseline.batch_size, config.baseline.negatives
    workers = min(config.workers) if isinstance(config.workers, tuple) else config.workers
    owners = max(workers, 1) if config.embeddings == "sharded" else 1
    out = {
        "tables": members * table * 4 * 4 // owners,
        "features": dataset.n_items * (sum(dataset.modalities.values()) + 3 * M * config.align.dim) * 4,
        "interactions": sum(dataset.size(s) for s in ("train", "val", "test")) * 24,
        "step": 4 * batch * negatives * 4,
        "ranking": 3 * members * config.evaluation.block * dataset.n_items * 4,
        "libraries": 400 << 20,
    }
    return {**out, "total": sum(out.values())}


def _contents(dataset: Dataset, config: Config, aligned: dict[str, Tensor], masks: dict[str, Tensor]) -> list[Tensor]:
    """Q_m = [Phi_m; Phi_{M+1}] (eq. 9, 11) of every modality, [I, D_m + D]."""
    M = len(dataset.modalities)
    phi = [masks[f"mask.{r}"] * aligned[f"representation.{r}"] for r in range(M + 1)]
    return [torch.cat([phi[m], phi[M]], dim=1) for m in range(M)]


def resumed(run: str, overrides: tuple[str, ...]) -> Config:
    """The config of a run folder with overrides that change no result, to go on with it.

    Raises ValueError when there is no such run or an override would make it another one.
    """
    folder = Folder(run)
    if not folder.exists("config.yaml"):
        raise ValueError(f"{run}: no run to resume (no config.yaml); start one with `m3dist train out={run}`")
    with folder.local("config.yaml") as path:
        before, config = (configs.load(path, [*given, f"out={run}"]) for given in ((), overrides))
    if config.data != before.data:
        raise ValueError(f"{run}: belongs to data={before.data}; drop data={config.data} or train in another out")
    dataset = open_data(config)
    was, now = keys(before, dataset), keys(config, dataset)
    if changed := [name for name in now if was.get(name) != now[name]]:
        raise ValueError(
            f"{run}: belongs to another config: {' '.join(overrides)} would change its stage {changed[0]}; drop that "
            f"or train with another out"
        )
    return config


def _own(config: Config, out: Folder) -> None:
    """Raises ValueError when the run folder holds a run on other data, whose results would be mixed with these."""
    if out.exists("config.yaml"):
        data = dict(OmegaConf.create(out.read_text("config.yaml"))).get("data")
        if data != config.data:
            raise ValueError(f"out={config.out}: holds a run on data={data}; choose another out")


class Step:
    """Computes the artifact of one step of a run on this worker."""

    def __init__(self, config: Config, engine: Engine, tracker: Tracker, held: Held | None):
        self.config, self.engine, self.tracker = config, engine, tracker
        self.dataset = open_data(config, held)
        self.store, self.keys = artifact_store(config), keys(config, self.dataset)

    def checkpoints(self, name: str) -> Checkpoints:
        folder = Folder(self.config.out) / "checkpoints" / f"{name}-{self.keys[name]}"
        return Checkpoints(folder, self.keys[name], self.config.checkpoint, self.engine)

    def tensors(self, name: str) -> dict[str, Tensor]:
        return self.store.load(name, self.keys[name])[0]

    def align(self) -> tuple[dict[str, Stored], dict]:
        return align.run(self.dataset, self.config, self.tracker, self.engine, self.checkpoints("align"))

    def features(self) -> Tensor | None:
        """All modalities side by side, [I, w]."""
        features = Data(self.dataset, self.config).features()
        return torch.cat(features, dim=1) if features else None

    def pretrain(self) -> tuple[dict[str, Stored], dict]:
        """Of InvRL: the backbone on all features, whose embeddings the environments' models hold fixed."""
        saved = self.checkpoints("pretrain")
        content = self.features()
        if content is None:
            raise ValueError(f"{self.dataset.root}: invrl needs item features and this data set has none")
        return merge.run(self.dataset, self.config, [content], None, self.tracker, self.engine, saved, "pretrain")

    def invariance(self) -> tuple[dict[str, Tensor], dict]:
        saved = self.checkpoints("invariance")
        if self.config.model == "invrl":  # one representation: the concatenated features themselves
            trained, content = self.tensors("pretrain"), self.features()
            assert content is not None
            read = {"member.user": trained["0.user"], "member.item": trained["0.item"], "representation.0": content}
        else:
            read = self.tensors("align")
        return invariance.run(self.dataset, self.config, read, self.tracker, self.engine, saved)

    def merge(self) -> tuple[dict[str, Stored], dict]:
        init: dict[str, Tensor] | None = None
        contents: list[Tensor | None]
        if self.config.model == "ultragcn":
            contents = [self.features()]
        elif self.config.model == "invrl":
            content = self.features()
            assert content is not None
            contents = [self.tensors("invariance")["mask.0"] * content]
            if self.config.merge.init == "align":
                trained = self.tensors("pretrain")
                init = {"user": trained["0.user"], "item": trained["0.item"]}
        else:
            aligned, masks = self.tensors("align"), self.tensors("invariance")
            contents = [*_contents(self.dataset, self.config, aligned, masks)]
            if self.config.merge.init == "align":
                init = {"user": aligned["member.user"], "item": aligned["member.item"]}
        saved = self.checkpoints("merge")
        return merge.run(self.dataset, self.config, contents, init, self.tracker, self.engine, saved)

    def baseline(self) -> tuple[dict[str, Tensor], dict]:
        return baseline.run(self.dataset, self.config, self.tracker, self.engine, self.checkpoints("baseline"))

    def test(self) -> tuple[dict[str, Tensor], dict]:
        """Metrics on the test split, and every user's."""
        data = Data(self.dataset, self.config, self.engine)
        score = scorer(self.config, self.tensors(final_stage(self.config)))
        metrics, table = data.evaluate(score, "test", keep=True)
        self.tracker.log("test", 0, metrics)
        tables = self.engine.collect(table)
        order = np.argsort(np.concatenate([part["user"] for part in tables]), kind="stable")
        users = {name: np.concatenate([part[name] for part in tables])[order] for name in table}
        return {name: torch.from_numpy(values) for name, values in users.items()}, {"metrics": metrics}


def work(config: Config, steps: tuple[str, ...], engine: Engine, tracker: Tracker, held: Held | None = None) -> None:
    """Compute the artifacts of these steps that are not there yet; every worker calls it alike."""
    step = Step(config, engine, tracker, held)
    for name in steps:
        key = step.keys[name]
        if engine.largest(int(engine.lead and step.store.has(name, key))):
            continue
        tensors, meta = getattr(step, name)()
        if engine.lead:
            step.store.save(name, key, tensors, meta)
            step.checkpoints(name).clear() if name != "test" else None
        else:
            send_rows(tensors.values())
        engine.barrier()


def _groups(config: Config, steps: list[str]) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """(on workers, steps that run together): a start-up each, so as few as can be.

    Environment models that train as actors are led by the driver, which holds no workers meanwhile.
    """
    here = [not config.workers or (name == "invariance" and config.actors > 0) for name in steps]
    start = 0
    for at in range(1, len(steps) + 1):
        if at == len(steps) or here[at] != here[start]:
            yield not here[start], tuple(steps[start:at])
            start = at


def run(
    config: Config,
    quiet: bool = False,
    listener: Listener | None = None,
    test: bool = True,
    claim: Claim | None = None,
) -> dict[str, Any]:
    """Train what `config` says and return the content of result.json.

    listener: called with every (stage, step, values) logged; may raise tracking.Stopped. test: whether to read the
    test split at the end; a search does not. claim(stage, key): a context entered before a stage is looked
    up and left when all are done; waits while another run trains the same stage. Raises KeyboardInterrupt when
    interrupted, after a checkpoint.
    """
    started = time.time()
    out = Folder(config.out)
    _own(config, out)
    dataset = open_data(config)
    store, key = artifact_store(config), keys(config, dataset)
    steps = planned(config, test)
    out.write_text("config.yaml", to_yaml(config))
    versions = {"m3dist": m3dist.__version__, "python": platform.python_version(), "torch": torch.__version__}
    out.write_json("versions.json", {**versions, "numpy": np.__version__, "pyarrow": pa.__version__})

    with contextlib.ExitStack() as claimed:
        for name in steps if claim else []:
            claimed.enter_context(claim(name, key[name]))  # type: ignore[misc]
        done = [name for name in steps if store.has(name, key[name])]
        for name in done:  # of a run that was killed before it could clear them
            (out / "checkpoints" / f"{name}-{key[name]}").remove()
        for on_workers, names in _groups(config, [name for name in steps if name not in done]):
            todo = functools.partial(work, config, names)
            if on_workers:
                from m3dist.distributed import ray_train as launch

                held = {split: dataset.interactions(split) for split in SPLITS}
                with Tracker(None, quiet, visible=True) as tracker:
                    task = launch.Task(todo, f"m3dist-{dataset.name}-{'-'.join(names)}", held)
                    launch.run(task, config, tracker, listener)
            else:
                with Interrupts() as stop, Tracker(out, quiet, listener, stop=stop) as tracker:
                    # with workers elsewhere this process only leads actors, which find their own devices
                    todo(Engine.of(config, device="cpu" if config.workers else None), tracker)

    result = _result(config, dataset, store, key, steps)
    result["seconds"] = time.time() - started
    result["skipped"] = done
    out.write_json("result.json", result)
    return result


def _result(config: Config, dataset: Dataset, store: Store, key: dict[str, str], steps: list[str]) -> dict[str, Any]:
    """What result.json says, from the artifacts alone; also writes test_users.parquet and masks.parquet."""
    stages = {name: store.meta(name, key[name]) for name in steps if name != "test"}
    result: dict[str, Any] = {"model": config.model, "data": dataset.name, "keys": key, "stages": stages}
    if "invariance" in stages:
        masks = store.load("invariance", key["invariance"])[0]
        if config.model == "invrl":
            parts = masks["mask.0"].split(list(dataset.modalities.values()))
            masks, aligned = {f"mask.{m}": part for m, part in enumerate(parts)}, {}
        else:
            aligned = store.load("align", key["align"])[0]
        scores = input_masks(dataset, aligned, masks)
        if (truth := mask_truth(dataset, scores)) is not None:
            result["mask_auc"] = {name: found["auc"] for name, found in truth.items()}
            result["mask_mean"] = {
                name: {k: x for k, x in found.items() if k != "auc"} for name, found in truth.items()
            }
        with Folder(config.out).writing("masks.parquet") as path:
            pq.write_table(mask_table(dataset, masks, scores), path)
    if final_stage(config) in stages:
        result["validation"] = stages[final_stage(config)]["validation"]
    if "test" in steps:
        users, meta = store.load("test", key["test"])
        result["test"] = meta["metrics"]
        with Folder(config.out).writing("test_users.parquet") as path:
            pq.write_table(pa.table({name: values.numpy() for name, values in users.items()}), path)
    return result
