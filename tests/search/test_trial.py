"""One trial: what it reads and reports, and how it ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from search_helpers import plan_of

from m3dist.data.dataset import Dataset
from m3dist.search import space, trial
from m3dist.training.callbacks import Stopped


def job_of(plan: space.Plan, values: dict, name: str = "t0000") -> trial.Job:
    config = plan.config(values).model_copy(update={"out": str(plan.out / "trials" / name)})
    return trial.Job(trial=name, config=config, metric=plan.metric, mode="max", share=True)


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
    assert heard[-1]["epochs"] == end["epochs"] == 4 + 1 + 4
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
    assert sum(end["epochs"] for end in ends.values()) == 3 * 4 + 4 + 1


def test_a_stopped_trial_gives_its_stage_up(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    job = job_of(plan, {})

    def stop(values: dict) -> None:
        if values["step"] == 1:
            Path(job.config.out, "stop").write_text("enough\n")

    end = trial.run(job, stop)
    assert (end["status"], end["epochs"]) == ("stopped", 2)
    again = trial.run(job_of(plan, {"merge.lr": 0.1}, "t0001"), lambda values: None)
    assert (again["status"], again["reused"]) == ("finished", [])


def test_a_trial_hears_in_a_race_that_it_should_end(tmp_path: Path) -> None:
    """Whose candidates are stages of no plan, and whose epochs are not counted."""
    job = job_of(plan_of(tmp_path), {})
    told: list[dict] = []
    watch = trial.Watch(job, told.append)
    watch.on_epoch("race ultragcn", 0, {"loss": 1.0})
    Path(job.config.out).mkdir(parents=True)
    Path(job.config.out, "stop").write_text("enough\n")
    with pytest.raises(Stopped):
        watch.on_epoch("race ultragcn", 1, {"loss": 1.0})
    assert (told, watch.epochs) == ([], 0)


def test_a_diverging_trial_says_why(tmp_path: Path) -> None:
    end = trial.run(job_of(plan_of(tmp_path), {"align.lr": 1e30}), lambda values: None)
    assert end["status"] == "failed"
    assert end["reason"].startswith("FloatingPointError: align: the loss is")
