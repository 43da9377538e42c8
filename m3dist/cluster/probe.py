"""What a cluster's nodes are, whether they share storage, and whether they can talk: by small tasks, one a node."""

from __future__ import annotations

import platform
import uuid
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from m3dist.storage.folders import Folder

WAIT = 90  # seconds for the tasks of one probe
_READ = ("data", "temporal")  # places that a command reads only


def nodes() -> list[dict[str, Any]]:
    return sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"])


def name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} {node['NodeID'][:8]}"


def on(node: dict[str, Any], task: Any, **options: Any) -> Any:
    """`task` bound to a node, taking none of its CPUs."""
    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return task.options(num_cpus=0, scheduling_strategy=here, max_retries=0, **options)


@ray.remote
def _write(place: str, file: str, text: str) -> str | None:
    try:
        folder = Folder(place)
        folder.make()
        folder.write_text(file, text)
    except Exception as error:  # what a filesystem raises differs from one to the next
        return f"{type(error).__name__}: {error}"
    return None


@ray.remote
def _read(place: str, file: str) -> str | None:
    try:
        return Folder(place).read_text(file)
    except Exception:
        return None


@ray.remote
def _exists(place: str) -> bool | str:
    try:
        return Folder(place).exists()
    except Exception as error:  # denied, most often
        return f"{type(error).__name__}: {error}"


@ray.remote
def _remove(place: str, file: str) -> None:
    Folder(place).remove(file)


def storage(what: str, place: str) -> list[str]:
    """Faults of a folder, one a line: `data` must exist on every node; in others each node reads what each wrote."""
    try:
        return _read_only(what, place) if what in _READ else _shared(what, place)
    except TimeoutError as error:
        return [f"{what}={place}: {error}; look whether its mount hangs there"]
    except RayError as error:  # a node or a task was lost; its text is a traceback
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        return [f"{what}={place}: {lines[-1] if lines else type(error).__name__}; look at the nodes' logs"]


def _read_only(what: str, place: str) -> list[str]:
    known = nodes()
    found = dict(zip(map(name, known), _all(known, _exists, place), strict=True))
    faults = [
        f"{what}={place}: {node} cannot read there ({said}); let it read there, or mount it there"
        for node, said in found.items()
        if isinstance(said, str)
    ]
    if blind := [node for node, seen in found.items() if seen is False]:
        fix = "put the data on storage that every node mounts, or on s3://, gs://"
        faults.append(f"{what}={place}: not there on {', '.join(blind)}; {fix}")
    return faults


def _shared(what: str, place: str) -> list[str]:
    known = nodes()
    file = f".probe-{uuid.uuid4().hex[:12]}"
    faults, writers = [], []
    asked = [on(node, _write).remote(place, f"{file}-{i}", str(i)) for i, node in enumerate(known)]
    for i, (node, error) in enumerate(zip(known, _answers(known, asked), strict=True)):
        if error:
            faults.append(f"{what}={place}: {name(node)} cannot write there ({error}); mount it there, writable")
        else:
            writers.append(i)
    others: set[str] = set()
    for i in writers:
        seen = _all(known, _read, place, f"{file}-{i}")
        others |= {name(node) for node, text in zip(known, seen, strict=True) if text != str(i)}
    for i in writers:
        _answers([known[i]], [on(known[i], _remove).remote(place, f"{file}-{i}")])
    if others and not faults:
        faults.append(
            f"{what}={place}: not shared: what one node writes there, others do not see ({', '.join(sorted(others))}); "
            f"use a folder that every node mounts, or a URI such as s3://bucket/run"
        )
    return faults


def _all(known: list[dict[str, Any]], task: Any, *arguments: Any) -> list[Any]:
    return _answers(known, [on(node, task).remote(*arguments) for node in known])


def _answers(known: list[dict[str, Any]], asked: list[Any]) -> list[Any]:
    """What was asked of each node. Raises TimeoutError, which names the nodes that did not answer."""
    try:
        return ray.get(asked, timeout=WAIT)
    except GetTimeoutError:
        ready = ray.wait(asked, num_returns=len(asked), timeout=0)[0]
        late = [name(node) for node, each in zip(known, asked, strict=True) if each not in ready]
        raise TimeoutError(f"no answer from {', '.join(late)} in {WAIT} s") from None


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
    known = nodes()
    gpus = [1 if node["Resources"].get("GPU") else 0 for node in known]  # CUDA is visible to tasks that ask for it
    asked = [on(node, _facts, num_gpus=gpu).remote() for node, gpu in zip(known, gpus, strict=True)]
    return {name(node): each for node, each in zip(known, ray.get(asked, timeout=WAIT), strict=True)}


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
    known = nodes()
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
