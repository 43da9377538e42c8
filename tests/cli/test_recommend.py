"""`m3dist evaluate` and `m3dist recommend` on a finished run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_helpers import call

from m3dist.serving.run import Run
from m3dist.storage.folders import Folder


def test_evaluate_prints_what_training_measured(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", finished_run) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = {name: float(value) for name, value in (re.split("  +", line) for line in lines)}
    measured = json.loads((finished_run / "result.json").read_text())["test"]
    assert printed == pytest.approx(measured, abs=1e-6)


def test_evaluate_keeps_long_names_apart_from_values(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Run, "evaluate", lambda run, split: {"hit@5": 0.25, "ndcg_hits@10/cold-only": 0.5})
    assert call("evaluate", finished_run) == 0
    assert capsys.readouterr().out == "hit@5                   0.250000\nndcg_hits@10/cold-only  0.500000\n"


def test_recommend_to_the_users_of_a_file(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.txt").write_text("7\n\n3\n")
    out = tmp_path / "top.parquet"
    assert call("recommend", finished_run, "--users", tmp_path / "users.txt", "--k", 2, "--out", out) == 0
    assert pq.read_table(out)["user"].to_pylist() == [7, 7, 3, 3]
    (tmp_path / "users.txt").write_text("\n")
    for bad in ("users.txt", "nowhere.txt"):
        assert call("recommend", finished_run, "--users", tmp_path / bad, "--out", tmp_path / "no.parquet") == 2
        assert bad in capsys.readouterr().err
    assert not (tmp_path / "no.parquet").exists()


@pytest.mark.parametrize("name", ["top.csv", "top.JSON"])
def test_a_parquet_file_is_not_named_otherwise(
    name: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("recommend", finished_run, "--out", tmp_path / name) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / name}: would be a Parquet file" in said
    assert f"name it {tmp_path / 'top.parquet'}" in said
    assert not (tmp_path / name).exists()


def test_by_a_file_uri(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", finished_run) == 0
    local = capsys.readouterr().out
    assert call("evaluate", f"file://{finished_run}") == 0
    assert capsys.readouterr().out == local
    assert call("recommend", f"file://{finished_run}", "--k", 3, "--out", f"file://{tmp_path}/top.parquet") == 0
    assert pq.read_table(tmp_path / "top.parquet").num_rows == 360
    assert call("recommend", finished_run, "--out", tmp_path / "none/top.parquet") == 2
    assert call("recommend", finished_run, "--out", "nowhere://top.parquet") == 2
    assert call("evaluate", f"file://{tmp_path}") == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert f"file://{tmp_path}: not a finished run" in said


def test_in_a_store(finished_run: Path, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    there, lists, none = (bucket.replace("NAME", name) for name in ("one", "lists/top.parquet", "none"))
    Folder(there).upload(finished_run)
    assert call("evaluate", there) == 0
    assert call("recommend", there, "--k", 3, "--out", lists) == 0
    with Folder(bucket.replace("NAME", "lists")).local("top.parquet") as copy:
        assert pq.read_table(copy).num_rows == 360
    assert call("evaluate", none) == 2
    assert "not a finished run" in capsys.readouterr().err


def test_users_of_a_table_and_unknown_ones(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.csv").write_bytes(b"\xef\xbb\xbfage,who\r\n30,7.0\r\n31,nobody\r\n32,3\r\n")
    given = ["recommend", finished_run, "--users", tmp_path / "users.csv", "--users-column", "who", "--k", 1]
    out = tmp_path / "top.parquet"
    assert call(*given, "--out", out) == 2
    assert "users.csv: 1 of 3 user ids are unknown: 'nobody'; --skip-unknown leaves them out" in capsys.readouterr().err
    assert not out.exists()
    assert call(*given, "--out", out, "--skip-unknown") == 0
    assert pq.read_table(out)["user"].to_pylist() == [7, 3]
    assert call("recommend", finished_run, "--user", "nobody", "--out", out) == 2
    assert "--user: 1 of 1 user ids are unknown: 'nobody'" in capsys.readouterr().err
