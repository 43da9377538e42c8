"""Ray metrics of a run, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from parallel_helpers import SMALL, small

from m3dist import pipeline
from m3dist.distributed import metrics

DASHBOARD = Path(__file__).parents[2] / "cluster/grafana.json"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[tuple, float]:
    """Values by (metric, tags) in place of Ray's own."""
    values: dict[tuple, float] = {}

    class Fake:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]):
            self.name, self.tag_keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(self.tag_keys)
            values[self.name, *tags.values()] = value

        def inc(self, value: float, tags: dict[str, str]) -> None:
            self.set(values.get((self.name, *tags.values()), 0) + value, tags)

    monkeypatch.setattr("ray.util.metrics.Gauge", Fake)
    monkeypatch.setattr("ray.util.metrics.Counter", Fake)
    return values


def test_what_a_stage_logs_becomes_gauges(seen: dict[tuple, float]) -> None:
    run = metrics.RunMetrics("/runs/a")
    run.log("merge", 3, {"loss": 0.5, "interactions/s": 900.0, "workers": 2.0, "ndcg@10": 0.1, "other": 7.0})
    run.log("merge", 4, {"loss": 0.4, "workers": 2.0})
    run.failed()
    run.failed()
    assert seen == {
        ("m3dist_step", "/runs/a", "merge"): 4,
        ("m3dist_loss", "/runs/a", "merge"): 0.4,
        ("m3dist_interactions_per_second", "/runs/a", "merge"): 900.0,
        ("m3dist_workers", "/runs/a", "merge"): 2.0,
        ("m3dist_ranking", "/runs/a", "merge", "ndcg@10"): 0.1,
        ("m3dist_failures", "/runs/a"): 2,
    }


def test_a_run_in_a_process_that_is_connected_to_ray_sets_them_itself(
    ray_here: None, seen: dict[tuple, float], tmp_path: Path
) -> None:
    result = pipeline.run(small("model=ultragcn", f"out={tmp_path}"), quiet=True)
    assert seen["m3dist_step", str(tmp_path), "merge"] == 2
    assert seen["m3dist_ranking", str(tmp_path), "test", "ndcg@10"] == result["test"]["ndcg@10"]


def test_a_run_without_ray_does_not_load_it(tmp_path: Path) -> None:
    script = f"""
import sys
from m3dist import config, pipeline
pipeline.run(config.load(None, {[*SMALL, "model=ultragcn", f"out={tmp_path}"]}), quiet=True)
print([name for name in sys.modules if name.partition(".")[0] == "ray"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.stdout == "[]\n", done.stderr


def test_the_dashboard_shows_every_metric_and_no_other(seen: dict[tuple, Any]) -> None:
    run = metrics.RunMetrics("a")
    run.log("merge", 1, {"loss": 1.0, "interactions/s": 1.0, "workers": 1.0, "ndcg@10": 1.0})
    run.failed()
    known = {f"ray_{name}" for name, *_ in seen}  # the prefix is Ray's
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {re.match(r"\w+", expression)[0].removesuffix("_total") for expression in expressions}  # type: ignore[index]
    assert shown == known
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert all("$run" in expression for expression in expressions)
    assert {each["name"] for each in dashboard["templating"]["list"]} == {"datasource", "run"}
