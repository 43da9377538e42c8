"""Run folders that somebody changed: one line, little memory, and nothing of others is read or lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import call
from torch import Tensor

from m3dist import checksums
from m3dist.storage.artifacts import Output, Store


def changed(pattern: str, **values: Any) -> Callable[[Path], None]:
    """Values of a JSON file of the run, whose checksum fits."""

    def change(run: Path) -> None:
        (path,) = run.glob(pattern)
        stated = json.loads(path.read_text())
        stated.pop(checksums.KEY, None)
        path.write_text(json.dumps(checksums.stamped({**stated, **values})))

    return change


def endless(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to("/dev/zero")

    return change


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Other tensors in the last stage's artifact, written as m3dist does, so that every checksum fits."""

    def work(run: Path) -> None:
        (folder,) = run.glob("artifacts/merge-*")
        store, (stage, key) = Store(folder.parent), folder.name.split("-")
        held, meta = store.load(stage, key)
        change(held)
        store.save(stage, key, Output(held, meta))

    return work


def swapped(run: Path) -> None:
    """One stage's tensors in the place of another's."""
    (one,), (other,) = run.glob("artifacts/align-*"), run.glob("artifacts/merge-*")
    shutil.copy(one / "tensors.safetensors", other)


UNFIT = "tensors.safetensors: does not fit this run's config and data ("
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "config without end": (endless("config.yaml"), "config.yaml: is larger than 4 MiB"),
    "result without end": (endless("result.json"), "result.json: is larger than 256 MiB"),
    "users": (changed("data-*/dataset.json", users=10**12), "users: '1000000000000' is no number of them"),
    "users of text": (changed("data-*/dataset.json", users="many"), "users: 'many' is no number of them"),
    "items": (changed("data-*/dataset.json", items=-5), "items: '-5' is no number of them"),
    "a path": (changed("data-*/dataset.json", modalities={"../../x": 3}), "modalities: a name may hold letters"),
    "a swapped file": (swapped, "tensors.safetensors is not the file that was written beside meta.json"),
    "no tensors": (tensors(dict.clear), UNFIT),
    "a lost table": (tensors(lambda held: held.pop("0.matrix")), UNFIT),
    "fewer users": (tensors(lambda held: held.update({"0.user": held["0.user"][:-1]})), UNFIT),
    "fewer items": (tensors(lambda held: held.update({"1.matrix": held["1.matrix"][:-1]})), UNFIT),
    "one item in all": (
        tensors(lambda held: held.update({name: x[:1] for name, x in held.items() if name.endswith(".matrix")})),
        UNFIT,
    ),
    "other widths": (tensors(lambda held: held.update({"0.user": held["0.user"][:, :-1]})), UNFIT),
    "whole numbers": (tensors(lambda held: held.update({"0.user": held["0.user"].long()})), UNFIT),
    "a number": (tensors(lambda held: held.update({"0.user": torch.tensor(1.0)})), UNFIT),
    "keys": (changed("result.json", keys=5), "result.json: damaged or changed (it names no stages)"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_somebody_changed(
    name: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = CASES[name]
    run = shutil.copytree(finished_run, tmp_path / "run")
    change(run)
    assert call("evaluate", run, "--verify") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["README.md", "users.parquet", "items.parquet"])  # the last two of a data set, too
def test_an_export_overwrites_no_file_of_others(
    name: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    assert call("export", finished_run, tmp_path) == 2
    assert f"holds a {name} that no export wrote" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    assert call("export", finished_run, tmp_path) == 0
    assert call("export", finished_run, tmp_path) == 0  # its own are replaced


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"keys": 5}, "result.json: damaged or changed (it names no stages)"),
        ({"model": ["x"]}, "no such model"),
    ],
)
def test_a_run_that_somebody_changed_starts_none(
    values: dict[str, Any], said: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    changed("result.json", **values)(run)
    assert call("train", f"warm_from={run}", f"out={tmp_path / 'next'}") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
