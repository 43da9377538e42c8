"""Experiment trackers, offline: what they hold of a small run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from m3dist import config as configs
from m3dist import pipeline
from m3dist.config import ConfigError

SMALL = [
    "model=ultragcn", "synthetic.users=60", "synthetic.items=50", "synthetic.interactions=20", "backbone.dim=8",
    "backbone.negatives=16", "merge.epochs=2", "merge.evaluate_every=1",
]  # fmt: skip


def run(out: Path, tracker: str) -> dict:
    return pipeline.run(configs.load(None, [*SMALL, f"out={out}", f"report_to=[{tracker}]"]), quiet=True)


def test_mlflow_holds_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlflow")
    result = run(tmp_path / "run", "mlflow")
    (found,) = mlflow.MlflowClient().search_runs(["0"])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/ndcg_at_10"] == pytest.approx(result["test"]["ndcg@10"])
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "merge/loss")
    assert [point.step for point in history] == [0, 1]
    assert found.data.params == {"model": "ultragcn", "data": result["data"]}


def test_wandb_holds_the_result_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    kept: dict = {}
    finish = wandb.finish

    def ended() -> None:
        kept.update(wandb.run.summary)
        finish()

    monkeypatch.setattr(wandb, "finish", ended)
    result = run(tmp_path / "run", "wandb")
    assert kept["test/ndcg@10"] == pytest.approx(result["test"]["ndcg@10"])
    assert kept["merge/epoch"] == 1
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_a_missing_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r'report_to: wandb is not installed; run `pip install "m3dist\[wandb\]"`'):
        run(tmp_path / "run", "wandb")
    with pytest.raises(ConfigError, match="report_to"):
        run(tmp_path / "run", "comet")
