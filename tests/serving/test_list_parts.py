"""Lists of many users in parts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import call

import m3dist


def whole(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def test_parts_are_the_whole(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = m3dist.load(finished_run, "cpu"), tmp_path / "out"
    assert call("recommend", finished_run, "--k", 3, "--parts", 7, "--out", out) == 0
    assert "7 of 7 parts, 360 recommendations" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir())[0] == "part-00000-of-00007.parquet"
    assert whole(out).equals(run.recommend(k=3))


def test_what_is_missing_is_made_again(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ("recommend", finished_run, "--k", 3, "--parts", 5, "--out", out)
    assert call(*given) == 0
    before = whole(out)
    (out / "part-00003-of-00005.parquet").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    assert call(*given) == 0
    assert "1 of 5 parts, 72 recommendations" in capsys.readouterr().out
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert whole(out).equals(before)
    assert call(*given) == 0
    assert "0 of 5 parts" in capsys.readouterr().out
    assert call(*given[:-1], out, "--include-seen") == 2
    assert f"out={out}: holds parts of another run or request" in capsys.readouterr().err


def test_histories_in_parts(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "sessions.csv").write_text("user_id,item_id\n7,1\nann,1\nann,2\nbob,5\n")
    given = ("recommend", finished_run, "--k", 2, "--history", tmp_path / "sessions.csv")
    named = ("--user", 7, "--user", 8, "--user", 9)
    assert call(*given, *named, "--parts", 3, "--out", tmp_path / "out") == 0
    assert call(*given, *named, "--out", tmp_path / "top.parquet") == 0
    found, expected = (
        {(str(row["user"]), row["rank"]): row["item"] for row in table.to_pylist()}
        for table in (
            pa.concat_tables(
                x.set_column(0, "user", x["user"].cast(pa.string()))
                for x in map(pq.read_table, (tmp_path / "out").glob("part-*"))
            ),
            pq.read_table(tmp_path / "top.parquet"),
        )
    )
    assert found == expected
    assert len(found) == 5 * 2


def test_bad_parts(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("recommend", finished_run, "--parts", 500, "--out", tmp_path / "a") == 2
    assert "parts: 500 parts of 120 users; ask for at most 120" in capsys.readouterr().err
    assert call("recommend", finished_run, "--workers", 2, "--out", tmp_path / "a") == 2
    assert "give --parts, too" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.slow  # starts Ray
@pytest.mark.timeout(1200)
def test_actors_make_the_same_parts(finished_run: Path, tmp_path: Path) -> None:
    given = ("recommend", finished_run, "--k", 3, "--parts", 6)
    assert call(*given, "--out", tmp_path / "here") == 0
    assert call(*given, "--workers", 2, "--out", tmp_path / "there") == 0
    assert whole(tmp_path / "there").equals(whole(tmp_path / "here"))
