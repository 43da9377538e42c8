"""Pure functions mapped over Ray actors that hold the same large inputs, or in series in this process.

The inputs are put into the object store once and read there without a copy. Work depends on its arguments alone, so
a dead actor is started again and its work repeated with the same result; results come in the order of the tasks.
"""

from __future__ import annotations

import uuid
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m3dist.training.tracking import RunFailed

Build = Callable[..., Any]  # (tensors by name, device, *arguments) -> the state that work reads
_IN_FLIGHT = 2  # tasks given to an actor at once: one runs, one waits


class Pool:
    """`actors` Ray actors, or none and this process; a context manager that ends its actors.

    Every one holds build(tensors, device, *arguments). resources: Ray's, of each actor; 1 CPU unless said otherwise,
    and fractions of a GPU are allowed. failures: deaths of one actor, and tries of one task, before giving up.
    device: of this process, when it works itself. Raises ValueError when the cluster cannot hold the actors.
    """

    def __init__(
        self,
        build: Build,
        tensors: dict[str, Tensor],
        *arguments: Any,
        actors: int = 0,
        resources: dict[str, float] | None = None,
        failures: int = 3,
        autoscaling: bool = False,
        device: str | torch.device = "cpu",
    ):
        self.actors: list[Any] = []
        self.failures, self.remote = failures, actors > 0
        if not actors:
            self.state = build(tensors, device, *arguments)
            return
        import ray

        from m3dist.distributed.ray_train import connect, require

        connect()
        wanted = {"CPU": 1.0} | (resources or {})
        if not autoscaling:
            require("actors", actors, wanted)
        others = {name: n for name, n in wanted.items() if name not in ("CPU", "GPU")}
        options = {
            "num_cpus": wanted["CPU"], "num_gpus": wanted.get("GPU", 0), "resources": others,
            "scheduling_strategy": "SPREAD", "max_restarts": failures, "max_task_retries": failures,
        }  # fmt: skip
        self.held = {name: self.put(x) for name, x in tensors.items()}
        threads = max(1, int(wanted["CPU"]))
        names = [f"m3dist-environments-{uuid.uuid4().hex[:8]}-{n}" for n in range(actors)]  # in Ray's dashboard
        self.actors = [
            ray.remote(_Actor).options(name=name, **options).remote(build, threads, self.held, arguments)  # type: ignore[arg-type]
            for name in names
        ]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.actors:
            import ray

            for actor in self.actors:
                ray.kill(actor)
        self.actors = []

    def put(self, value: Tensor) -> Any:
        """A large argument of several tasks, given to `map` in place of the tensor."""
        if not self.remote:
            return value
        import ray

        return ray.put(value.detach().cpu().numpy())

    def map(
        self, work: Callable[..., Any], tasks: Sequence[tuple], stop: Callable[[], bool] | None = None
    ) -> list[Any]:
        """work(state, *task) of every task, in order; tensors in results are on the CPU.

        Raises what a task raised, KeyboardInterrupt when `stop` says so, and RunFailed when an actor kept dying.
        """
        if not self.actors:
            out = []
            for task in tasks:
                if stop is not None and stop():
                    raise KeyboardInterrupt
                out.append(work(self.state, *task))
            return out
        import ray

        results: list[Any] = [None] * len(tasks)
        waiting = deque(range(len(tasks)))
        running: dict[Any, tuple[int, int]] = {}  # reference -> (task, actor)
        load = [0] * len(self.actors)
        try:
            while waiting or running:
                while waiting and min(load) < _IN_FLIGHT:
                    actor = load.index(min(load))
                    at = waiting.popleft()
                    running[self.actors[actor].do.remote(work, *map(_packed, tasks[at]))] = at, actor
                    load[actor] += 1
                for done in ray.wait([*running], num_returns=1, timeout=0.5)[0]:
                    at, actor = running.pop(done)
                    load[actor] -= 1
                    results[at] = _unpacked(ray.get(done))
                if stop is not None and stop():
                    raise KeyboardInterrupt
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise RunFailed(
                f"an actor died more than max_failures={self.failures} times; if memory ran out, take fewer actors; "
                f"Ray says: {lines[0]} {lines[-1]}"
            ) from None
        return results

    def processes(self) -> list[int]:
        """Process ids of the actors."""
        import ray

        return ray.get([actor.process.remote() for actor in self.actors])


class _Actor:
    """One worker of a pool."""

    def __init__(self, build: Build, threads: int, held: dict[str, Any], arguments: tuple):
        import ray

        torch.set_num_threads(threads)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        values = ray.get([*held.values()])
        self.state = build({name: _tensor(x) for name, x in zip(held, values, strict=True)}, device, *arguments)

    def do(self, work: Callable[..., Any], *task: Any) -> Any:
        return _packed(work(self.state, *map(_unpacked, task)))

    def process(self) -> int:
        import os

        return os.getpid()


def _tensor(value: np.ndarray) -> Tensor:
    """A tensor over memory of the object store, which must not be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(value)


def _packed(value: Any) -> Any:
    """Tensors as arrays, whose bytes Ray stores beside the pickle."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, tuple):
        return tuple(map(_packed, value))
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _tensor(value)
    if isinstance(value, tuple):
        return tuple(map(_unpacked, value))
    return value
