"""Why workers ended, by the types of Ray's errors; none of it needs a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from m3dist.distributed import diagnosis
from m3dist.distributed.relay import Cause, Member

DEATH = "The actor died. Some common causes: (1) killed by SIGKILL by the OOM killer due to high memory usage. (2) ..."
HERE = Member(1, "a" * 56, "host", 42)


class HealthCheckFailed(Exception):
    """As Ray Train wraps what it met when it asked a worker."""

    def __init__(self, failure: Exception):
        super().__init__(f"health check failed\n{failure}")
        self.health_check_failure = failure


class WorkerHealthCheckTimeoutError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HealthCheckFailed(RayActorError("ab", DEATH)), "died"),
        (RayActorError("ab", DEATH), "died"),
        (ActorDiedError(), "died"),
        (HealthCheckFailed(RayActorError("ab", DEATH, preempted=True)), "preempted"),
        (HealthCheckFailed(OutOfMemoryError("Task was killed")), "memory"),
        (WorkerHealthCheckTimeoutError("no answer"), "silent"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:542] Connection closed by peer"), "peer"),
        (KeyError("gloo"), "error"),
        (RuntimeError("an OOM in the text is no proof"), "error"),
    ],
)
def test_causes_go_by_type(error: Exception, kind: str) -> None:
    assert diagnosis.cause(3, error).kind == kind
    assert diagnosis.cause(3, error).rank == 3


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    living = [{"NodeID": HERE.node, "Alive": True, "NodeManagerHostname": "host"}]
    monkeypatch.setattr(diagnosis.nodes, "alive", lambda: living)
    monkeypatch.setattr(diagnosis, "_look", lambda member: "")
    return living


def test_what_a_death_is_said_to_be(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    died = [Cause(1, "died"), Cause(0, "peer")]
    said = diagnosis.explained(died, {1: HERE})
    assert said == (
        "worker 1 on host aaaaaaaa ended without an error: its process 42 was killed from outside or crashed in native "
        "code"
    )
    monkeypatch.setattr(diagnosis, "_look", lambda member: "memory" if member is HERE else "")
    assert "ended by the system, whose memory ran out" in diagnosis.explained(died, {1: HERE})
    monkeypatch.setattr(diagnosis, "_look", lambda member: "node")
    assert diagnosis.explained(died, {1: HERE}) == "worker 1 on host aaaaaaaa lost its node, which left the cluster"


def test_a_node_that_is_gone_is_found_where_ray_saw_lost_connections_only(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Member(0, "b" * 56, "other", 41)
    peers = [Cause(0, "peer")]
    assert diagnosis.explained(peers, {0: other, 1: HERE}).startswith("worker 0 on other bbbbbbbb lost the connection")
    monkeypatch.setattr(diagnosis, "_look", lambda member: "node" if member is HERE else "")
    assert diagnosis.explained(peers, {0: other, 1: HERE}) == (
        "worker 1 on host aaaaaaaa lost its node, which left the cluster"
    )


@pytest.mark.parametrize(
    ("answer", "living", "fate"),
    [(0, True, ""), (1, True, "memory"), (RayActorError("x"), True, ""), (RayActorError("x"), False, "node")],
)
def test_what_a_node_says_of_its_worker(answer: Any, living: bool, fate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is cut off is still listed as alive when it is first asked."""
    listed = iter([{HERE.node}, {HERE.node} if living else set()])
    monkeypatch.setattr(diagnosis, "_living", lambda: next(listed))
    monkeypatch.setattr(diagnosis.nodes, "on", lambda node, task: SimpleNamespace(remote=lambda: "asked"))

    def get(asked: Any, timeout: float) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(diagnosis.ray, "get", get)
    assert diagnosis._look(HERE) == fate


def test_a_lost_peer_is_told_only_where_nothing_else_is_known(nodes: list[dict[str, Any]]) -> None:
    assert diagnosis.explained([Cause(0, "peer"), Cause(2, "peer")], {}) == (
        "worker 0 lost the connection to another worker"
    )
    both = [Cause(0, "memory"), Cause(1, "memory"), Cause(2, "preempted")]
    assert diagnosis.explained(both, {}).count("; ") == 4  # three workers, and advice for two


def test_the_kernels_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    monkeypatch.setattr(diagnosis, "_COUNTERS", (str(tmp_path / "none"), str(events)))
    assert diagnosis.kernel_kills() == 2
    events.unlink()
    assert diagnosis.kernel_kills() == 0


def test_the_end_of_a_run_is_one_line(nodes: list[dict[str, Any]]) -> None:
    workers = WorkerGroupError("two\nlines", {1: HealthCheckFailed(RayActorError("ab", DEATH)), 0: OSError("gloo")})
    assert diagnosis.failure(workers, {1: HERE}).startswith("worker 1 on host aaaaaaaa ended without an error")
    controller = ControllerError(RuntimeError("no\nstart"))
    assert diagnosis.failure(controller, {}) == "RuntimeError: no"
    assert diagnosis.controller_died(ActorDiedError())
    assert not diagnosis.controller_died(workers)
    unborn = RayActorError(
        "ab", "died in its creation\n\x1b[36mray::X\x1b[39m\nImportError: no x", actor_init_failed=True
    )
    assert not diagnosis.controller_died(unborn)
    assert diagnosis.failure(unborn, {}) == "Ray Train's controller could not start: ImportError: no x"
    missing = ModuleNotFoundError("no m3dist")
    task = RayTaskError("init", "ray::init()\n  File x\nModuleNotFoundError: no m3dist", missing)
    assert diagnosis.failure(ControllerError(task), {}) == "a worker could not start: ModuleNotFoundError: no m3dist"


def test_errors_are_one_line_with_their_place() -> None:
    try:
        raise KeyError("a\nb")
    except KeyError as error:
        said = diagnosis.located(error)
    assert said.startswith("KeyError: 'a\\nb' (")
    assert said.endswith(")")
    assert "test_diagnosis.py:" in said
