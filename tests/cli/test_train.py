"""`m3dist train`: what it refuses, and what it shows instead of training."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import call
from small_runs import SMALL

from m3dist.data.writer import Writer


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("align.lrr=1", "did you mean align.lr"),
        ("merge.epochs=-1", "merge.epochs"),
        ("evaluation.metric=ndcg@7", "evaluation.k"),
        ("data=/nowhere", "not a prepared data set"),
        ("nonsense", "no such file"),
    ],
)
def test_bad_input_is_one_clear_error(
    argument: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", argument, f"out={tmp_path / 'run'}") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["m3-invrl", "invrl", "mmgcn"])
def test_ids_alone_are_not_enough(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Writer(tmp_path / "ids") as out:
        pair = np.zeros(1, np.int32)
        out.interactions(2, 3, {"train": (pair, pair), "val": (pair, pair + 1), "test": (pair, pair + 2)})
        out.finish()
    assert call("train", f"data={tmp_path / 'ids'}", f"out={tmp_path / 'run'}", f"model={model}") == 2
    said = capsys.readouterr().err
    assert model in said
    assert "features" in said
    assert "use model=ultragcn" in said


def test_it_trains_and_says_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my run"
    assert call("train", *SMALL, "model=ultragcn", f"out={out}") == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert ["tensorboard", "--logdir", f"{out}/tb"] in commands
    assert ["m3dist", "recommend", str(out), "--out", "top.parquet"] in commands
    assert (out / "result.json").is_file()


def test_dry_run_and_print_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--dry-run", *SMALL, f"out={tmp_path}") == 0
    assert "total" in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()
    assert call("train", "--print-config", "seed=3") == 0
    assert "seed: 3" in capsys.readouterr().out
