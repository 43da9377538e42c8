"""Searches: what a file may say, which trials go on, who trains a stage, and whole searches on small planted data."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from m3dist import config as configs
from m3dist.cli import main
from m3dist.data.dataset import Dataset
from m3dist.search import driver, proposals, report, space, trial
from m3dist.search.claims import Claims
from m3dist.search.ledger import Ledger
from m3dist.search.rungs import Clock, Rungs

TUNE = Path(__file__).parent.parent / "tune"
BASE: dict[str, Any] = {
    "synthetic": {"users": 90, "items": 70, "interactions": 16},
    "backbone": {"dim": 8, "content_dim": 8, "negatives": 16},
    "align": {"epochs": 4, "batch_size": 512, "dim": 16, "evaluate_every": 1, "patience": 0},
    "invariance": {
        "rounds": 1, "environments": 2, "batch_size": 512, "negatives": 16, "environment_epochs": 1, "mask_epochs": 1,
    },
    "merge": {"epochs": 4, "batch_size": 512, "evaluate_every": 1, "patience": 0},
    "evaluation": {"k": [5, 10]},
}  # fmt: skip
SPACE: dict[str, Any] = {
    "align.lr": {"log_uniform": [1e-3, 1e-1]},
    "invariance.gamma": {"choice": [0.01, 0.1, 1.0]},
    "merge.lr": {"log_uniform": [1e-3, 1e-1]},
}
LATE = {name: SPACE[name] for name in ("invariance.gamma", "merge.lr")}


def write(folder: Path, **search: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"base": BASE, "space": SPACE, "budget": {"trials": 4}, "final_seeds": [0], "out": str(folder / "s")}
    path = folder / "search.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(given | search)))
    return path


def plan_of(folder: Path, **search: Any) -> space.Plan:
    return space.load(write(folder, **search))


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


# the search file


def test_the_papers_grid(tmp_path: Path) -> None:
    plan = space.load(TUNE / "paper.yaml", [f"out={tmp_path}", *_small_synthetic()])
    assert plan.size == 337_500
    assert plan.base.invariance.rounds == 5
    for fit in (plan.base.align, plan.base.merge):
        assert (fit.batch_size, fit.epochs) == (512, 200)
    config = plan.config({"learning_rate": 0.0001, "align.tau": 5})
    assert (config.align.lr, config.merge.lr, config.align.tau) == (0.0001, 0.0001, 5)


@pytest.mark.parametrize("name", ["quick.yaml", "ml1m.yaml"])
def test_shipped_searches_are_valid(name: str, tmp_path: Path) -> None:
    space.load(TUNE / name, [f"out={tmp_path}", "data=synthetic", *_small_synthetic()])


def _small_synthetic() -> list[str]:
    return ["synthetic.users=60", "synthetic.items=50", "synthetic.interactions=12"]


def test_all_problems_of_a_search_file_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base={"align": {"epoch": 3}},
        space={"align.lr": {"unifrom": [0, 1]}},
        sheduler={"kind": "asha"},
        budget={},
    )
    with pytest.raises(configs.ConfigError) as error:
        space.load(path)
    said = str(error.value)
    for part in ("align.epoch: unknown key; did you mean align.epochs", "space.align.lr.unifrom: unknown key",
                 "sheduler: unknown key; did you mean scheduler"):  # fmt: skip
        assert part in said
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"space": {"align.lrr": {"choice": [1, 2]}}}, "did you mean align.lr"),
        ({"space": {"align.lr": {"choice": [0.1, -1.0]}}}, "greater than 0, got -1.0"),
        ({"space": {"align.lr": {"uniform": [1, 0.1]}}}, "low < high"),
        ({"space": {"align.lr": {"uniform": [0.1, 1], "choice": [1]}}}, "exactly one of"),
        ({"space": {"seed": {"choice": [1, 2]}}}, "must be the same in all trials"),
        ({"space": {"align.lr": {"choice": [0.1, 0.2], "when": {"align.tau": 1}}}}, "not in the space"),
        ({"space": {"autoscaling": {"choice": [True, False]}}}, "changes nothing that is trained"),
        ({"budget": {}}, "at least one of trials, epochs and minutes"),
        ({"searcher": "grid"}, "searcher=grid needs grid or choice"),
        ({"metric": "ndcg@7"}, "evaluation.k"),
        ({"base": {"data": "/nowhere"}}, "not a prepared data set"),
    ],
)
def test_bad_searches_are_one_clear_error(
    search: dict, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("tune", str(write(tmp_path, **search))) == 2
    assert says in capsys.readouterr().err


def test_overrides_reach_the_search_or_its_base(tmp_path: Path) -> None:
    plan = space.load(write(tmp_path), ["budget.trials=9", "align.epochs=3", "base.seed=5", "seed=7"])
    assert (plan.search.budget.trials, plan.base.align.epochs, plan.base.seed, plan.search.seed) == (9, 3, 5, 7)


def test_conditions_hold_in_draws_and_grids(tmp_path: Path) -> None:
    given = {
        "invariance.gate": {"choice": ["sigmoid", "hard_sigmoid"]},
        "invariance.gate_noise": {"choice": [0.1, 0.2, 0.3], "when": {"invariance.gate": "hard_sigmoid"}},
    }
    plan = plan_of(tmp_path, space=given)
    points = list(space.grid(plan.space))
    assert len(points) == 1 + 3
    rng = np.random.default_rng(0)
    for values in [*points, *(space.draw(plan.space, dict.fromkeys(given, rng)) for _ in range(50))]:
        assert ("invariance.gate_noise" in values) == (values["invariance.gate"] == "hard_sigmoid")


def test_dimensions_know_the_first_stage_that_they_change(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, space={**SPACE, "backbone.nu": {"choice": [0.0, 0.1]}})
    assert plan.stage == {
        "align.lr": "align", "invariance.gamma": "invariance", "merge.lr": "merge", "backbone.nu": "align",
    }  # fmt: skip
    assert list(plan.space)[:2] == ["align.lr", "backbone.nu"]


# who goes on


def _clock(tmp_path: Path) -> Clock:
    return Clock(plan_of(tmp_path).extremes())


def test_positions_count_epochs_through_all_stages(tmp_path: Path) -> None:
    clock = _clock(tmp_path)
    assert clock.length == {"align": 4, "invariance": 2, "merge": 4}
    assert clock.position("merge", clock.epoch("merge", 0)) == 4 + 2 + 1


def test_rungs_compare_within_a_stage_only(tmp_path: Path) -> None:
    rungs = Rungs(_clock(tmp_path), "max", grace=2, reduction=2)
    assert rungs.milestones == {"align": [2, 4], "merge": [2, 4]}
    assert rungs.judge("a", "align", 2, 0.5) == ""
    assert rungs.judge("b", "align", 1, 0.1) == ""  # before the first rung
    assert rungs.judge("b", "align", 2, 0.4) == "rung at epoch 2 of align"
    assert rungs.judge("reuses", "merge", 2, 0.01) == ""  # first in merge: align's values do not count there
    assert rungs.judge("c", "merge", 2, 0.005) == "rung at epoch 2 of merge"
    assert rungs.judge("d", "invariance", 2, None) == ""


def test_a_stage_left_early_is_held_against_the_rungs_it_jumped(tmp_path: Path) -> None:
    rungs = Rungs(_clock(tmp_path), "max", grace=2, reduction=2)
    rungs.judge("a", "align", 2, 0.5)
    rungs.judge("a", "align", 4, 0.6)
    assert rungs.judge("b", "align", 3, 0.55) == ""
    assert rungs.judge("b", "invariance", 2, None) == "rung at epoch 4 of align"


def test_lower_is_better_when_asked(tmp_path: Path) -> None:
    rungs = Rungs(_clock(tmp_path), "min", grace=2, reduction=2)
    assert rungs.judge("a", "align", 2, 0.5) == ""
    assert rungs.judge("b", "align", 2, 0.4) == ""
    assert rungs.judge("c", "align", 2, 0.9) != ""


# who trains a stage


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


# what to try next


def test_random_proposals_are_fixed_by_the_seed_and_share_stages(tmp_path: Path) -> None:
    def points(folder: str, seed: int, siblings: int) -> list[dict]:
        plan = plan_of(tmp_path / folder, seed=seed, reuse={"siblings": siblings})
        ledger = Ledger(plan)
        source = proposals.of(plan, ledger)
        out = []
        for _ in range(8):
            proposal = source.next()
            assert proposal is not None
            out.append(proposal.values)
        ledger.close()
        return out

    first = points("a", 3, 4)
    assert first == points("b", 3, 4) != points("c", 4, 4)
    assert len({p["align.lr"] for p in first}) == 2
    assert len({p["merge.lr"] for p in first}) == 8
    assert len({p["align.lr"] for p in points("d", 3, 1)}) == 8


def test_proposals_wait_for_stages_in_training_and_pass_over_stopped_ones(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, reuse={"siblings": 3, "lookahead": 6})
    ledger = Ledger(plan)
    source = proposals.of(plan, ledger)

    def start() -> proposals.Proposal:
        proposal = source.next()
        assert proposal is not None
        name = f"t{len(ledger.trials)}"
        ledger.record("proposed", trial=name, index=proposal.index, values=proposal.values, keys=proposal.keys)
        ledger.record("started", trial=name)
        return proposal

    one, two = start(), start()
    assert one.keys["align"] != two.keys["align"]  # the sibling would wait, so another group goes first
    ledger.dead[one.keys["align"]] = "stopped"
    third = start()
    assert third.keys["align"] not in (one.keys["align"], two.keys["align"])
    store = proposals.Stages(plan, ledger).store
    store.save("align", two.keys["align"], {}, {})
    assert start().keys["align"] == two.keys["align"]
    ledger.close()


def test_a_grid_is_walked_once_with_the_first_stage_outermost(tmp_path: Path) -> None:
    given = {"merge.lr": {"grid": [0.1, 0.2]}, "align.lr": {"grid": [0.1, 0.2, 0.3]}}
    plan = plan_of(tmp_path, space=given, searcher="grid", reuse={"on": False})
    ledger = Ledger(plan)
    source, points = proposals.of(plan, ledger), []
    for _ in range(6):
        proposal = source.next()
        assert proposal is not None
        points.append(tuple(proposal.values.items()))
    with pytest.raises(StopIteration):
        source.next()
    assert len(points) == len(set(points)) == 6
    assert [dict(p)["align.lr"] for p in points] == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
    ledger.close()


def test_optuna_learns_from_the_ledger_and_shares_stages(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, searcher="optuna", startup=4, reuse={"siblings": 2})
    ledger = Ledger(plan)
    store = proposals.Stages(plan, ledger).store
    for n in range(12):
        proposal = proposals.of(plan, ledger).next()  # made anew: nothing is remembered but the ledger
        assert proposal is not None
        ledger.record("proposed", trial=f"t{n}", index=n, values=proposal.values, keys=proposal.keys)
        value = -abs(np.log(proposal.values["align.lr"]) - np.log(0.05))
        ledger.record("result", trial=f"t{n}", stage="merge", step=3, epochs=1, seconds=1.0, metric=value)
        ledger.record("ended", trial=f"t{n}", status="finished", metric=value)
        store.save("align", proposal.keys["align"], {}, {})
    groups = Counter(t.keys["align"] for t in ledger.trials.values())
    assert set(groups.values()) == {2}
    late = [abs(np.log(t.values["align.lr"] / 0.05)) for t in list(ledger.trials.values())[-4:]]
    early = [abs(np.log(t.values["align.lr"] / 0.05)) for t in list(ledger.trials.values())[:4]]
    assert np.mean(late) < np.mean(early)
    ledger.close()


# one trial


def job_of(plan: space.Plan, values: dict, name: str = "t0000", **extra: Any) -> dict:
    config = plan.config(values).model_copy(update={"out": str(plan.out / "trials" / name)})
    before = {"epochs": 0, "seconds": 0.0, "stage": "", "metric": None}
    return {
        "trial": name, "config": config.model_dump(mode="json"), "metric": plan.metric, "threads": 1, "mode": "max",
        "share": True, "before": before, **extra,
    }  # fmt: skip


def test_a_trial_reads_no_test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    read: list[str] = []
    real = Dataset.interactions
    monkeypatch.setattr(Dataset, "interactions", lambda self, split: (read.append(split), real(self, split))[1])
    heard: list[dict] = []
    end = trial.run(job_of(plan, {"align.lr": 0.01}), heard.append)
    assert end["status"] == "finished"
    assert set(read) == {"train", "val"}
    assert [h["stage"] for h in heard] == ["align"] * 4 + ["invariance"] + ["merge"] * 4
    assert heard[-1]["epochs"] == end["epochs"] == 4 + 2 + 4
    assert heard[-1]["value"] == max(h["value"] for h in heard if h["stage"] == "merge")


def test_concurrent_trials_train_a_shared_stage_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ends: dict[str, dict] = {}

    def one(name: str, rate: float) -> None:
        ends[name] = trial.run(job_of(plan, {"merge.lr": rate}, name), lambda values: None)

    threads = [threading.Thread(target=one, args=(f"t{n}", 0.01 * (n + 1))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {end["status"] for end in ends.values()} == {"finished"}
    assert sorted(tuple(end["reused"]) for end in ends.values()) == [
        (),
        ("align", "invariance"),
        ("align", "invariance"),
    ]
    assert sum(end["epochs"] for end in ends.values()) == 3 * 4 + 4 + 2
    keys, store = plan.keys({}), plan.out / "artifacts"
    assert trial.cost(store, "align", keys["align"])["epochs"] == 4
    assert trial.cost(store, "invariance", keys["invariance"])["epochs"] == 2


def test_a_stopped_trial_gives_its_stage_up(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    job = job_of(plan, {})

    def stop(values: dict) -> None:
        if values["step"] == 1:
            Path(job["config"]["out"], "stop").write_text("enough\n")

    end = trial.run(job, stop)
    assert (end["status"], end["epochs"]) == ("stopped", 2)
    again = trial.run(job_of(plan, {"merge.lr": 0.1}, "t0001"), lambda values: None)
    assert (again["status"], again["reused"]) == ("finished", [])


def test_a_diverging_trial_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m3dist import losses

    plan = plan_of(tmp_path)
    monkeypatch.setattr(losses, "positives", lambda score, weight: (score * float("nan")).sum())
    end = trial.run(job_of(plan, {}), lambda values: None)
    assert end["status"] == "failed"
    assert end["reason"].startswith("FloatingPointError: align: the loss is nan")


# whole searches


@pytest.fixture
def quiet_ray(ray_here: None) -> None:
    """The session's Ray instance."""


