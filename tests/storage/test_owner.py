"""One run per folder, on the local disk and in a store."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import call
from small_runs import SMALL, small

from m3dist import pipeline
from m3dist.data.writer import Writer
from m3dist.storage import leases, owner
from m3dist.storage.folders import Folder
from m3dist.storage.owner import alone

SPAWN = multiprocessing.get_context("spawn")  # a fork of a process that Ray runs in breaks its connections
WHO = rf"process {os.getpid()} on {socket.gethostname()}, started 20\d\d-.* UTC, "


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT", 0.3)
    monkeypatch.setattr(leases, "EXPIRY", 4.0)
    monkeypatch.setattr(owner, "SETTLE", 0.3)


def test_a_data_set_is_no_folder_to_work_in(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is a prepared data set; choose another folder"), alone(Folder(tmp_path)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def hold_forever(root: Path, sign: Path) -> None:
    leases.HEARTBEAT, leases.EXPIRY = 0.3, 4.0
    with alone(Folder(root)):
        sign.touch()
        time.sleep(600)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_owner_is_refused_and_told_who_is_there(folder: Folder) -> None:
    with alone(folder):
        with (
            pytest.raises(ValueError, match=WHO + "works there; wait for its end or stop it") as refused,
            alone(folder),
        ):
            pass
        assert str(refused.value).startswith(f"{folder}: ")
        assert "\n" not in str(refused.value)
    with alone(folder):  # which was given back
        pass


def test_a_living_owner_keeps_the_folder_and_a_killed_ones_is_taken_over(tmp_path: Path) -> None:
    root, sign = tmp_path / "run", tmp_path / "sign"
    process = SPAWN.Process(target=hold_forever, args=(root, sign), daemon=True)
    process.start()
    until(sign.exists)
    with pytest.raises(ValueError, match=f"process {process.pid} on .* works there"), alone(Folder(root)):
        pass
    process.kill()
    process.join()
    with alone(Folder(root)) as mine:
        assert (Folder(root) / "leases").read_json("owner.json")["key"] == mine.key


def test_what_a_dead_process_holds_in_a_store_is_taken_over(bucket: str) -> None:
    folder = Folder(bucket.replace("NAME", "dead"))
    (folder / "leases").write_json("owner.json", owner.Owner(host="elsewhere").record(7))
    with alone(folder) as mine:
        assert (folder / "leases").read_json("owner.json")["key"] == mine.key


def test_of_two_that_write_into_a_store_at_once_one_holds_it(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(bucket.replace("NAME", "two"))
    other = owner.Owner(host="elsewhere")
    monkeypatch.setattr(time, "sleep", lambda seconds: (folder / "leases").write_json("owner.json", other.record(0)))
    with pytest.raises(ValueError, match=r"on elsewhere, started .* works there"), alone(folder):
        pass
    assert (folder / "leases").read_json("owner.json")["key"] == other.key


def test_who_loses_the_folder_is_told_and_leaves_the_other_alone(folder: Folder) -> None:
    other = owner.Owner(host="elsewhere")

    def lose() -> None:
        with alone(folder) as mine:
            assert not mine.lost.is_set()
            (folder / "leases").write_json("owner.json", other.record(0))
            until(mine.lost.is_set)

    with pytest.raises(ValueError, match=r"on elsewhere, started .* took it over"):
        lose()
    assert (folder / "leases").read_json("owner.json")["key"] == other.key


def test_a_run_that_loses_its_folder_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps, long before its last epoch."""
    config = small(tmp_path, "model=ultragcn", "merge.epochs=100000", "merge.patience=0")
    taken = owner.Owner(host="elsewhere").record(0)

    class Taker(pipeline.Callback):
        def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
            (Folder(tmp_path) / "leases").write_json("owner.json", taken)

    with pytest.raises(ValueError, match=r"on elsewhere, started .* took it over"):
        pipeline.run(config, [Taker()], quiet=True)


def _elsewhere(lock: Path) -> None:
    shutil.rmtree(lock)
    lock.symlink_to(lock.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda lock: shutil.rmtree(lock) or lock.write_text("x"),
        _elsewhere,
        lambda lock: max((lock / "gen").glob("0*")).write_bytes(b"x"),
    ],
    ids=["a file", "a link", "a damaged record"],
)
def test_what_stands_in_the_place_of_the_lease_is_told(tmp_path: Path, change: Callable[[Path], object]) -> None:
    with alone(Folder(tmp_path)):
        pass
    change(tmp_path / "leases" / "run.rw")
    with (
        pytest.raises(ValueError, match=r"leases: damaged or changed \(.*\); delete it, if no run works in"),
        alone(Folder(tmp_path)),
    ):
        pass


@pytest.mark.parametrize("verb", ["train", "tune", "reproduce"])
def test_commands_are_refused_where_another_works(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    with Writer(data) as writer:
        pair = np.zeros(1, np.int32)
        writer.features("visual", np.eye(3, 4, dtype=np.float32))
        writer.interactions(2, 3, {"train": (pair, pair), "val": (pair, pair + 1), "test": (pair, pair + 2)})
        writer.finish()
    search = tmp_path / "search.yaml"
    search.write_text("space: {merge.lr: {grid: [0.1]}}\nbudget: {trials: 1}\nbase: {model: ultragcn}\n")
    commands = {
        "train": [*SMALL, f"data={data}", f"out={out}"],
        "tune": [search, f"data={data}", f"out={out}"],
        "reproduce": ["table3", "--data", data, "--out", out],
    }
    with alone(Folder(out)):
        before = sorted(out.rglob("*"))
        assert call(verb, *commands[verb]) == 2
        said = capsys.readouterr().err
        assert f"error: {out}: process {os.getpid()} on {socket.gethostname()}, started 20" in said
        assert said.count("\n") == 1
        new = {path.relative_to(out).parts[0] for path in {*out.rglob("*")} - {*before}}
        assert new <= {"leases", "search.json"}
