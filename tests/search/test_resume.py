"""Searches that are killed or interrupted and go on, and trials whose processes are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from search_helpers import BASE, events, finished, plan_of, steps, write

from m3dist import config as configs
from m3dist.distributed import ray_train
from m3dist.search import driver
from m3dist.search.space import Plan
from m3dist.storage import leases

LONG = {**BASE, "merge": {**BASE["merge"], "epochs": 12, "batch_size": 256}}
SEARCH: dict[str, Any] = {"base": LONG, "scheduler": {"kind": "fifo"}, "concurrency": 1}


@contextmanager
def command(path: Path) -> Iterator[subprocess.Popen]:
    """`m3dist tune` in a process of its own on the tests' Ray; killed at the end where it still runs."""
    import ray

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    process = subprocess.Popen(
        [sys.executable, "-c", "from m3dist.cli.main import main; main()", "tune", str(path)],
        env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(true: Callable[[], bool], process: subprocess.Popen) -> None:
    until = time.monotonic() + 300
    while not true():
        assert time.monotonic() < until, "the search hung"
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Something done by a thread while the block runs; what goes wrong there is raised at the end."""
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act)
        try:
            yield
        finally:
            acting.result(120)


def runs_a_trial(process: psutil.Process) -> bool:
    try:
        return "ImplicitFunc" in " ".join(process.cmdline())  # as Ray Tune calls a function that it runs
    except psutil.Error:  # gone, or about to be
        return False


def check_usable(plan: Plan) -> None:
    """What an interrupted search leaves: all trials that ended, and the best config so far."""
    rows = pq.read_table(plan.out / "search.parquet").to_pylist()
    assert {row["id"] for row in rows} == {e["trial"] for e in events(plan.out) if e["event"] == "proposed"}
    best = max((row for row in rows if row["measured"] == "merge"), key=lambda row: row["metric"])
    assert configs.load(plan.out / "best.yaml").merge.lr == best["value.merge.lr"]
    assert not (plan.out / "summary.json").exists()


def check_went_on(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """No trial that had ended starts again; one that was under way goes on from a checkpoint.

    A checkpoint is written after its epoch was told, so the first step that is told again is at most one back.
    """
    ended = {e["trial"] for e in before if e["event"] == "ended"}
    started = Counter(e["trial"] for e in after if e["event"] == "started")
    assert not set(started) & ended
    under_way = steps(before)
    assert len(under_way) == 1
    for trial, step in under_way.items():
        first = next(e for e in after if e["event"] == "result" and e["trial"] == trial)
        assert (first["stage"], first["step"] >= step) == ("merge", True)


@pytest.mark.timeout(900)
def test_a_search_that_was_stopped_and_killed_goes_on_and_finds_the_same(ray_here: None, tmp_path: Path) -> None:
    settings = {**SEARCH, "budget": {"trials": 3}, "final_seeds": []}
    path, plan = write(tmp_path / "stopped", **settings), plan_of(tmp_path / "stopped", **settings)

    def under_way(step: int, ended: int) -> bool:
        """Whether so many trials ended and another is at this step of stage 3."""
        return len(finished(plan.out)) == ended and max(steps(events(plan.out)).values(), default=-1) >= step

    def stop() -> None:
        while not under_way(step=4, ended=0):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)  # as a cluster stops jobs; SIGINT of Ctrl-C has the same handler

    with meanwhile(stop), pytest.raises(KeyboardInterrupt):
        driver.run(plan, quiet=True)
    check_usable(plan)
    stopped_at = events(plan.out)

    with command(path) as process:
        wait_for(lambda: under_way(step=4, ended=1), process)
        process.kill()
        process.wait()
    killed_at = events(plan.out)
    check_went_on(stopped_at, killed_at[len(stopped_at) :])

    summary = driver.run(plan, quiet=True)
    check_went_on(killed_at, events(plan.out)[len(killed_at) :])
    assert summary["trials"] == {"finished": 3}
    whole = driver.run(plan_of(tmp_path / "whole", **settings), quiet=True)
    assert summary["best"]["values"] == whole["best"]["values"]
    assert summary["best"]["validation"] == pytest.approx(whole["best"]["validation"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_says_so(ray_here: None, tmp_path: Path, number: int) -> None:
    plan = plan_of(tmp_path, budget={"trials": 1000}, **SEARCH)
    with command(tmp_path / "search.yaml") as process:
        wait_for(lambda: len(finished(plan.out)) == 1, process)
        process.send_signal(number)
        assert process.wait(100) == 130
    check_usable(plan)


@pytest.mark.timeout(900)
def test_a_trial_whose_process_dies_goes_on_and_is_given_up_in_the_end(
    ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the system kills a process that takes too much memory."""
    plan = plan_of(tmp_path, budget={"trials": 2}, retries=1, final_seeds=[], **SEARCH)
    told: list[list[dict[str, Any]]] = []  # what was known at each kill

    def kill_twice() -> None:
        for _ in range(2):
            known = len(told[-1]) if told else 0
            while steps(events(plan.out)[known:]).get("t0000", 0) < 4:
                time.sleep(0.01)
            trials = [child for child in psutil.Process().children(recursive=True) if runs_a_trial(child)]
            assert trials
            for process in trials:
                process.kill()
            psutil.wait_procs(trials, timeout=20)
            told.append(events(plan.out))

    with meanwhile(kill_twice):
        summary = driver.run(plan)
    said = capsys.readouterr().err
    assert said.count("t0000: its process died") == 1
    assert "t0000 failed" in said
    assert "Traceback" not in said
    assert summary["trials"] == {"failed": 1, "finished": 1}
    check_went_on(told[0], events(plan.out)[len(told[0]) :])
    rows = {row["id"]: row for row in pq.read_table(plan.out / "search.parquet").to_pylist()}
    assert rows["t0000"]["status"] == "failed"
    assert "died" in rows["t0000"]["reason"]
    assert summary["best"]["trial"] == "t0001"


def test_a_search_that_runs_is_not_run_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT", 0.3)
    monkeypatch.setattr(leases, "EXPIRY", 2.0)
    plan, refused = plan_of(tmp_path), threading.Event()

    def connect() -> None:
        """The first run gets so far, and no further than until the second one was refused."""
        assert refused.wait(60)
        raise ConnectionError

    monkeypatch.setattr(ray_train, "connect", connect)

    def first() -> None:
        with pytest.raises(ConnectionError):
            driver.run(plan, quiet=True)

    with meanwhile(first):
        while not (plan.out / "leases" / "owner.json").exists():
            time.sleep(0.01)
        with pytest.raises(ValueError, match=rf"/s: process {os.getpid()} on .*, started 20.* works there"):
            driver.run(plan, quiet=True)
        refused.set()