@pytest.mark.timeout(300)
def test_twelve_trials_over_late_values_train_stage_one_once(quiet_ray: None, tmp_path: Path) -> None:
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
def test_failures_and_rungs_end_trials_and_not_the_search(quiet_ray: None, tmp_path: Path) -> None:
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
def test_budget_of_epochs_ends_the_search(quiet_ray: None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, budget={"epochs": 40}, scheduler={"kind": "fifo"})
    summary = driver.run(plan, quiet=True)
    assert 40 <= summary["reuse"]["epochs_trained"] <= 40 + 2 * 3  # what two trials report before they look
    assert summary["best"] is not None


def test_a_folder_belongs_to_one_search(tmp_path: Path) -> None:
    Ledger(plan_of(tmp_path)).close()
    Ledger(plan_of(tmp_path, budget={"trials": 50}, concurrency=1)).close()  # these may change
    with pytest.raises(ValueError, match="belongs to another search"):
        Ledger(plan_of(tmp_path, space=LATE))


def test_the_ledger_remembers_rungs_and_drops_a_torn_line(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, scheduler={"grace": 2, "reduction": 2})
    ledger = Ledger(plan)
    for n, value in enumerate((0.5, 0.4)):
        keys = plan.keys({"align.lr": 0.01 * (n + 1)})
        ledger.record("proposed", trial=f"t{n}", index=n, values={"align.lr": 0.01 * (n + 1)}, keys=keys)
        ledger.record("started", trial=f"t{n}")
        ledger.record("result", trial=f"t{n}", stage="align", step=1, epochs=2, seconds=1.0, metric=value)
    assert ledger.trials["t1"].reason == "rung at epoch 2 of align"
    ledger.close()
    with (plan.out / "trials.jsonl").open("a") as file:
        file.write('{"event": "result", "tri')
    again = Ledger(plan)
    assert again.dead == ledger.dead != {}
    assert [t.status for t in again.trials.values()] == ["waiting", "waiting"]
    assert again.trials["t1"].reason == ledger.trials["t1"].reason
    assert again.epochs == 4
    again.close()


