"""Whole searches on small planted data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from search_helpers import BASE, LATE, events, plan_of

from m3dist import config as configs
from m3dist.search import driver

ONE: dict[str, Any] = {"concurrency": 1, "final_seeds": []}  # one trial at a time, and no final test


@pytest.mark.timeout(900)
def test_trials_share_stages_and_the_best_config_is_tested_once(ray_here: None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, space=LATE, budget={"trials": 6}, scheduler={"kind": "fifo"}, final_seeds=[0, 1])
    summary = driver.run(plan, quiet=True)
    assert summary["trials"] == {"finished": 6}
    rows = pq.read_table(plan.out / "search.parquet").to_pylist()
    assert len(rows) == 6
    gammas = {row["value.invariance.gamma"] for row in rows}
    trained = {stage: sum(stage not in row["reused"] for row in rows) for stage in plan.stages}
    assert trained == {"align": 1, "invariance": len(gammas), "merge": 6}
    assert summary["reuse"]["stages"] == {"align": 5, "invariance": 6 - len(gammas)}
    assert summary["reuse"]["epochs"] == 5 * 4 + (6 - len(gammas))
    assert sum(row["epochs"] for row in rows) == 4 + len(gammas) + 6 * 4
    best = max(rows, key=lambda row: row["metric"])
    assert (best["id"], best["metric"]) == (summary["best"]["trial"], summary["best"]["validation"])
    assert {path.name for path in (plan.out / "plots").iterdir()} == {"history.png", "importance.png", "parallel.png"}
    assert configs.load(plan.out / "best.yaml").merge.lr == best["value.merge.lr"]
    assert set(summary["final"]) == {"0", "1"}
    assert summary["final"]["0"]["validation"][plan.metric] == pytest.approx(best["metric"], rel=1e-6)
    again = driver.run(plan, quiet=True)  # everything is known: nothing is trained or tested again
    assert (again["final"], again["trials"]) == (summary["final"], {"finished": 6})
    assert sorted(e["seed"] for e in events(plan.out) if e["event"] == "final") == [0, 1]  # they end in any order


@pytest.mark.timeout(900)
def test_failures_and_rungs_end_trials_and_not_the_search(ray_here: None, tmp_path: Path) -> None:
    given = {"align.lr": {"choice": [1e30, 0.03]}, "merge.lr": {"log_uniform": [1e-4, 1e-1]}}
    plan = plan_of(tmp_path, space=given, budget={"trials": 7}, scheduler={"grace": 1, "reduction": 2}, **ONE)
    summary = driver.run(plan, quiet=True)
    rows = pq.read_table(plan.out / "search.parquet").to_pylist()
    by_status = {status: [row for row in rows if row["status"] == status] for status in summary["trials"]}
    assert set(by_status) == {"finished", "stopped", "failed"}
    for row in by_status["failed"]:
        assert row["reason"].startswith("FloatingPointError")
        assert row["value.align.lr"] == 1e30
    assert all(row["reason"].startswith("rung at epoch") for row in by_status["stopped"])
    assert summary["best"]["values"]["align.lr"] == 0.03


@pytest.mark.timeout(900)
def test_a_budget_of_epochs_ends_the_search(ray_here: None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, budget={"epochs": 25}, scheduler={"kind": "fifo"}, **ONE)
    summary = driver.run(plan, quiet=True)
    assert summary["reuse"]["epochs_trained"] == 25
    assert set(summary["trials"]) == {"finished", "cut"}
    assert summary["trials"]["cut"] == 1
    assert summary["best"]["status"] == "finished"


@pytest.mark.timeout(600)
def test_a_folder_of_something_else_is_left_alone(ray_here: None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, base={**BASE, "data": str(plan_of(tmp_path / "other").base.data)})
    plan.out.mkdir()
    (plan.out / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no search"):
        driver.run(plan, quiet=True)
    assert [path.name for path in plan.out.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_of_two_workers_on_two_cores_finish(ray_here: None, tmp_path: Path) -> None:
    base = {**BASE, "workers": 2}
    plan = plan_of(tmp_path, base=base, budget={"trials": 4}, scheduler={"grace": 1, "reduction": 2})
    summary = driver.run(plan, quiet=True)
    assert set(summary["trials"]) == {"finished", "stopped"}
    assert sum(summary["trials"].values()) == 4
    import ray
    from ray.util import placement_group_table

    assert [g for g in placement_group_table().values() if g["state"] not in ("REMOVED",)] == []
    assert ray.available_resources().get("CPU") == 2
