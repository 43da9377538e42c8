"""The nodes of the Ray cluster this process is in: their names, tasks bound to one of them, storage they share.

Tasks of this module take no CPU and run at most once, so that they find room on a busy cluster and a node that is
lost in between is told as a fault.
"""

from __future__ import annotations

import uuid
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from m3dist.storage.folders import Folder

WAIT = 90  # seconds for the tasks of one check
_READ = ("data", "temporal")  # folders that a command reads only
_checked: set[tuple[str, str, str]] = set()  # what this process found shared: (cluster, name, folder)


def alive() -> list[dict[str, Any]]:
    """The cluster's living nodes as ray.nodes() describes them, in a fixed order."""
    return sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"])


def name(node: dict[str, Any]) -> str:
    """Host name and the start of the node's id: several nodes may run on one host."""
    return f"{node['NodeManagerHostname']} {node['NodeID'][:8]}"


def on(node: dict[str, Any], task: Any, **options: Any) -> Any:
    """`task` bound to a node, taking none of its CPUs."""
    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return task.options(num_cpus=0, scheduling_strategy=here, max_retries=0, **options)


def on_driver(actor: Any, name: str) -> Any:
    """The actor class, named and bound to this process's node, so that it does not die with a node of workers."""
    node = ray.get_runtime_context().get_node_id()
    return actor.options(name=name, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


@ray.remote
def _write(place: str, file: str) -> str | None:
    try:
        folder = Folder(place)
        folder.make()
        folder.write_text(file, file)
    except Exception as error:  # what a filesystem raises differs from one to the next
        return f"{type(error).__name__}: {error}"
    return None


@ray.remote
def _read(place: str, files: list[str]) -> list[bool]:
    """Whether this node reads each file as it was written."""
    seen = []
    for file in files:
        try:
            seen.append(Folder(place).read_text(file) == file)
        except Exception:
            seen.append(False)
    return seen


@ray.remote
def _exists(place: str) -> bool | str:
    try:
        return Folder(place).exists()
    except Exception as error:  # denied, most often
        return f"{type(error).__name__}: {error}"


@ray.remote
def _remove(place: str, files: list[str]) -> None:
    for file in files:
        Folder(place).remove(file)


def storage_faults(what: str, place: str) -> list[str]:
    """Faults of a folder, one line each; none where every node sees the same files there.

    what: its name in the config. `data` must exist on every node; in other folders each node must read what each
    wrote. A folder that was found shared is not looked at again by this process.
    """
    key = (ray.get_runtime_context().gcs_address, what, place)
    if key in _checked:
        return []
    try:
        faults = _read_only(what, place) if what in _READ else _shared(what, place)
    except TimeoutError as error:
        return [f"{what}={place}: {error}; look whether its mount hangs there"]
    except RayError as error:  # a node or a task was lost; its text is a traceback
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        return [f"{what}={place}: {lines[-1] if lines else type(error).__name__}; look at the nodes' logs"]
    if not faults:
        _checked.add(key)
    return faults


def _read_only(what: str, place: str) -> list[str]:
    known = alive()
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
    """Every node writes a file, then every node reads all of them: three rounds of tasks, however many nodes."""
    known = alive()
    files = [f".probe-{uuid.uuid4().hex[:12]}" for _ in known]
    asked = [on(node, _write).remote(place, file) for node, file in zip(known, files, strict=True)]
    faults, written = [], []
    for node, file, error in zip(known, files, _answers(known, asked), strict=True):
        if error:
            faults.append(f"{what}={place}: {name(node)} cannot write there ({error}); mount it there, writable")
        else:
            written.append((node, file))
    seen = _all(known, _read, place, [file for _, file in written])
    blind = sorted(name(node) for node, found in zip(known, seen, strict=True) if not all(found))
    _answers([node for node, _ in written], [on(node, _remove).remote(place, [file]) for node, file in written])
    if blind and not faults:
        faults.append(
            f"{what}={place}: not shared: what one node writes there, others do not see ({', '.join(blind)}); "
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