# killed, interrupted, distributed


def _command(path: Path, *extra: str) -> subprocess.Popen:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-c", "from m3dist.cli import main; main()", "tune", str(path), *extra],
        env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def _wait_for(path: Path, status: str, count: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + 150
    while time.monotonic() < until and process.poll() is None:
        if path.exists() and path.read_text().count(f'"status": "{status}"') >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"the search ended or hung: {process.stderr and process.poll()}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_search_goes_on_and_finds_the_same(quiet_ray: None, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"budget": {"trials": 10}, "scheduler": {"kind": "fifo"}, "concurrency": 2}
    whole = driver.run(plan_of(tmp_path / "whole", **settings), quiet=True)
    path = write(tmp_path / "killed", **settings)
    log = tmp_path / "killed" / "s" / "trials.jsonl"
    process = _command(path)
    _wait_for(log, "finished", 4, process)
    process.kill()
    process.wait()
    before = [json.loads(line) for line in log.read_text().splitlines()]
    finished = {e["trial"]: e["metric"] for e in before if e["event"] == "ended"}
    assert 4 <= len(finished) < 10
    second = _command(path)
    assert second.wait(400) == 0, second.stderr and second.stderr.read()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    started = Counter(e["trial"] for e in events[len(before) :] if e["event"] == "started")
    assert not set(started) & set(finished)
    summary = json.loads((tmp_path / "killed" / "s" / "summary.json").read_text())
    assert summary["trials"] == {"finished": 10}
    assert summary["best"]["values"] == whole["best"]["values"]
    assert summary["best"]["validation"] == pytest.approx(whole["best"]["validation"], rel=1e-6)
    assert summary["test"] == whole["test"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_control_c_leaves_a_usable_state(tmp_path: Path) -> None:
    path = write(tmp_path, budget={"trials": 6}, scheduler={"kind": "fifo"}, base={**BASE, "merge": {"epochs": 40}})
    process = _command(path)
    log = tmp_path / "s" / "trials.jsonl"
    _wait_for(log, "finished", 1, process)
    other = _command(path)
    assert other.wait(100) == 2
    assert "is running already" in (other.stderr.read() if other.stderr else "")
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130
    done = log.read_text().count('"status": "finished"')
    again = _command(path)
    assert again.wait(300) == 0, again.stderr and again.stderr.read()
    assert log.read_text().count('"status": "finished"') == 6 > done


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_trials_of_two_workers_on_two_cores_finish(quiet_ray: None, tmp_path: Path) -> None:
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
def test_a_trial_that_never_fits_is_refused(quiet_ray: None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, base={**BASE, "workers": 3})
    with pytest.raises(ValueError, match="a trial needs 3 CPU and the cluster has 2"):
        driver.run(plan, quiet=True)


def test_importance_names_the_value_that_matters(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ledger = Ledger(plan)
    rng = np.random.default_rng(0)
    for n in range(40):
        values = space.draw(plan.space, dict.fromkeys(plan.space, rng))
        metric = -abs(np.log(values["merge.lr"] / 0.01)) + 0.01 * rng.standard_normal()
        ledger.record("proposed", trial=f"t{n}", index=n, values=values, keys=plan.keys(values))
        ledger.record("result", trial=f"t{n}", stage="merge", step=3, epochs=1, seconds=1.0, metric=metric)
        ledger.record("ended", trial=f"t{n}", status="finished", metric=metric)
    shares = report.importance(plan, ledger)
    assert max(shares, key=lambda name: shares[name]) == "merge.lr"
    ledger.close()
