"""What a cluster's nodes have, and whether they can talk: by small tasks, one a node."""

from __future__ import annotations

import platform
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from m3dist.distributed import nodes
from m3dist.distributed.nodes import WAIT


def facts() -> dict[str, Any]:
    """What this process's node has: versions, CUDA devices that torch sees, and free memory in bytes."""
    import psutil
    import torch

    import m3dist

    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "torch": torch.__version__.split("+")[0],
        "m3dist": m3dist.__version__,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "free": psutil.virtual_memory().available,
    }


@ray.remote
def _facts() -> dict[str, Any]:
    return facts()


def all_facts() -> dict[str, dict[str, Any]]:
    """`facts` of every node, by its name."""
    known = nodes.alive()
    gpus = [1 if node["Resources"].get("GPU") else 0 for node in known]  # CUDA is visible to tasks that ask for it
    asked = [nodes.on(node, _facts, num_gpus=gpu).remote() for node, gpu in zip(known, gpus, strict=True)]
    return {nodes.name(node): each for node, each in zip(known, ray.get(asked, timeout=WAIT), strict=True)}


@ray.remote
class _Member:
    """One process of a short process group; each sees its own node."""

    def address(self) -> str:
        import socket

        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def add_up(self, address: str, rank: int, world: int, backend: str) -> float:
        import datetime

        import torch
        import torch.distributed as dist

        patience = datetime.timedelta(seconds=30)
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=world, timeout=patience)
        try:
            x = torch.full((1024,), float(rank + 1), device="cuda" if backend == "nccl" else "cpu")
            dist.all_reduce(x)
            return float(x.mean())
        finally:
            dist.destroy_process_group()


def all_reduce(backend: str) -> tuple[int, str | None]:
    """(processes, fault): an all-reduce between one process on every node, or two where there is one node."""
    known = nodes.alive()
    if backend == "nccl":
        known = [node for node in known if node["Resources"].get("GPU")]
    known = known if len(known) > 1 or backend == "nccl" else known * 2
    gpus = 1 if backend == "nccl" else 0
    members = []
    for node in known:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        members.append(_Member.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=here).remote())  # type: ignore[attr-defined]
    try:
        address = ray.get(members[0].address.remote(), timeout=WAIT)
        world = len(members)
        sums = ray.get([m.add_up.remote(address, rank, world, backend) for rank, m in enumerate(members)], timeout=WAIT)
        expected = world * (world + 1) / 2
        return world, None if sums == [expected] * world else f"wrong sums {sums}, expected {expected}"
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        return len(members), lines[-1] if lines else type(error).__name__
    finally:
        for member in members:
            ray.kill(member)
