"""Run the stages in order; a stage whose artifact is already there is skipped.

A stage's key hashes what its output depends on: the data, the seed, the values of its sections and the stage before.
Test data is read once, after everything was chosen on validation data.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

import m3dist
from m3dist.artifacts import Store, write_json
from m3dist.config import Config, digest, to_yaml
from m3dist.data.dataset import Dataset
from m3dist.stages import align, invariance, merge
from m3dist.stages.common import Data
from m3dist.stages.merge import Fused
from m3dist.tracking import Listener, Tracker


def open_data(config: Config) -> Dataset:
    """The run's data set; `synthetic` is made on first use, in the run folder."""
    if config.data != "synthetic":
        return Dataset(config.data)
    from m3dist.data import synthetic

    root = Path(config.out) / f"data-{digest([config.synthetic.model_dump(), config.seed])}"
    if not (root / "dataset.json").is_file():
        synthetic.write(root, config.synthetic, config.seed)
    return Dataset(root)


def artifact_store(config: Config) -> Store:
    """Where a run's finished stages are."""
    return Store(Path(config.artifacts) if config.artifacts else Path(config.out) / "artifacts")


def keys(config: Config, dataset: Dataset) -> dict[str, str]:
    """The artifact key of every stage."""
    root = [dataset.fingerprint, config.seed, config.backbone.model_dump(), config.optimizer]
    selects = config.evaluation.metric
    if config.model == "ultragcn":
        return {"merge": digest([root, "ultragcn", config.merge.model_dump(), selects])}
    first = digest([root, config.align.model_dump(), selects])
    second = digest([first, config.invariance.model_dump()])
    third = digest([second, config.merge.model_dump(), selects])
    return {"align": first, "invariance": second, "merge": third}


def predict_memory(config: Config, dataset: Dataset) -> dict[str, int]:
    """Bytes by formula: tables with Adam moments and the best copy, features, and one step's scores."""
    backbone, M = config.backbone, max(len(dataset.modalities), 1)
    members = M if config.model == "m3-invrl" else 1
    table = dataset.n_users * (backbone.dim + backbone.content_dim) + dataset.n_items * backbone.dim
    negatives = backbone.negatives
    out = {
        "tables": members * table * 4 * 4,
        "features": dataset.n_items * (sum(dataset.modalities.values()) + 3 * M * config.align.dim) * 4,
        "interactions": sum(dataset.size(s) for s in ("train", "val", "test")) * 24,
        "step": 4 * config.merge.batch_size * negatives * 4,
        "ranking": 3 * members * config.evaluation.block * dataset.n_items * 4,
        "libraries": 400 << 20,
    }
    return {**out, "total": sum(out.values())}


def _contents(dataset: Dataset, config: Config, aligned: dict[str, Tensor], masks: dict[str, Tensor]) -> list[Tensor]:
    """Q_m = [Phi_m; Phi_{M+1}] (eq. 9, 11) of every modality, [I, D_m + D]."""
    M = len(dataset.modalities)
    phi = [masks[f"mask.{r}"] * aligned[f"representation.{r}"] for r in range(M + 1)]
    return [torch.cat([phi[m], phi[M]], dim=1) for m in range(M)]


def run(config: Config, quiet: bool = False, listener: Listener | None = None, test: bool = True) -> dict[str, Any]:
    """Train what `config` says and return the content of result.json.

    listener: called with every (stage, step, values) logged; may raise tracking.Stopped. test: whether to read the
    test split at the end; a search does not.
    """
    started = time.time()
    out = Path(config.out)
    dataset = open_data(config)
    store = artifact_store(config)
    key = keys(config, dataset)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(to_yaml(config))
    versions = {"m3dist": m3dist.__version__, "python": platform.python_version(), "torch": torch.__version__}
    write_json(out / "versions.json", {**versions, "numpy": np.__version__, "pyarrow": pa.__version__})
    result: dict[str, Any] = {"model": config.model, "data": dataset.name, "keys": key, "stages": {}}

    with Tracker(out, quiet, listener) as tracker:

        def stage(name: str, work: Any) -> dict[str, Tensor]:
            if store.has(name, key[name]):
                tracker.console.print(f"{name}: already done, skipped", highlight=False)
            else:
                store.save(name, key[name], *work())
            tensors, result["stages"][name] = store.load(name, key[name])
            return tensors

        if config.model == "ultragcn":
            features = Data(dataset, config).features()
            content = [torch.cat(features, dim=1) if features else None]
            final = stage("merge", lambda: merge.run(dataset, config, content, None, tracker))
        else:
            aligned = stage("align", lambda: align.run(dataset, config, tracker))
            if "invariance" in config.stages:
                masks = stage("invariance", lambda: invariance.run(dataset, config, aligned, tracker))
                if (truth := mask_auc(dataset, aligned, masks)) is not None:
                    result["mask_auc"] = truth
            if "merge" in config.stages:
                init = {"user": aligned["member.user"], "item": aligned["member.item"]}
                q: list[Tensor | None] = [*_contents(dataset, config, aligned, masks)]
                start = init if config.merge.init == "align" else None
                final = stage("merge", lambda: merge.run(dataset, config, q, start, tracker))
        if "merge" in result["stages"]:
            result["validation"] = result["stages"]["merge"]["validation"]
        if test and "merge" in result["stages"]:
            metrics, table = Data(dataset, config).evaluate(Fused(final, config.merge.fusion), "test", keep=True)
            result["test"] = metrics
            pq.write_table(pa.table(table), out / "test_users.parquet")
            tracker.log("test", 0, metrics)
    result["seconds"] = time.time() - started
    write_json(out / "result.json", result)
    return result


def mask_auc(dataset: Dataset, aligned: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, float] | None:
    """ROC AUC of the masks over planted dimensions, per modality; None where nothing was planted.

    A mask speaks of representation dimensions; its value is carried back to an input dimension as the mean mask
    weighted by the absolute sensitivity of v_m to that input, k_m f_m of the linear encoder.
    """
    out = {}
    for m, name in enumerate(dataset.modalities):
        invariant = dataset.truth(name)
        if invariant is None:
            return None
        mask = masks[f"mask.{m}"]
        f, k = aligned.get(f"aligner.f.{m}.weight"), aligned.get(f"aligner.k.{m}.weight")
        if len(mask) == len(invariant) and k is None:
            score = mask
        elif f is not None and k is not None:
            through = (k @ f).abs()
            score = (mask @ through) / through.sum(0).clamp(min=1e-12)
        else:
            return None
        inside, outside = score[torch.from_numpy(invariant)], score[torch.from_numpy(~invariant)]
        wins = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
        out[name] = float(wins.mean())
    return out
