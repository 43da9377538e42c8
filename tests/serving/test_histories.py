"""Users who were not trained, ranked by their histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import call

import m3dist


def lists(table: pa.Table) -> dict[Any, list[Any]]:
    """Items by user, best first."""
    out: dict[Any, list[Any]] = {}
    for row in table.to_pylist():
        out.setdefault(row["user"], []).append(row["item"])
    return out


def test_new_users_rank_without_what_they_have_seen(finished_run: Path) -> None:
    run = m3dist.load(str(finished_run))
    table = run.recommend(k=90, histories={"new": [1, "2", 3.0], "none": []})
    found = lists(table)
    assert list(found) == ["new", "none"]
    assert sorted(found["new"]) == [x for x in range(90) if x not in (1, 2, 3)]
    assert sorted(found["none"]) == list(range(90))
    row = table.to_pylist()[0]
    assert sum(row[f"weight_modality{m}"] for m in range(3)) == pytest.approx(1, rel=1e-5)
    assert table.equals(run.recommend(k=90, histories={"new": [1, 2, 3], "none": []}))


def test_a_history_decides(finished_run: Path) -> None:
    """A user like another one gets what suits that one."""
    run = m3dist.load(str(finished_run))
    user, item = run.dataset.interactions("train")
    histories = {f"like {u}": item[user == u].tolist() for u in range(20)}
    mine = lists(run.recommend(k=10, histories=histories))
    theirs = lists(run.recommend(list(range(20)), k=10))
    shared = [len({*mine[f"like {u}"]} & {*theirs[v]}) for u in range(20) for v in range(20) if u == v]
    others = [len({*mine[f"like {u}"]} & {*theirs[v]}) for u in range(20) for v in range(20) if u != v]
    assert sum(shared) / len(shared) > 2 * sum(others) / len(others)


def test_named_users_know_more(finished_run: Path) -> None:
    run = m3dist.load(str(finished_run))
    before = lists(run.recommend([7, 8], k=90))
    further = before[7][:2]
    table = run.recommend([8, 7], k=90, histories={"7": further, 500: [3]})
    found = lists(table)
    assert list(found) == [8, 7, 500]
    assert table["user"].type == run.dataset.user_ids.type
    assert found[8] == before[8]
    assert sorted(found[7]) == sorted(set(before[7]) - set(further))
    alone = lists(run.recommend(k=90, histories={7: further}))
    assert len(alone[7]) == 88  # an id alone is a new user's, even where the data set has the same


def test_bad_histories(finished_run: Path, tmp_path: Path) -> None:
    run = m3dist.load(str(finished_run))
    with pytest.raises(ValueError, match="histories: 1 of 2 item ids are unknown: 1000"):
        run.recommend(histories={"a": [1, 1000]})
    assert run.recommend(k=1, histories={"a": [1, 1000]}, rules=m3dist.Rules(skip_unknown=True)).num_rows == 1
    with pytest.raises(ValueError, match="none are given"):
        run.recommend(histories={})


def test_a_file_of_histories(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "sessions.csv", tmp_path / "top.parquet"
    file.write_text("user_id,item_id\nann,1\nann,2\nbob,5\n")
    assert call("recommend", finished_run, "--history", file, "--k", 4, "--out", out) == 0
    run = m3dist.load(str(finished_run))
    assert pq.read_table(out).equals(run.recommend(k=4, histories={"ann": [1, 2], "bob": [5]}))
    file.write_text("user_id,item_id\nann,1\nann,1000\n")
    assert call("recommend", finished_run, "--history", file, "--out", out) == 2
    assert "1 of 2 item ids are unknown: '1000'; --skip-unknown leaves them out" in capsys.readouterr().err
    assert call("recommend", finished_run, "--history", file, "--skip-unknown", "--k", 1, "--out", out) == 0
    assert pq.read_table(out)["user"].to_pylist() == ["ann"]
    file.write_text("ann\n")
    assert call("recommend", finished_run, "--history", file, "--out", out) == 2
    assert "sessions.csv" in capsys.readouterr().err
    assert call("recommend", finished_run, "--history", tmp_path / "none.csv", "--out", out) == 2
    assert "none.csv: no such file; expected a table of users and items" in capsys.readouterr().err
