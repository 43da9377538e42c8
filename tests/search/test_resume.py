"""Searches that are killed or interrupted, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from search_helpers import BASE, plan_of, write

from m3dist import config as configs
from m3dist.search import driver


def _command(path: Path, *extra: str) -> subprocess.Popen:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-c", "from m3dist.cli.main import main; main()", "tune", str(path), *extra],
        env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def _wait_for(true: Callable[[], bool], process: subprocess.Popen) -> None:
    until = time.monotonic() + 150
    while not true():
        assert time.monotonic() < until, "the search hung"
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


def _events(log: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last one may be under way."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _finished(log: Path) -> set[str]:
    return {e["trial"] for e in _events(log) if e["event"] == "ended" and e["status"] == "finished"}


def _under_way(events: list[dict[str, Any]]) -> dict[str, int]:
    """Trials that have not ended, and the last step of stage 3 that they told of."""
    ended = {e["trial"] for e in events if e["event"] == "ended"}
    told = [e for e in events if e["event"] == "result" and e["stage"] == "merge"]
    return {e["trial"]: e["step"] for e in told if e["trial"] not in ended}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_search_goes_on_and_finds_the_same(ray_here: None, tmp_path: Path) -> None:
    long = {**BASE, "merge": {"epochs": 40, "batch_size": 256, "evaluate_every": 1, "patience": 0}}
    settings: dict[str, Any] = {"budget": {"trials": 10}, "scheduler": {"kind": "fifo"}, "concurrency": 2, "base": long}
    whole = driver.run(plan_of(tmp_path / "whole", **settings), quiet=True)
    path = write(tmp_path / "killed", **settings)
    log = tmp_path / "killed" / "s" / "trials.jsonl"
    process = _command(path)
    _wait_for(lambda: len(_finished(log)) >= 4 and any(n >= 10 for n in _under_way(_events(log)).values()), process)
    process.kill()
    process.wait()
    before = _events(log)
    finished, under_way = _finished(log), _under_way(before)
    assert 4 <= len(finished) < 10
    second = _command(path)
    assert second.wait(400) == 0, second.stderr and second.stderr.read()
    after = _events(log)[len(before) :]
    started = Counter(e["trial"] for e in after if e["event"] == "started")
    assert not set(started) & finished
    for trial, step in under_way.items():  # goes on from a checkpoint, which is written after an epoch was told
        first = next(e for e in after if e["event"] == "result" and e["trial"] == trial)
        assert (first["stage"], first["step"] >= step) == ("merge", True)
    summary = json.loads((tmp_path / "killed" / "s" / "summary.json").read_text())
    assert summary["trials"] == {"finished": 10}
    assert summary["best"]["values"] == whole["best"]["values"]
    assert summary["best"]["validation"] == pytest.approx(whole["best"]["validation"], rel=1e-6)
    assert summary["test"] == whole["test"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_control_c_leaves_a_usable_state(tmp_path: Path) -> None:
    path = write(tmp_path, budget={"trials": 1000}, scheduler={"kind": "fifo"})  # more than fit before the signal
    log = tmp_path / "s" / "trials.jsonl"
    for number, least in ((signal.SIGTERM, 1), (signal.SIGINT, 2)):  # a cluster stops jobs by SIGTERM
        process = _command(path)
        _wait_for(lambda n=least: len(_finished(log)) >= n, process)  # type: ignore[misc]
        if number == signal.SIGINT:
            other = _command(path)
            assert other.wait(100) == 2
            assert "is running already" in (other.stderr.read() if other.stderr else "")
        process.send_signal(number)
        assert process.wait(100) == 130
    done = _finished(log)
    rows = pq.read_table(tmp_path / "s" / "search.parquet").to_pylist()
    assert done <= {row["id"] for row in rows}
    best = max((row for row in rows if row["measured"] == "merge"), key=lambda row: row["metric"])
    assert configs.load(tmp_path / "s" / "best.yaml").merge.lr == best["value.merge.lr"]
    assert not (tmp_path / "s" / "summary.json").exists()
    n = len(rows) + 1
    again = _command(path, f"budget.trials={n}")
    assert again.wait(300) == 0, again.stderr and again.stderr.read()
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert (summary["trials"], set(summary["final"])) == ({"finished": n}, {"0"})
