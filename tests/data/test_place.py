"""Where data sets are written: nothing but a data set is replaced, and killed writers leave nothing for long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_helpers import FEATURES, SMALL

from m3dist.data.dataset import DataError, Dataset
from m3dist.data.writer import Writer

PAIRS = {split: tuple(np.array(x) for x in zip(*rows, strict=True)) for split, rows in SMALL.items()}


def build(dst: Path | str, add: float = 0.0) -> None:
    with Writer(dst) as out:
        out.features("visual", FEATURES + np.float32(add), np.array([True, True, True, False]))
        out.truth("visual", np.array([True, False]))
        out.interactions(3, 4, PAIRS)
        out.finish()


def foreign_file(folder: Path) -> None:
    (folder / "thesis.txt").write_text("x")


def foreign_feature(folder: Path) -> None:
    (folder / "features" / "raw.bin").write_text("x")


def foreign_folder(folder: Path) -> None:
    (folder / ".git").mkdir()


def linked_file(folder: Path) -> None:
    (folder / "items.parquet").unlink()
    (folder / "items.parquet").symlink_to("/etc/hostname")


def other_json(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"my": "data"}')


@pytest.mark.parametrize("change", [foreign_file, foreign_feature, foreign_folder, linked_file, other_json])
def test_only_a_data_set_and_nothing_else_is_replaced(tmp_path: Path, change) -> None:
    build(tmp_path / "d")
    change(tmp_path / "d")
    before = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"exists and is not a prepared data set alone .*; choose another destination"):
        build(tmp_path / "d", 1)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == before


def test_a_folder_with_a_dataset_json_of_somebody_else_keeps_everything(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/dataset.json").write_text("{}")
    (tmp_path / "d/years-of-work.txt").write_text("x")
    with pytest.raises(DataError, match="is not a prepared data set alone"):
        build(tmp_path / "d")
    assert (tmp_path / "d/years-of-work.txt").read_text() == "x"


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "d").symlink_to(tmp_path / "disk" / "real")
    build(tmp_path / "d")
    build(tmp_path / "d", 1)
    assert (tmp_path / "d").is_symlink()
    assert Dataset(tmp_path / "disk" / "real").features("visual")[0, 0] == 1
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["real"]


@pytest.mark.parametrize(
    ("dst", "message"),
    [
        ("/", "is or holds the current folder"),
        (".", "is or holds the current folder"),
        ("..", "is or holds the current folder"),
        ("~", "is not a prepared data set alone"),
        ("~nobody-of-that-name/d", "cannot be a destination"),
        ("file", "is a file; choose another destination"),
        ("s3://bucket/d", "is a URI; prepare writes into a folder of this machine"),
        ("file/below", "cannot write there"),
        ("x" * 250, "cannot write there"),
        ("loop", "cannot be a destination|cannot write there"),
    ],
)
def test_destinations_that_are_none(tmp_path: Path, dst: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here" / "work"
    home.mkdir()
    here.mkdir(parents=True)
    (home / "letter.txt").write_text("x")
    (here / "file").write_text("x")
    (here / "loop").symlink_to(here / "loop")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message) as error:
        build(dst)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_home_may_be_part_of_a_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    build("~/d")
    assert Dataset(tmp_path / "d").n_users == 3


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_place import *
from m3dist.data import place
if {when!r} == "between":
    real = place.Path.replace
    def replace(self, target):
        if self.suffix == ".partial":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)
    place.Path.replace = replace
    build({dst!r}, 1)
with Writer({dst!r}) as out:
    out.features("visual", FEATURES)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["writing", "between"])
@pytest.mark.parametrize("then", ["written", "refused"])
def test_what_a_killed_writer_left_is_cleared(tmp_path: Path, when: str, then: str) -> None:
    """Killed while writing, or between moving the old data set away and the new one in."""
    build(tmp_path / "d")
    (tmp_path / ".d.other.partial").mkdir()  # not ours
    code = KILLED.format(tests=str(Path(__file__).parent), when=when, dst=str(tmp_path / "d"))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.getcwd()}, timeout=60)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) > 2
    if then == "written":
        build(tmp_path / "d", 2)
    else:
        with pytest.raises(DataError, match="no feature rows"), Writer(tmp_path / "d") as out:
            out.features("visual", FEATURES[:0])
    assert Dataset(tmp_path / "d").features("visual")[0, 0] == (2 if then == "written" else 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".d.other.partial", "d"]


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with Writer(tmp_path / "d") as first:
        first.features("visual", FEATURES)
        build(tmp_path / "d", 1)
        first.interactions(3, 4, PAIRS)
        first.finish()
    assert Dataset(tmp_path / "d").features("visual")[0, 0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_file_among_the_features_that_prepare_did_not_write_is_kept(folder: Path, tmp_path: Path) -> None:
    from cli_helpers import call  # not above: other processes read this module without its folder

    dst = tmp_path / "dst"
    assert call("prepare", "tables", folder, dst) == 0
    assert call("prepare", "tables", folder, dst) == 0
    (dst / "features" / "mine.npy").write_text("my own work")
    assert call("prepare", "tables", folder, dst) == 2
    assert (dst / "features" / "mine.npy").read_text() == "my own work"
