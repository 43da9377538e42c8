"""A function in several processes that can talk to each other over gloo."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from m3dist.training.allocator import keep_freed_memory


def gang(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What work(rank, world, *args) returns in `world` fresh processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_child, (world, folder, work, args), world, start_method="spawn")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _child(rank: int, world: int, folder: str, work: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    os.environ["LOCAL_RANK"] = str(rank)  # which DeepSpeed asks for
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(work(rank, world, *args), Path(folder) / f"{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def peak_mib() -> float:
    """The most memory that this process has had resident."""
    return _status_mib("VmHWM")


def resident_mib() -> float:
    """The memory that this process has resident now."""
    return _status_mib("VmRSS")


def _status_mib(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024
