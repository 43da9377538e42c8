"""Bytes that a worker needs, by formula, before anything is trained."""

from __future__ import annotations

from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.data.draws import CHUNK, narrow
from m3dist.data.shards import SHARDS
from m3dist.method import registry


def interactions(config: Config, dataset: Dataset, workers: int = 1) -> int:
    """Bytes that one of so many workers needs for interactions, at the most of all stages.

    Of training interactions 16 each (user, item, its place in an epoch's order, and as much for what is read or, in
    stage 2, for their order by item), and in stage 2 twice the environment of every representation (itself, and beside
    the others' or the new one), each 1, or 2 of more than 128 environments; of held-out ones 24, which lie sorted by
    user and in keys; of users 8, where their items begin; of all items and users 8, how many they have; and 64 of the
    block that is sorted at once, which is 2^18 interactions or a shard.
    """
    spec, modalities = registry.model(config.model), len(dataset.modalities)
    stage2 = any(stage.name == "invariance" for stage in spec.planned(config)) and config.invariance.rounds
    representations = (modalities + 1 if spec.members == "modalities" else 1) if stage2 else 0
    each = 16 + 2 * representations * narrow(config.invariance.environments).itemsize
    held = dataset.size("val") + dataset.size("test")
    own = each * dataset.size("train") + 24 * held + 3 * 8 * dataset.n_users
    block = 64 * min(max(CHUNK, dataset.size("train") // SHARDS), dataset.size("train") // workers)
    return own // workers + block + 8 * (dataset.n_users + dataset.n_items)


def predict(config: Config, dataset: Dataset) -> dict[str, int]:
    """Of each worker: tables with Adam's moments and the best copy, the second loss's rows and those of both side by
    side at the end of stage 3, features and representations, and one step's scores."""
    backbone, M = config.backbone, max(len(dataset.modalities), 1)
    spec = registry.model(config.model)
    members = M if spec.members == "modalities" else 1
    beside = backbone.content_dim if backbone.loss == "auto" else backbone.resolved.content_columns
    users, items = dataset.n_users * (backbone.dim + beside), dataset.n_items * backbone.dim
    batch, negatives = config.merge.batch_size, backbone.negatives
    if spec.members == "nodes":  # the widest have a table of nodes per modality
        users, items = (x * config.baseline.dim * (1 + M) for x in (dataset.n_users, dataset.n_items))
        batch, negatives = config.baseline.batch_size, config.baseline.negatives
    workers = max(1, min(config.workers) if isinstance(config.workers, tuple) else config.workers)
    of_users = 1 if spec.members == "nodes" else workers
    of_items = workers if config.embeddings == "sharded" else 1
    row_of_both = (3 * backbone.dim + 2 * beside) * 4 if any(x.name == "second" for x in spec.planned(config)) else 0
    out = {
        "tables": members * (users // of_users + items // of_items) * 4 * 4,
        "both losses": members * (dataset.n_users // of_users + dataset.n_items) * row_of_both,
        "features": _features(config, dataset),
        "interactions": interactions(config, dataset, of_users),
        "step": 4 * batch * negatives * 4,
        "ranking": 3
        * members
        * (256 if config.evaluation.block == "auto" else config.evaluation.block)
        * dataset.n_items
        * 4,
        "libraries": 400 << 20,
    }
    return {**out, "total": sum(out.values())}


def _features(config: Config, dataset: Dataset) -> int:
    """Bytes of features as they are prepared and as members read them, side by side; and of what stage 1 leaves, until
    that is written."""
    given = list(dataset.modalities.values())
    columns = 2 * sum(given)
    if any(stage.name == "align" for stage in registry.model(config.model).planned(config)):
        columns += sum(config.align.representations(given))
    return 4 * dataset.n_items * columns
