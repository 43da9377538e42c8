"""Single flipped bits in every kind of file: each is found where the file is read, or changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import call
from safetensors import SafetensorError
from small_runs import trained

import m3dist
from m3dist.config import Checkpoint
from m3dist.data.dataset import Dataset
from m3dist.distributed.engine import Engine
from m3dist.storage import safe
from m3dist.storage.checkpoints import Checkpoints, Rows
from m3dist.storage.folders import Folder
from m3dist.storage.shards import Shards

FLIPS = 12  # of each file


def flips(path: Path, seed: int = 0, count: int = FLIPS) -> Iterator[int]:
    """The file with another bit flipped each time, and as it was in the end."""
    before, rng = path.read_bytes(), np.random.default_rng(seed)
    for at in rng.choice(8 * len(before), min(count, 8 * len(before)), replace=False).tolist():
        changed = bytearray(before)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        yield at
    path.write_bytes(before)


def tried(work: Callable[[], Any]) -> tuple[Any, str]:
    """What `work` returns, or what the ValueError says that it raises."""
    try:
        return work(), ""
    except ValueError as error:
        return None, str(error)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose files may be damaged."""
    out = tmp_path_factory.mktemp("damaged") / "run"
    trained(out, "model=ultragcn")
    return out


def answers(run: Path) -> tuple[dict[str, float], list]:
    opened = m3dist.load(run)
    return opened.evaluate(), opened.recommend([0, 5], 5).to_pylist()


def test_of_a_run_and_its_data(copied: Path) -> None:
    """What is said of a run is what it was, or one line names a file of it."""
    expected, used, found = answers(copied), 0, 0
    files = [
        path
        for path in copied.rglob("*")
        if path.is_file() and path.suffix in (".json", ".yaml", ".safetensors", ".npy", ".parquet")
    ]
    assert {path.suffix for path in files} == {".json", ".yaml", ".safetensors", ".npy", ".parquet"}
    for path in files:
        for at in flips(path, seed=len(path.name)):
            used += 1
            said, error = tried(lambda: answers(copied))
            if error:
                found += 1
                assert str(copied) in error or path.name in error, (path, at, error)
                assert "\n" not in error, (path, at, error)
            else:
                assert said == expected, (path, at)
    assert used > 150
    assert found > used / 4
    assert answers(copied) == expected


def test_verify_finds_damage_in_what_is_not_read_otherwise(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", copied, "--verify") == 0
    (features,) = copied.glob("data-*/features/modality0.npy")
    for _ in flips(features, count=1):
        assert call("evaluate", copied) == 0
        capsys.readouterr()
        assert call("evaluate", copied, "--verify") == 2
        assert (
            "modality0.npy: damaged (its checksum does not fit its content); prepare the data set again"
            in capsys.readouterr().err
        )


def test_of_features(planted_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(planted_root, tmp_path / "data")
    path = next((root / "features").iterdir())
    for _ in flips(path):
        with pytest.raises(ValueError, match=rf"{path.name}: damaged"):
            Dataset(root).features(path.stem)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name}: missing"):
        Dataset(root).features(path.stem)


def test_of_checkpoints(tmp_path: Path) -> None:
    saves = Checkpoints(Folder(tmp_path), "key", Checkpoint(), Engine())
    state, rows = {"x": torch.rand(30), "n": torch.tensor(3)}, torch.rand(50, 3)
    saves.save("00001-0", {"epoch": 1}, state, Rows({"user": rows}))

    def read() -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
        saved, out = saves.latest(), torch.empty(20, 3)
        assert saved is not None
        saved.read("user", out, 10)
        return saved.meta["epoch"], out, saved.tensors()

    for path in (tmp_path / "00001-0").iterdir():
        for at in flips(path, count=60):
            found, error = tried(read)
            if error:
                assert "00001-0: damaged checkpoint" in error, (path, at)
                continue
            epoch, out, tensors = found
            assert epoch == 1, (path, at)
            assert torch.equal(out, rows[10:30]), (path, at)
            assert all(torch.equal(tensors[name], x) for name, x in state.items()), (path, at)


def test_rows_are_checked_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage elsewhere does not hinder, as it is not read; in a block of the range it is found."""
    monkeypatch.setattr(safe, "_BLOCK", 64)  # five rows of three floats
    folder, x = Folder(tmp_path), torch.rand(37, 3)
    Shards(folder, 1).write(0, {"x": x})
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) - 37 * 12 + 12 * 12] ^= 1  # of row 12
    path.write_bytes(data)
    for low, high in ((0, 10), (15, 37), (3, 7)):
        out = torch.empty(high - low, 3)
        Shards(folder, 1).read("x", out, low, [37])
        assert torch.equal(out, x[low:high])
    for low, high in ((0, 11), (11, 12), (14, 20)):
        with pytest.raises((ValueError, SafetensorError), match="the checksum of x does not fit"):
            Shards(folder, 1).read("x", torch.empty(high - low, 3), low, [37])


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    x = torch.rand(7, 2)
    save_file({"x": x}, tmp_path / "rows-00000-of-00001.safetensors")
    out = torch.empty(3, 2)
    Shards(Folder(tmp_path), 1).read("x", out, 2, [7])
    assert torch.equal(out, x[2:5])
    assert torch.equal(Folder(tmp_path).read_tensors("rows-00000-of-00001.safetensors")["x"], x)
