"""What a run folder says of a run in the end: result.json, masks.parquet and test_users.parquet."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.evaluation.masks import mask_table, mask_truth
from m3dist.method import registry
from m3dist.storage.artifacts import Store
from m3dist.storage.folders import Folder


def collect(config: Config, dataset: Dataset, store: Store, key: dict[str, str], steps: list[str]) -> dict[str, Any]:
    """The content of result.json, from the artifacts alone; writes the tables. key: of each of the run's steps."""
    spec = registry.model(config.model)
    stages = {name: store.meta(name, key[name]) for name in steps if name != "test"}
    result: dict[str, Any] = {"model": config.model, "data": dataset.name, "keys": key, "stages": stages}
    out = Folder(config.out)

    def read(stage: str) -> dict[str, Tensor]:
        return store.load(stage, key[stage])[0]

    if spec.masks is not None and "invariance" in stages:
        masks, scores = registry.load(spec.masks)(dataset, read)
        if (truth := mask_truth(dataset, scores)) is not None:
            result["mask_auc"] = {name: found["auc"] for name, found in truth.items()}
            result["mask_mean"] = {
                name: {k: x for k, x in found.items() if k != "auc"} for name, found in truth.items()
            }
        with out.writing("masks.parquet") as path:
            pq.write_table(mask_table(dataset, masks, scores), path)
    if spec.final.name in stages:
        result["validation"] = stages[spec.final.name]["validation"]
    if "test" in steps:
        users, meta = store.load("test", key["test"])
        result["test"] = meta["metrics"]
        with out.writing("test_users.parquet") as path:
            pq.write_table(pa.table({name: values.numpy() for name, values in users.items()}), path)
    return result
