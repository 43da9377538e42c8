"""Pure functions mapped over Ray actors that hold the same large inputs.

The inputs are put into the object store once and read there without a copy. Work depends on its arguments alone, so
a dead actor is started again and its work repeated with the same result; results come in the order of the tasks.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from m3dist.config import Config
from m3dist.data.arrays import shared
from m3dist.training.tracking import RunFailed

Build = Callable[..., Any]  # (tensors by name, device, *arguments) -> the state that work reads


@dataclass(frozen=True)
class ActorSettings:
    """How many actors, and how they run; see Pool. purpose: in their names. key: of the config, which asks for them."""

    count: int
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failures: int = 3
    autoscaling: bool = False
    purpose: str = "environments"
    key: str = "actors"


_IN_FLIGHT = 2  # tasks given to an actor at once: one runs, one waits


class Pool:
    """Ray actors that each hold build(tensors, device, *arguments); a context manager that ends them.

    settings: how many, Ray's resources of each (1 CPU unless said otherwise; fractions of a GPU are allowed), how often
    one may die and a task be tried again, and whether the cluster can grow. Raises ValueError when it cannot hold them.
    """

    def __init__(self, build: Build, tensors: dict[str, Tensor], settings: ActorSettings, *arguments: Any):
        from m3dist.distributed.ray_train import connect, require

        self.failures = settings.failures
        connect()
        wanted = {"CPU": 1.0} | dict(settings.resources)
        if not settings.autoscaling:
            require(settings.key, settings.count, wanted)
        others = {name: n for name, n in wanted.items() if name not in ("CPU", "GPU")}
        options = {
            "num_cpus": wanted["CPU"], "num_gpus": wanted.get("GPU", 0), "resources": others,
            "scheduling_strategy": "SPREAD", "max_restarts": self.failures, "max_task_retries": self.failures,
        }  # fmt: skip
        # goes with every task, since an actor that starts again has nothing of it
        self._given = ray.put((build, arguments)), {name: self.put(x) for name, x in tensors.items()}
        threads = max(1, int(wanted["CPU"]))
        name = f"m3dist-{settings.purpose}-{uuid.uuid4().hex[:8]}"  # for the dashboard
        names = [f"{name}-{n}" for n in range(settings.count)]
        self.actors: list[Any] = [
            ray.remote(_Actor).options(name=name, **options).remote(threads)  # type: ignore[arg-type]
            for name in names
        ]

    @staticmethod
    def of(config: Config, build: Build, tensors: dict[str, Tensor], *arguments: Any) -> Pool:
        """A pool as a config describes it."""
        resources = dict(config.actor_resources)
        settings = ActorSettings(config.actors, resources, config.max_failures, config.autoscaling)
        return Pool(build, tensors, settings, *arguments)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def put(self, value: Tensor) -> Any:
        """A large argument of several tasks, given to `map` in place of the tensor."""
        return ray.put(value.detach().cpu().numpy())

    def map(
        self, work: Callable[..., Any], tasks: Sequence[tuple], stop: Callable[[], bool] | None = None
    ) -> list[Any]:
        """work(state, *task) of every task, in order; tensors in results are on the CPU.

        Raises what a task raised, KeyboardInterrupt when `stop` says so, and RunFailed when an actor kept dying.
        """
        results: list[Any] = [None] * len(tasks)
        waiting = deque(range(len(tasks)))
        running: dict[Any, tuple[int, int]] = {}  # reference -> (task, actor)
        load = [0] * len(self.actors)
        try:
            while waiting or running:
                while waiting and min(load) < _IN_FLIGHT:
                    actor = load.index(min(load))
                    at = waiting.popleft()
                    running[self.actors[actor].do.remote(self._given, work, *map(_packed, tasks[at]))] = at, actor
                    load[actor] += 1
                for done in ray.wait([*running], num_returns=1, timeout=0.5)[0]:
                    at, actor = running.pop(done)
                    load[actor] -= 1
                    results[at] = _unpacked(ray.get(done))
                if stop is not None and stop():
                    raise KeyboardInterrupt
        except ray.exceptions.RayTaskError as error:  # whose text is a trace of the actor's process
            raise error.cause from error
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise RunFailed(
                f"an actor died more than max_failures={self.failures} times; if memory ran out, take fewer actors; "
                f"Ray says: {lines[0]} {lines[-1]}"
            ) from None
        return results

    def processes(self) -> list[int]:
        """Process ids of the actors."""
        return ray.get([actor.process.remote() for actor in self.actors])


class _Actor:
    """One worker of a pool."""

    def __init__(self, threads: int):
        torch.set_num_threads(threads)
        self.state: Any = None

    def do(self, given: tuple[Any, dict[str, Any]], work: Callable[..., Any], *task: Any) -> Any:
        """work(state, *task). given: references of how the state is built, and of the arrays it is built of."""
        if self.state is None:
            how, held = given
            device = "cuda" if ray.get_gpu_ids() else "cpu"
            (build, arguments), *values = ray.get([how, *held.values()])
            arrays = {name: shared(x) for name, x in zip(held, values, strict=True)}
            self.state = build(arrays, device, *arguments)
        return _packed(work(self.state, *map(_unpacked, task)))

    def process(self) -> int:
        import os

        return os.getpid()


def _packed(value: Any) -> Any:
    """Tensors as arrays, whose bytes Ray stores beside the pickle."""
    return _mapped(lambda x: x.detach().cpu().numpy() if isinstance(x, Tensor) else x, value)


def _unpacked(value: Any) -> Any:
    """Arrays, also those that stand in the object store, as tensors."""

    def one(x: Any) -> Any:
        x = ray.get(x) if isinstance(x, ray.ObjectRef) else x
        return shared(x) if isinstance(x, np.ndarray) else x

    return _mapped(one, value)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """`change` of everything inside tuples, dictionaries and dataclasses."""
    if isinstance(value, dict):
        return {key: _mapped(change, x) for key, x in value.items()}
    if isinstance(value, tuple):
        parts = [_mapped(change, x) for x in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _mapped(change, getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return change(value)
