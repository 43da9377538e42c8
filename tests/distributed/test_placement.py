"""Joining a cluster: one that does not answer is told at once, before Ray tries for minutes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray

from m3dist.distributed import local_ray, placement
from m3dist.training.tracking import RunFailed


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What Ray is asked for by processes that have not joined yet."""
    asked: list[dict] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(local_ray, "_ours", local_ray._ours)  # the session's own Ray is known again afterwards
    begun = SimpleNamespace(address_info={"gcs_address": "127.0.0.1:6379"})
    monkeypatch.setattr(ray, "init", lambda **values: asked.append(values) or begun)
    return asked


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_is_joined_where_something_answers(
    address: str, port: int, joined: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address.format(port))
    placement.connect()
    assert len(joined) == 1


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}", "127.0.0.1:99999", "no.invalid:1"]
)
def test_nothing_at_an_address_is_told_at_once(
    address: str, joined: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", address.format(closed))
    with pytest.raises(RunFailed, match=r"no Ray cluster answers there .*; start it, or unset RAY_ADDRESS"):
        placement.connect()
    assert joined == []


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_what_else_ray_can_read_is_left_to_it(
    address: str, joined: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    placement.connect()
    assert len(joined) == 1


@pytest.mark.parametrize("ahead", [True, False])
def test_a_ray_that_does_not_start_is_told(ahead: bool, joined: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is busy with other work; whether it was started ahead or not."""

    def overloaded(**values: object) -> None:
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", overloaded)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if ahead:
        local_ray.start_ahead()
    with pytest.raises(
        RunFailed, match=r"^Ray did not start on this machine \(The current node timed out during startup"
    ):
        placement.connect()


@ray.remote(num_cpus=0)
def _known_actors() -> str:
    """What Ray's state API says, as Ray Train's own actors ask it."""
    from ray.util.state import list_actors

    try:
        return str(list_actors(timeout=5))
    except Exception as error:
        return str(error)


def test_processes_of_a_ray_of_ones_own_ask_no_other_one(ray_here: None) -> None:
    assert "http://127.0.0.1:9" in ray.get(_known_actors.remote(), timeout=60)
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
