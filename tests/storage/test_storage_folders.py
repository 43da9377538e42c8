"""Whole files on the local disk and in an S3-like store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from m3dist.data.place import Place
from m3dist.storage.folders import Folder


def test_files_come_back(folder: Folder) -> None:
    assert folder.names() == []
    folder.write_json("a/b.json", {"x": 1})
    folder.write_tensors("t.safetensors", {"w": torch.arange(3.0)})
    assert (folder / "a").read_json("b.json") == {"x": 1}
    assert folder.read_tensors("t.safetensors")["w"].tolist() == [0, 1, 2]
    assert folder.names() == ["a", "t.safetensors"]
    folder.remove("a")
    folder.remove("nothing")
    assert not folder.exists("a/b.json")


def test_a_failed_write_leaves_what_was_there(folder: Folder) -> None:
    def write() -> None:
        with folder.writing("x") as path:
            path.write_text("half")
            raise RuntimeError

    folder.write_text("x", "old")
    with pytest.raises(RuntimeError):
        write()
    assert folder.read_text("x") == "old"
    assert folder.names() == ["x"]


def test_a_file_that_is_named_may_be_a_link_and_nothing_else(tmp_path: Path) -> None:
    """What is no regular file is left as it is: a device would be a file from then on, for all programs."""
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with Folder(tmp_path / "link").writing() as path:
        path.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    with Folder(tmp_path).writing("link") as path:  # of a folder, whose links lead wherever its owner wants
        path.write_text("newer")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    for name in ("pipe", "folder", "loop"):
        said = pytest.raises(OSError, match=r"is (no regular file|a folder|a link to itself)$")
        with said, Folder(tmp_path / name).writing() as path:
            path.write_text("new")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "loop").is_symlink()
    assert sorted(tmp_path.iterdir()) == before


def test_unknown_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ftp://x.*expected a path or a URI like s3"):
        Folder("ftp://x/y")


def test_data_that_was_prepared_again_is_fetched_again(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Folder(bucket.replace("NAME", "mine"))
    folder.write_text("dataset.json", "1")
    first = folder.here()
    assert (first.name, folder.here()) == ("mine", first)
    folder.write_text("dataset.json", "2")
    assert folder.here() != first
    assert (folder.here() / "dataset.json").read_text() == "2"


def test_what_a_killed_copy_left_is_cleared_by_the_next(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Folder(bucket.replace("NAME", "killed"))
    folder.write_text("dataset.json", "1")
    beside = folder.here().parent
    shutil.rmtree(beside / "killed")
    half = Place(beside / "killed")
    half.tmp.mkdir()
    (half.tmp / "interactions.parquet").write_text("half")
    half.tmp.with_suffix(".lock").touch()  # which nobody holds any more
    assert (folder.here() / "dataset.json").read_text() == "1"
    assert [path.name for path in beside.iterdir()] == ["killed"]


def test_a_folder_at_the_root_is_not_the_current_one() -> None:
    assert Folder("/").path == "/"
