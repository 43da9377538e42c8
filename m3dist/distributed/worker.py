"""What each worker of a Ray Train run does: join the others, do the task's work, and say plainly how it ended.

Workers import this and not the driver's side, which loads more of Ray than they need.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import ray
import torch

from m3dist.distributed import diagnosis
from m3dist.distributed.engine import Engine
from m3dist.distributed.placement import per_worker
from m3dist.distributed.process_group import joined
from m3dist.distributed.reporting import Remote, WorkerTracker, announce
from m3dist.training.callbacks import Stopped
from m3dist.training.tracking import Tracker

Work = Callable[[Engine, Tracker], None]


def train(loop: dict[str, Any]) -> None:
    """The training function of Ray Train. loop: `relay`, and `packed`: config, work, whether the driver listens."""
    relay = loop["relay"]
    if ray.get(relay.ended.remote()) is not None:  # a restart after an error that a restart cannot mend
        return
    config, work, listens = ray.cloudpickle.loads(loop["packed"])
    torch.set_num_threads(max(1, int(per_worker(config)["CPU"])))
    device = torch.device("cpu")
    if config.use_gpu:
        from ray.train.torch import get_device

        device = get_device()
        torch.cuda.set_device(device)
    with joined("nccl" if config.use_gpu else "gloo") as (rank, world):
        announce(relay, rank, world)
        mine = WorkerTracker(config.out, Remote(relay), listens, world) if rank == 0 else Tracker(None)
        _finish(relay, Engine.of(config, rank, world, device), mine, work)


def _finish(relay: Any, engine: Engine, mine: Tracker, work: Work) -> None:
    """Do the work; the relay learns of an end that a restart cannot mend."""
    rank = engine.rank
    try:
        with mine as tracker:
            work(engine, tracker)
    except (Stopped, KeyboardInterrupt, FloatingPointError) as end:  # all workers come here together
        if rank == 0:
            ray.get(relay.finish.remote(type(end).__name__, str(end)))
    except Exception as error:
        if not diagnosis.of_a_peer(error):  # a restart would meet it again
            traceback.print_exc()
            ray.get(relay.finish.remote(*_plain(error, rank)))
        raise


def _plain(error: Exception, rank: int) -> tuple[str, str]:
    """(kind, one line) of what went wrong in a worker."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "RunFailed", f"worker {rank} ran out of memory ({diagnosis.one_line(error)}); {diagnosis.ADVICE}"
    if isinstance(error, ValueError):
        return "ValueError", str(error)
    return "RunFailed", f"worker {rank} failed: {diagnosis.located(error)}"
