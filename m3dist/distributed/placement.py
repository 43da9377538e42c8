"""Joining a Ray cluster, and whether its nodes can hold what a config asks for."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator

import ray

from m3dist.config import Config
from m3dist.distributed import local_ray, nodes
from m3dist.training.tracking import RunFailed

_PATIENCE = 10  # seconds for the head of a cluster to answer; Ray itself tries for many minutes


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; nothing when joined already.

    Raises RunFailed where nothing answers at that address, or Ray does not start.
    """
    with _starting():
        ahead = local_ray.awaited()
    if ahead:
        _silence()
    if not ray.is_initialized():
        local_ray.quiet()
        before = signal.getsignal(signal.SIGTERM)
        if local_ray.wanted():
            with _starting():
                local_ray.start(logging_level=logging.WARNING)
        else:
            _look(os.environ["RAY_ADDRESS"])
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler aborts the process
        _silence()


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Raises RunFailed where one of Ray's processes does not start in time, of which Ray raises a bare Exception."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        why = " ".join(str(error).split())
        raise RunFailed(
            f"Ray did not start on this machine ({why}); try again when it is less busy, or set RAY_ADDRESS"
        ) from None


def _look(address: str) -> None:
    """Raises RunFailed where nothing answers at HOST:PORT or ray://HOST:PORT; other addresses are Ray's to read."""
    found = re.fullmatch(r"(?:ray://)?(\[.+\]|[^:/]+):(\d+)", address)
    if not found:
        return
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise RunFailed(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start it, or unset RAY_ADDRESS"
        ) from None


def _silence() -> None:
    """Keep Ray from printing what it has to say of every dead process, which log_to_driver does not; we say it."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):  # Ray has no setting for it
        worker.print_to_stdstream = lambda data, ignore_prefix: None


def environment() -> dict[str, str]:
    """Variables that workers share with the driver: one BLAS thread each unless said otherwise."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def per_worker(config: Config) -> dict[str, float]:
    """Ray resources of one worker: the config's, and 1 CPU (and 1 GPU where used) unless they say otherwise."""
    default = {"CPU": 1.0, "GPU": 1.0} if config.use_gpu is True else {"CPU": 1.0}
    return default | dict(config.resources_per_worker)


def least_workers(config: Config) -> int:
    """The number of workers that a run needs to start."""
    return config.workers[0] if isinstance(config.workers, tuple) else config.workers


def check(config: Config) -> None:
    """Raises ValueError, in one line, when the cluster can never run this config or its nodes do not share `out`."""
    resources = ray.cluster_resources()
    if config.use_gpu is True and not resources.get("GPU") and not config.autoscaling:
        raise ValueError(f"use_gpu: the cluster has no GPU ({shown(resources)}); set use_gpu=false or join another")
    if config.use_gpu is True and per_worker(config)["GPU"] < 1:
        raise ValueError(
            f"resources_per_worker.GPU={per_worker(config)['GPU']:g}: workers cannot share a GPU, over which NCCL does "
            f"not talk; give each a whole one, or set workers=0, which uses a whole GPU better than two workers would"
        )
    if not config.autoscaling:
        require("workers", least_workers(config), per_worker(config))
    if len(nodes.alive()) > 1 and (faults := nodes.storage_faults("out", config.out)):
        raise ValueError(faults[0])


def require(key: str, count: int, each: dict[str, float], all_nodes: list[dict] | None = None) -> None:
    """Raises ValueError, naming the config key, when the cluster's nodes cannot hold `count` times these resources.

    all_nodes: as ray.nodes() lists them, which is asked when they are not given.
    """
    has = [node["Resources"] for node in all_nodes or ray.nodes() if node["Alive"]]
    room = [[int(node.get(name, 0) / n + 1e-9) for name, n in each.items() if n] for node in has]
    fits = sum(min(of_node, default=count) for of_node in room)  # all that one of them needs stands on one node
    if fits < count:
        least = min(each, key=lambda name: sum(node.get(name, 0) for node in has) / max(each[name], 1e-9))
        wanted = " + ".join(f"{n:g} {name}" for name, n in each.items())
        raise ValueError(
            f"{key}: {count} x {wanted} do not fit the cluster, which has "
            f"{sum(node.get(least, 0) for node in has):g} {least} on {len(has)} node(s), room for {fits}; ask "
            f"for less, join a larger cluster, or set autoscaling=true when it can grow"
        )


def shown(resources: dict[str, float]) -> str:
    """CPUs and GPUs among Ray resources, for people."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def failures(config: Config) -> int:
    """How often workers may fail before a run ends; an elastic run survives at least one, since it is to shrink."""
    return max(config.max_failures, 1 if isinstance(config.workers, tuple) else 0)
