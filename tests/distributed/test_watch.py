"""What the driver says of workers that join, leave and slow each other down."""

from __future__ import annotations

from typing import Any

import pytest

from m3dist import config
from m3dist.distributed import diagnosis, watch
from m3dist.distributed.relay import Cause, Member


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(diagnosis.nodes, "alive", lambda: [{"NodeID": "a" * 8}, {"NodeID": "b" * 8}])
    monkeypatch.setattr(diagnosis, "_look", lambda member: "")
    return []


def members(*hosts: str) -> list[Member]:
    return [Member(rank, host[0] * 8, host, 100 + rank) for rank, host in enumerate(hosts)]


def follow(said: list[str], *values: str) -> watch.Watch:
    return watch.Watch(config.load(None, list(values) or ["workers=[1,2]"]), said.append, list)


def test_workers_that_join_and_leave(said: list[str]) -> None:
    watched = follow(said)
    watched.workers(members("a"))
    watched.workers(members("a", "b"))
    watched.failed([Cause(1, "died"), Cause(0, "peer")])
    watched.workers(members("a"))
    watched.failed([Cause(0, "memory")])
    watched.workers(members("a"))
    assert said == [
        "1 worker on a aaaaaaaa",
        "2 workers now, 1 before, new: b bbbbbbbb; they go on from the last checkpoint",
        "worker 1 on b bbbbbbbb ended without an error: its process 101 was killed from outside or crashed in native "
        "code; starting again (failure 1, max_failures=3)",
        "1 worker now, 2 before; they go on from the last checkpoint",
        f"worker 0 on a aaaaaaaa ran out of memory and was ended by Ray; {diagnosis.ADVICE}; starting again "
        "(failure 2, max_failures=3)",
        "1 worker again; they go on from the last checkpoint",
    ]


def test_the_last_failure_says_that_the_run_ends(said: list[str]) -> None:
    watched = follow(said, "workers=1", "max_failures=0")
    watched.workers(members("a"))
    watched.failed([Cause(0, "silent")])
    assert said[-1].endswith("; the run ends (failure 1, max_failures=0)")


def test_a_node_that_is_taken_back_is_no_failure_of_the_run(said: list[str]) -> None:
    counted: list[None] = []
    watched = watch.Watch(config.load(None, ["workers=2", "max_failures=0"]), said.append, lambda: counted.append(None))
    watched.workers(members("a", "b"))
    watched.failed([Cause(0, "peer"), Cause(1, "preempted")])
    assert said[-1] == "worker 1 on b bbbbbbbb lost its node, which the provider took back; starting again"
    watched.failed([Cause(0, "silent")])
    assert said[-1].endswith("; the run ends (failure 1, max_failures=0)")
    assert len(counted) == 2


def rates(watched: watch.Watch, workers: int, *values: float, stage: str = "merge") -> None:
    for value in values:
        watched.values(stage, {"loss": 1.0, "interactions/s": value, "workers": float(workers)})


def test_throughput_that_falls_after_growing_is_said_once(said: list[str]) -> None:
    watched = follow(said)
    watched.workers(members("a"))
    rates(watched, 1, 1000, 1200)
    watched.workers(members("a", "b"))
    rates(watched, 2, 500, 700)
    assert len(said) == 2
    rates(watched, 2, 600, 600, 600)
    assert said[2:] == [
        "merge: 2 workers take 600 interactions/s together where 1 took 1,100; fewer are faster here: workers=1, or a "
        "larger batch_size"
    ]


@pytest.mark.parametrize(
    ("before", "after", "stage"),
    [((1000,), (1500,) * 3, "merge"), ((1000,), (100,) * 3, "align"), ((), (5,) * 3, "merge")],
)
def test_throughput_that_cannot_be_compared_or_grew(
    said: list[str], before: tuple[float, ...], after: tuple[float, ...], stage: str
) -> None:
    watched = follow(said)
    watched.workers(members("a"))
    rates(watched, 1, *before)
    watched.workers(members("a", "b"))
    rates(watched, 2, *after, stage=stage)
    assert not [line for line in said if "interactions/s" in line]


def test_waiting_is_told_at_growing_intervals(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    free: dict[str, Any] = {"CPU": 1.0}
    monkeypatch.setattr(watch.ray, "available_resources", lambda: free)
    watched = follow(said, "workers=[2,4]", "resources_per_worker={CPU: 2}")
    for now[0] in (30.0, 61.0, 90.0, 130.0):
        watched.look()
    assert said == [
        "waiting for 2 to 4 workers of 2 CPU each for 61 s; the cluster's 2 node(s) have 1 CPU, 0 GPU free now",
        "waiting for 2 to 4 workers of 2 CPU each for 130 s; the cluster's 2 node(s) have 1 CPU, 0 GPU free now",
    ]
    free["CPU"] = 4.0
    now[0] = 260.0
    watched.look()
    assert "of 2 CPU each for 260 s, whose processes start; the cluster's" in said.pop()
    watched.workers(members("a", "b"))
    now[0] = 1000.0
    watched.look()
    assert len(said) == 3
