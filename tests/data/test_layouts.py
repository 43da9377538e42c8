"""Published layouts by name, `prepare auto`, --dry-run, and an importer that is added."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import call
from data_helpers import everything
from layout_folders import GRID, LAYOUTS, TITLED, I, U, lattice, mmrec, movielens_1m, put, rows

from m3dist.data import importers
from m3dist.data.dataset import DataError, Dataset
from m3dist.data.importers.options import Options


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(tmp_path: Path, name: str, prepared) -> None:
    make, expected, options = LAYOUTS[name]
    src = tmp_path / "source"
    src.mkdir()
    make(src)
    found, why = importers.recognise(src)
    assert (found, bool(why)) == (expected, True)
    source = importers.importer(found).read(src, Options.of(**options))
    text = name in ("recbole", "recbole_benchmark", "amazon", "amazon_2023")
    if source.user_ids is None:
        assert {
            (u, i) for split in source.splits.values() for u, i in zip(*map(np.ndarray.tolist, split), strict=True)
        } == set(GRID)
    else:
        assert len(everything(source)) == 40
        assert text or everything(source) == set(GRID)
    if name in TITLED:
        assert TITLED[name] in source.item_ids["title"].to_pylist()
    said = "\n".join([*source.said(), *source.readings, *(f.file for f in source.features), *source.files.values()])
    for path in src.iterdir():  # every file was used or is named
        assert path.name in said or path.is_dir() or "part-" in path.name or path.name == "_SUCCESS", path.name
    data: Dataset = prepared(source)
    assert (data.n_users, data.n_items) == (U, I)


def test_mmrec_says_what_it_leaves_out(tmp_path: Path) -> None:
    mmrec(tmp_path)
    source = importers.importer("mmrec").read(tmp_path, Options())
    assert {f.name for f in source.features} == {"image", "sound"}
    said = "\n".join(source.said())
    assert "not used: user_graph_dict.npy" in said
    assert "not used: pairs.npy: whole numbers; --feature pairs=pairs.npy takes them as features" in said


def test_a_core_of_lattice_by_itself_or_one_of_two(tmp_path: Path, prepared) -> None:
    lattice(tmp_path)
    source = importers.importer("scipy").read(tmp_path / "5-core", Options())
    assert [f.name for f in source.features] == ["image"]
    (tmp_path / "0-core").mkdir()
    with pytest.raises(DataError, match=r"holds 0-core and 5-core; give one of these folders"):
        importers.importer("scipy").read(tmp_path, Options())


def test_auto_says_what_it_took_for_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "ml"
    src.mkdir()
    movielens_1m(src)
    assert call("prepare", "auto", src, tmp_path / "out", "--split", "temporal", "--threshold", 2) == 0
    said = capsys.readouterr().out
    for part in (
        "ml is read as movielens: ratings.dat and movies.dat",
        "read: ratings.dat: separated by '::', no header; user = '1', item = '2', rating = '3', time = '4'",
        "read: movies.dat: separated by '::', no header, latin-1; titles = '2' of items '1'",
        "note: times: epoch seconds in '4', 2001-09-09 to 2001-09-09",
        "note: not used: users.dat (another table",
    ):
        assert part in said
    assert call("prepare", "auto", src, tmp_path / "out", "--split", "random", "--users", 4) == 2
    assert "--users does not belong to movielens" in capsys.readouterr().err
    assert call("prepare", "auto", src, tmp_path / "new") == 2
    assert "no split: no column says train, val or test" in capsys.readouterr().err


def test_auto_on_what_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "photos"
    put(src, "holiday.jpg", b"x")
    assert call("prepare", "auto", src, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "photos: in no known layout (recbole, mmrec, " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["amazon", "lattice", "plain"])
def test_dry_run_shows_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make, _, options = LAYOUTS[name]
    src = tmp_path / "source"
    src.mkdir()
    make(src)
    more = [x for key, value in options.items() for x in (f"--{key}", value)]
    assert call("prepare", "auto", src, tmp_path / "out", "--dry-run", *more) == 0
    said = capsys.readouterr().out
    assert "train" in said
    assert "read: " in said
    assert "nothing was written (--dry-run)" in said
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_dry_run_reads_the_first_rows_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a.csv", "user,item\n" + rows("{u},{i}") * 100 + "oh,no\n")
    assert (
        call(
            "prepare",
            "tables",
            tmp_path / "a.csv",
            tmp_path / "out",
            "--split",
            "random",
            "--dry-run",
            "--ids",
            "integers",
        )
        == 0
    )
    assert "at most 1,000 rows of each table: train 32, val 4, test 4" in capsys.readouterr().out


ADDED = '''
"""A format of one line per user: its name, then its items."""

from m3dist.data.importers.common import Source
from m3dist.data.importers.options import ALL

TAKES = ALL


def recognise(src):
    return "it ends in .toy" if src.suffix == ".toy" else None


def read(src, options):
    import numpy as np

    pairs = np.array([(u, int(i)) for u, line in enumerate(src.read_text().splitlines()) for i in line.split()[1:]])
    parts = {s: (pairs[k::3, 0], pairs[k::3, 1]) for k, s in enumerate(("train", "val", "test"))}
    return Source("toy", 2, 3, parts, dict.fromkeys(parts, src.name), readings={src.name: "a line per user"})
'''


def test_an_importer_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "toy_importer.py", ADDED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importers, "IMPORTERS", {"toy": "toy_importer", **importers.IMPORTERS})
    put(tmp_path, "a.toy", "ann 0 1 2\nbob 1 2 0\n")
    for command in ("toy", "auto"):
        assert call("prepare", command, tmp_path / "a.toy", tmp_path / command) == 0
        assert Dataset(tmp_path / command).n_users == 2
    assert "a.toy is read as toy: it ends in .toy" in capsys.readouterr().out
    assert call("prepare", "--help") == 0
    assert "A format of one line per user" in capsys.readouterr().out
    sys.modules.pop("toy_importer")
