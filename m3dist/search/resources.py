"""What trials need of the cluster, and how many of them it holds at once."""

from __future__ import annotations

import os

import ray

from m3dist.config import Config
from m3dist.distributed import ray_train
from m3dist.search import stages
from m3dist.search.space import Plan

_DRIVER = {"memory": float(64 << 20)}  # of a trial whose workers train: it waits for them and takes no core


def settled(config: Config) -> Config:
    """A trial's config with `use_gpu: auto` decided by whether the cluster has a GPU: a process sees those alone that
    it asked Ray for. Where workers train, their run decides."""
    if config.use_gpu != "auto" or config.workers:
        return config
    return config.model_copy(update={"use_gpu": ray.cluster_resources().get("GPU", 0) > 0})


def bundles(config: Config) -> list[dict[str, float]]:
    """What Ray reserves for a trial's own process and for each of the actors that it makes."""
    own = dict(_DRIVER) if config.workers else ray_train.per_worker(settled(config))
    actor = {"CPU": 1.0} | dict(config.actor_resources)
    return [own, *(actor for _ in range(config.actors))]


def total(config: Config) -> dict[str, float]:
    """All that a trial holds while it runs, its Ray Train workers included."""
    parts = bundles(config)
    parts += [ray_train.per_worker(config)] * ray_train.least_workers(config)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in {n for part in parts for n in part}}


def concurrency(plan: Plan) -> int:
    """Trials at once, by what is scarce. Raises ValueError when the cluster cannot hold a single one."""
    have = dict(ray.cluster_resources())
    need = total(plan.base)
    processes = max(1, ray_train.least_workers(plan.base))
    each = max(stages.memory(config, plan.dataset) for config in plan.extremes())
    need["memory"] = max(need.get("memory", 0.0), float(processes * each))
    fits = {name: have.get(name, 0.0) / amount for name, amount in need.items() if amount}
    scarce = min(fits, key=lambda name: fits[name])
    if fits[scarce] < 1 and not plan.base.autoscaling:
        raise ValueError(
            f"a trial needs {need[scarce]:g} {scarce} and the cluster has {have.get(scarce, 0.0):g}; ask for less by "
            f"workers, actors or resources_per_worker, or join a larger cluster"
        )
    most = max(1, int(fits[scarce] + 1e-9))
    wanted = plan.search.concurrency
    return most if wanted == "auto" else wanted if plan.base.autoscaling else min(wanted, most)


def threads(plan: Plan, at_once: int) -> int:
    """Torch threads of a trial: the cores that it asks for, or all (OMP_NUM_THREADS where that is set) for one that
    trains alone."""
    if at_once > 1 or plan.base.workers:
        return max(1, int(bundles(plan.base)[0].get("CPU", 1)))
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, ray.cluster_resources().get("CPU", 1)))
