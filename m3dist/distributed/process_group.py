"""The process group of a Ray Train run's workers, which they make among themselves.

Ray's TorchConfig makes it from Ray Train's controller, which would load torch for nothing else: seconds of every start.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig

_PATIENCE = datetime.timedelta(minutes=30)  # that a collective waits for the other workers, as Ray has it


class _Visible(Backend):
    share_cuda_visible_devices = True  # workers of one node see each other's GPUs, which NCCL needs


class Group(BackendConfig):
    """What Ray Train is told in place of its TorchConfig: to set up nothing, since workers do."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Visible


@contextlib.contextmanager
def joined(backend: str) -> Iterator[tuple[int, int]]:
    """Within a worker of Ray Train: torch's default process group of all workers, with torchrun's variables.

    Gives this worker's rank and how many there are. After an error the group is left to the end of the process, since
    others may still wait in it.
    """
    import torch.distributed as dist
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    store: Any = None
    place: Any = None
    if rank == 0:  # its port is free since the store has it
        place = ray.util.get_node_ip_address()
        store = dist.TCPStore(place, 0, world, is_master=True, timeout=_PATIENCE, wait_for_workers=False)
        place = (place, store.port)
    host, port = broadcast_from_rank_zero(place)
    if rank:
        store = dist.TCPStore(host, port, world, is_master=False, timeout=_PATIENCE)
    os.environ |= {
        "MASTER_ADDR": host, "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(context.get_local_rank()), "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }  # fmt: skip
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    yield rank, world
    dist.destroy_process_group()
