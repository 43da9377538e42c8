"""Whole searches on small planted data."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from search_helpers import BASE, LATE, plan_of

from m3dist import config as configs
from m3dist.search import driver


@pytest.mark.timeout(300)
def test_twelve_trials_over_late_values_train_stage_one_once(ray_here: None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, space=LATE, budget={"trials": 12}, scheduler={"kind": "fifo"}, final_seeds=[0, 1])
    summary = driver.run(plan, quiet=True)
    assert summary["trials"] == {"finished": 12}
    claimed = Counter(path.name.split("-")[0] for path in (plan.out / "artifacts" / "claims").glob("*.json"))
    assert claimed["align"] == 1
    gammas = {row["value.invariance.gamma"] for row in pq.read_table(plan.out / "search.parquet").to_pylist()}
    assert claimed["invariance"] == len(gammas)
    assert claimed["merge"] == 12
    assert summary["reuse"]["stages"]["align"] == 11
    assert summary["reuse"]["epochs"] == 11 * 4 + (12 - len(gammas)) * 2
    rows = pq.read_table(plan.out / "search.parquet").to_pylist()
    assert len(rows) == 12
    best = max(rows, key=lambda row: row["metric"])
    assert (best["id"], best["metric"]) == (summary["best"]["trial"], summary["best"]["validation"])
    assert set(summary["final"]) == {"0", "1"}
    assert {path.name for path in (plan.out / "plots").iterdir()} == {"budget.png", "importance.png", "parallel.png"}
    trained = configs.load(plan.out / "best.yaml")
    assert trained.merge.lr == best["value.merge.lr"]
    assert summary["final"]["0"]["validation"][plan.metric] == pytest.approx(best["metric"], rel=1e-6)
    again = driver.run(plan, quiet=True)  # everything is known: nothing is trained or tested again
    assert again["final"] == summary["final"]
    assert again["trials"] == {"finished": 12}


@pytest.mark.timeout(300)
def test_failures_and_rungs_end_trials_and_not_the_search(ray_here: None, tmp_path: Path) -> None:
    given = {"align.lr": {"choice": [1e30, 0.03]}, "merge.lr": {"log_uniform": [1e-4, 1e-1]}}
    plan = plan_of(tmp_path, space=given, budget={"trials": 8}, scheduler={"grace": 1, "reduction": 2})
    summary = driver.run(plan, quiet=True)
    rows = pq.read_table(plan.out / "search.parquet").to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed
    assert all(row["reason"].startswith("FloatingPointError") and row["value.align.lr"] == 1e30 for row in failed)
    assert summary["trials"].get("stopped", 0) > 0
    assert all("rung" in row["reason"] for row in rows if row["status"] == "stopped")
    assert summary["best"]["values"]["align.lr"] == 0.03


@pytest.mark.timeout(300)
def test_budget_of_epochs_ends_the_search(ray_here: None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, budget={"epochs": 40}, scheduler={"kind": "fifo"})
    summary = driver.run(plan, quiet=True)
    assert 40 <= summary["reuse"]["epochs_trained"] <= 40 + 2 * 3  # what two trials report before they look
    assert summary["best"] is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_trials_of_two_workers_on_two_cores_finish(ray_here: None, tmp_path: Path) -> None:
    base = {**BASE, "workers": 2}
    plan = plan_of(tmp_path, base=base, budget={"trials": 8}, scheduler={"grace": 1, "reduction": 2})
    summary = driver.run(plan, quiet=True)
    assert sum(summary["trials"].values()) == 8
    assert summary["trials"].get("failed", 0) == 0
    assert summary["trials"].get("stopped", 0) > 0
    import ray
    from ray.util import placement_group_table

    assert [g for g in placement_group_table().values() if g["state"] not in ("REMOVED",)] == []
    assert ray.available_resources().get("CPU") == 2


@pytest.mark.timeout(120)
def test_a_trial_that_never_fits_is_refused(ray_here: None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, base={**BASE, "workers": 3})
    with pytest.raises(ValueError, match="a trial needs 3 CPU and the cluster has 2"):
        driver.run(plan, quiet=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_trial_whose_process_dies_is_tried_again_and_then_given_up(ray_here: None, tmp_path: Path) -> None:
    """As the system kills a process that takes too much memory."""
    base = {**BASE, "merge": {"epochs": 60, "batch_size": 128, "evaluate_every": 1, "patience": 0}}
    plan = plan_of(tmp_path, base=base, budget={"trials": 3}, scheduler={"kind": "fifo"}, retries=1)
    over, killed = threading.Event(), []

    def kill() -> None:
        while not over.is_set() and len(killed) < 2:
            told = sorted((plan.out / "trials" / "t0000" / "claims").glob("trial.*.json"))
            for path in told:
                pid = json.loads(path.read_text())["pid"]
                if pid not in killed:
                    time.sleep(0.5)  # in the middle of its work
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        summary = driver.run(plan, quiet=True)
    finally:
        over.set()
        thread.join()
    assert len(killed) == 2
    assert summary["trials"] == {"failed": 1, "finished": 2}
    rows = {row["id"]: row for row in pq.read_table(plan.out / "search.parquet").to_pylist()}
    assert rows["t0000"]["status"] == "failed"
    assert "died" in rows["t0000"]["reason"]
    assert summary["best"]["trial"] != "t0000"
