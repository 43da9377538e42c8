"""How many pods a command needs, and how large: from the config that it runs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from m3dist.cluster import settings
from m3dist.cluster.package import Job
from m3dist.config import Config
from m3dist.distributed import placement

OBJECT_STORE = 0.3  # Ray's share of a pod's memory for its object store
_MEMORY = "8Gi"
_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("KMGTP", 1)
}


@dataclass(frozen=True)
class Group:
    """Pods of one kind. each: what Ray's scheduler finds in one of them."""

    name: str
    least: int
    most: int
    each: dict[str, float]


@dataclass(frozen=True)
class Shape:
    """All pods of a command. head: what the command's own process needs there; empty where workers do the work."""

    head: dict[str, float] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    grows: bool = False  # whether Ray's autoscaler may add pods


def of(job: Job) -> Shape:
    """The pods of a command: a pod for each worker and each actor, and for a search those of `trials` trials."""
    config = job.config
    if config is None:
        return Shape({"CPU": 1.0})
    times = _trials(job, config) if job.verb == "tune" else 1
    groups = []
    if config.workers:
        least = placement.least_workers(config)
        most = config.workers[1] if isinstance(config.workers, tuple) else config.workers
        groups.append(Group("workers", least * times, most * times, placement.per_worker(config)))
    elif job.verb == "tune":
        groups.append(Group("trials", times, times, placement.per_worker(config)))
    if config.actors:
        each = {"CPU": 1.0, **config.actor_resources}
        groups.append(Group("actors", config.actors * times, config.actors * times, each))
    alone = not config.workers and job.verb != "tune"  # the head trains
    grows = isinstance(config.workers, tuple) or config.autoscaling
    return Shape(placement.per_worker(config) if alone else {}, tuple(groups), grows)


def _trials(job: Job, config: Config) -> int:
    return job.trials or config.cluster.trials


def bytes_of(quantity: str) -> float:
    """Bytes of a Kubernetes quantity of memory."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMGTP]i?|)", quantity)
    assert found is not None  # the settings were validated
    return float(found[1]) * _FACTORS[found[2]]


def share(quantity: str) -> str:
    """The object store's part of a pod's memory; with less in /dev/shm Ray would put it on the disk."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMGTP]i?|)", quantity)
    assert found is not None
    return f"{OBJECT_STORE * float(found[1]):.3f}".rstrip("0").rstrip(".") + found[2]


def container_resources(each: dict[str, float], pod: settings.Pod) -> dict[str, Any]:
    """A container's requests, which are its limits: what Ray's scheduler needs there, or what the settings say.

    `memory` is bytes that Ray reserves for processes; the pod also holds the object store.
    """
    cpus, gpus = pod.cpu or each.get("CPU", 1.0), pod.gpu or math.ceil(each.get("GPU", 0))  # Kubernetes has whole GPUs
    size: dict[str, Any] = {"cpu": f"{cpus:g}" if cpus == int(cpus) else f"{round(cpus * 1000)}m"}
    size["memory"] = pod.memory or _memory(each)
    if gpus:
        size["nvidia.com/gpu"] = gpus
    if "memory" in each and bytes_of(size["memory"]) * (1 - OBJECT_STORE) < each["memory"]:
        raise ValueError(
            f"cluster.worker.memory: {size['memory']} holds less than resources_per_worker.memory={each['memory']:g} "
            f"bytes beside Ray's object store; leave it out, or give {_memory(each)}"
        )
    return size | dict(pod.resources)


def _memory(each: dict[str, float]) -> str:
    if "memory" not in each:
        return _MEMORY
    return f"{math.ceil(each['memory'] / (1 - OBJECT_STORE) / 2**20)}Mi"


def start_parameters(each: dict[str, float]) -> dict[str, str]:
    """`ray start` parameters for what is neither Ray's own nor Kubernetes': the config's custom resources."""
    import json

    own = ("CPU", "GPU", "memory", "object_store_memory")
    other = {name: amount for name, amount in each.items() if name not in own}
    out = {"resources": f"'{json.dumps(other)}'"} if other else {}
    if "object_store_memory" in each:
        out["object-store-memory"] = str(int(each["object_store_memory"]))
    return out
