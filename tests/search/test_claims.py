"""Who trains a stage: one process at a time, whatever becomes of the others."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from m3dist.search.claims import Claims


def _claim(root: str, name: str, log: str, seconds: float) -> None:
    with Claims(Path(root), "p").hold(
        "stage", done=lambda: Path(log).exists() and "done" in Path(log).read_text()
    ) as mine:
        if mine:
            with open(log, "a") as file:
                file.write("trained\n")
            time.sleep(seconds)
            with open(log, "a") as file:
                file.write("done\n")


def test_of_many_processes_one_does_the_work(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_claim, args=(str(tmp_path / "c"), "s", str(log), 0.3)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert log.read_text() == "trained\ndone\n"


def test_a_dead_holder_is_followed_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    holder = context.Process(target=_claim, args=(str(tmp_path / "c"), "s", str(tmp_path / "log"), 60))
    holder.start()
    claims = Claims(tmp_path / "c", "next")
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    with pytest.raises(BlockingIOError, match=f"process {holder.pid}"), claims.try_hold("stage"):
        pass
    holder.kill()
    holder.join()
    with claims.try_hold("stage") as mine:
        assert mine
    assert claims.count("stage") == 2


def test_a_silent_holder_elsewhere_loses_its_claim(tmp_path: Path) -> None:
    claims = Claims(tmp_path, "next", expiry=0.5)
    told = {"owner": "far", "host": "another-node", "pid": 1, "state": "held"}
    (tmp_path / "stage.1.json").write_text(json.dumps(told))
    with pytest.raises(BlockingIOError, match="another-node"), claims.try_hold("stage"):
        pass
    time.sleep(0.7)
    with claims.try_hold("stage") as mine:
        assert mine


def test_a_live_holder_keeps_its_claim_beyond_the_expiry(tmp_path: Path) -> None:
    holder, other = (Claims(tmp_path, name, beat=0.1, expiry=0.5) for name in "ab")
    with holder.hold("stage"):
        path = next(tmp_path.glob("stage.*.json"))
        told = json.loads(path.read_text()) | {"host": "another-node"}  # so that only signs of life count
        path.write_text(json.dumps(told))
        time.sleep(1.0)
        with pytest.raises(BlockingIOError), other.try_hold("stage"):
            pass
    with other.try_hold("stage") as mine:
        assert mine
