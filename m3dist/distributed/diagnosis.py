"""Why workers of a Ray Train run ended, from the errors that Ray hands over: by their type, never by Ray's prose.

Ray's text of any death lists what might have happened, memory among it, and so proves nothing. A process that the
kernel ended for want of memory is known by the kernel's own count of such kills on its node.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from m3dist.distributed import nodes
from m3dist.distributed.relay import Cause, Member

_PEER_IS_GONE = ("gloo", "NCCL", "Connection", "process group has not been initialized")  # torch's texts; no type tells
ADVICE = "lower batch_size or evaluation.block, or give workers machines with more memory"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_COUNTERS = ("/sys/fs/cgroup/memory.events", "/proc/vmstat")  # of the container (cgroup v2) and of the machine


def kernel_kills() -> int:
    """Processes that the kernel has ended here because memory ran out, since the container or machine started."""
    for path in _COUNTERS:
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def one_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    lines = _lines(error)
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _lines(error: BaseException) -> list[str]:
    """The lines of a message that say something, without the colours that Ray puts into some."""
    return [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]


def located(error: BaseException) -> str:
    """`one_line`, and where in the code it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return one_line(error) + (f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else "")


def of_a_peer(error: BaseException) -> bool:
    """Whether a collective failed because another worker is gone, which a restart mends."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _PEER_IS_GONE)


def cause(rank: int, error: BaseException) -> Cause:
    """What one worker's exception, as Ray Train reports it, says about its end."""
    inner = getattr(error, "health_check_failure", error)  # Ray Train wraps what it met when it asked the worker
    if isinstance(inner, OutOfMemoryError):  # Ray's own memory monitor ended the worker
        return Cause(rank, "memory")
    if isinstance(inner, RayActorError):
        return Cause(rank, "preempted" if getattr(inner, "preempted", False) else "died")
    if type(inner).__name__ == "WorkerHealthCheckTimeoutError":  # has no public name
        return Cause(rank, "silent")
    if isinstance(inner, RuntimeError | OSError) and of_a_peer(inner):
        return Cause(rank, "peer")
    return Cause(rank, "error", one_line(inner))


class Failures(ray.train.UserCallback):
    """Sends the cause of every failure to the relay, from Ray Train's controller, before it restarts the workers."""

    def __init__(self, relay: Any):
        self.relay = relay

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.relay.push.remote(("failed", [cause(rank, error) for rank, error in worker_exceptions.items()]))


@ray.remote
def _kills() -> int:
    return kernel_kills()


def _look(member: Member) -> str:
    """What a worker's node says: "node" where it is gone, "memory" where the kernel killed there, "" otherwise."""
    if member.node not in _living():
        return "node"
    try:
        kills = ray.get(nodes.on({"NodeID": member.node}, _kills).remote(), timeout=20)
    except (RayError, GetTimeoutError):  # a node that was cut off is found dead some seconds after its workers
        return "" if member.node in _living() else "node"
    return "memory" if kills > member.kills else ""


def _living() -> set[str]:
    return {node["NodeID"] for node in nodes.alive()}


def explained(causes: Iterable[Cause], members: dict[int, Member]) -> str:
    """Sentences, joined by semicolons, for what ended workers; those that only lost a peer are left out beside others.

    members: the workers by rank, where they are known. Where Ray has seen nothing but lost connections so far, the
    nodes of the others are asked.
    """
    found = sorted(causes, key=lambda each: each.rank)
    roots = [each for each in found if each.kind != "peer"]
    fates = {each.rank: _look(members[each.rank]) for each in roots if each.kind == "died" and each.rank in members}
    if found and not roots:
        others = {rank: _look(member) for rank, member in members.items() if rank not in {each.rank for each in found}}
        fates = {rank: fate for rank, fate in others.items() if fate}
        roots = [Cause(rank, "died") for rank in sorted(fates)] or found[:1]
    said = []
    for each in roots:
        member = members.get(each.rank)
        who = f"worker {each.rank}" + (f" on {member.place}" if member else "")
        said.append(f"{who} {_sentence(each, fates.get(each.rank, ''), member)}")
    return "; ".join(dict.fromkeys(said))


def _sentence(each: Cause, fate: str, member: Member | None) -> str:
    if each.kind == "memory":
        return f"ran out of memory and was ended by Ray; {ADVICE}"
    if each.kind == "preempted":
        return "lost its node, which the provider took back"
    if each.kind == "silent":
        return "has not answered Ray's health checks; its node hangs or is cut off"
    if each.kind == "peer":
        return "lost the connection to another worker"
    if each.kind == "error":
        return f"failed: {each.text}"
    if fate == "node":
        return "lost its node, which left the cluster"
    if fate == "memory":
        return f"was ended by the system, whose memory ran out; {ADVICE}"
    process = f" {member.pid}" if member else ""
    return f"ended without an error: its process{process} was killed from outside or crashed in native code"


def failure(error: BaseException, members: dict[int, Member]) -> str:
    """What ended a whole Ray Train run, in one line."""
    by_rank = getattr(error, "worker_failures", None)  # ray.train.WorkerGroupError
    if isinstance(by_rank, dict) and by_rank:
        return explained([cause(rank, each) for rank, each in by_rank.items()], members)
    inner = getattr(error, "controller_failure", error)  # ray.train.ControllerError
    if getattr(inner, "actor_init_failed", False):  # its message is a traceback, whose last line says what was raised
        return f"Ray Train's controller could not start: {_lines(inner)[-1]}"
    if isinstance(inner, RayTaskError):  # of a worker before it trains, as on a node without m3dist; likewise
        return f"a worker could not start: {_lines(inner)[-1]}"
    return one_line(inner)


def controller_died(error: BaseException) -> bool:
    """Whether Ray Train's controller itself was ended, and no worker; one that could not begin is another case."""
    return isinstance(error, RayActorError) and not error.actor_init_failed
