"""What trials need of the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from search_helpers import BASE, plan_of

from m3dist.search import resources


def test_a_trial_needs_what_its_process_its_workers_and_its_actors_need(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, base={**BASE, "workers": 2, "actors": 1, "actor_resources": {"CPU": 0.5}})
    assert [bundle.get("CPU", 0) for bundle in resources.bundles(plan.base)] == [0, 0.5]
    assert resources.total(plan.base)["CPU"] == 2.5


def test_as_many_trials_run_at_once_as_fit_and_are_asked_for(ray_here: None, tmp_path: Path) -> None:
    assert resources.concurrency(plan_of(tmp_path / "auto")) == 2
    assert resources.concurrency(plan_of(tmp_path / "one", concurrency=1)) == 1
    assert resources.concurrency(plan_of(tmp_path / "many", concurrency=9)) == 2
    with pytest.raises(ValueError, match="a trial needs 3 CPU and the cluster has 2"):
        resources.concurrency(plan_of(tmp_path / "large", base={**BASE, "workers": 3}))


def test_trials_take_gpus_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial's process sees no GPU that it did not ask Ray for."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0, "memory": 1e12})

    def asked(name: str, **values: Any) -> tuple[dict[str, float], int, bool]:
        plan = plan_of(tmp_path / name, base={**BASE, **values})
        (own,) = resources.bundles(plan.base)
        return own, resources.concurrency(plan), resources.settled(plan.base).use_gpu is True

    assert asked("auto") == ({"CPU": 1, "GPU": 1}, 2, True)
    assert asked("shared", resources_per_worker={"GPU": 0.25}) == ({"CPU": 1, "GPU": 0.25}, 8, True)
    assert asked("cores", use_gpu=False, resources_per_worker={"CPU": 2}) == ({"CPU": 2}, 4, False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "memory": 1e12})
    assert asked("none") == ({"CPU": 1}, 8, False)


def test_only_a_lone_trial_has_several_threads(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert (resources.threads(plan, 1), resources.threads(plan, 2)) == (2, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert resources.threads(plan, 1) == 1
