"""`prepare --engine ray` writes the data set that the embedded engine writes, byte for byte."""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import call

from m3dist.data.dataset import DataError
from m3dist.data.importers import common, tables
from m3dist.data.importers.options import Options
from m3dist.distributed import prepare

pytestmark = pytest.mark.usefixtures("ray_here")


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of so few interactions that every source here has several."""
    monkeypatch.setattr(prepare, "ROWS", 60)


def columns(text: bool, seed: int = 0, n: int = 400) -> dict[str, list]:
    """Interactions with many equal times and pairs that occur twice; ids that do not stand in their order."""
    draw = np.random.default_rng(seed)
    user, item = draw.integers(0, 40, n) * 7, draw.zipf(1.5, n) % 50
    return {
        "user_id": [f"u{u}" for u in user] if text else user.tolist(),
        "item_id": [f"b{i}" for i in item] if text else item.tolist(),
        "rating": draw.integers(1, 6, n).tolist(),
        "timestamp": (1_500_000_000 + draw.integers(0, 30, n) * 1000).tolist(),
    }


def folder(path: Path, given: dict[str, list], kind: str) -> Path:
    """One table in three files of unequal length, the names of Spark's."""
    path.mkdir(parents=True)
    table, ends = pa.table(given), (0, 120, 130, len(given["user_id"]))
    for n, (low, high) in enumerate(itertools.pairwise(ends)):
        part = table.slice(low, high - low)
        if kind == "parquet":
            pq.write_table(part, path / f"part-{n}.parquet")
        else:
            lines = [",".join(part.column_names), *(",".join(map(str, row.values())) for row in part.to_pylist())]
            (path / f"part-{n}.csv").write_text("\n".join(lines) + "\n")
    return path


def content(root: Path) -> dict[str, bytes]:
    """Every file of a data set."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def same(src: Path, tmp: Path, **given: Any) -> dict[str, Any]:
    """Prepare `src` with both engines, and compare all bytes; dataset.json's content."""
    options = Options.of(**given)
    written = common.write(tables.read(src, options), tmp / "local", options.written.overlap)
    meta = prepare.prepare("tables", src, tmp / "ray", options)
    assert meta["fingerprint"] == written["fingerprint"]
    assert content(tmp / "ray") == content(tmp / "local")
    assert sorted(path.name for path in tmp.iterdir()) == ["local", "ray", "src"]
    return meta


@pytest.mark.parametrize(
    ("kind", "text", "given"),
    [
        ("csv", True, {"split": "random", "at_least_one": True}),
        ("parquet", False, {"split": "random", "cold": 0.2, "threshold": 3.0}),
        ("parquet", True, {"split": "leave-last-out"}),
        ("csv", False, {"split": "leave-last-out", "file_order": True, "min_user": 5, "min_item": 3}),
        ("csv", True, {"split": "temporal", "cold": 0.1}),
        ("parquet", False, {"split": "temporal", "val_from": "2017-07-14T06:00", "test_from": "2017-07-14T08:00"}),
        ("parquet", True, {"split": "temporal", "test_from": "2017-07-14T08:00", "min_item": 4}),
    ],
)
def test_the_bytes_are_those_of_the_embedded_engine(kind: str, text: bool, given: dict, tmp_path: Path) -> None:
    meta = same(folder(tmp_path / "src", columns(text), kind), tmp_path, **given)
    assert meta["duplicates_dropped"]["before_split"] > 20


def test_a_later_file_says_what_ids_and_times_are(tmp_path: Path) -> None:
    given = columns(False)
    given["user_id"][200] = "late"
    given["timestamp"][390] += 0.5
    given["item_id"][125] = "3.0"
    src = folder(tmp_path / "src", {name: [str(x) for x in column] for name, column in given.items()}, "csv")
    meta = same(src, tmp_path, split="temporal")
    assert any("late" in note for note in meta["provenance"]["notes"])


def test_the_first_files_may_be_empty_and_paths_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = folder(tmp_path / "src", columns(True), "csv")
    header = (src / "part-0.csv").read_text().splitlines()[0]
    for n in range(2):
        (src / f"part--{n}.csv").write_text(f"{header}\n")
    monkeypatch.chdir(tmp_path)
    meta = same(Path("src"), tmp_path, split="leave-last-out")
    assert meta["interactions"]["train"] > 100


def test_train_val_and_test_with_overlaps_and_features(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "val", "test")):
        given = columns(False, seed=n)
        folder(tmp_path / "src" / split, {name: given[name] for name in ("user_id", "item_id")}, "csv")
    np.save(tmp_path / "src" / "visual.npy", np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    meta = same(tmp_path / "src", tmp_path, overlap="drop")
    assert meta["modalities"] == {"visual": 3}
    assert min(meta["overlaps_dropped"][s] for s in ("val", "test")) > 10
    with pytest.raises(DataError, match="overlap in") as wrong:
        prepare.prepare("tables", tmp_path / "src", tmp_path / "refused", Options())
    with pytest.raises(DataError) as expected:
        common.write(tables.read(tmp_path / "src"), tmp_path / "refused")
    assert str(wrong.value) == str(expected.value)


def test_bad_rows_are_counted_or_refused_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    src = folder(tmp_path / "src", columns(True), "csv")
    with (src / "part-1.csv").open("a") as out:
        out.write("u1,,3,1500000000\nu1,b2\n")
    same(src, tmp_path, split="random", on_bad_row="drop")
    said = []
    for engine in ("local", "ray"):
        given = ("tables", src, tmp_path / "no", "--split", "random", "--engine", engine)
        assert call("prepare", *given) == 2
        said.append(capsys.readouterr().err)
    assert "part-1.csv, line" in said[0]
    assert said[1] == said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "ray", "src"]


def test_what_it_does_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--engine ray reads tables"):
        prepare.prepare("movielens", tmp_path, tmp_path / "out", Options())


def dying(work: Callable[..., Any], deaths: Path, most: int) -> Callable[..., Any]:
    """`work`, whose process is killed half-way, so many times over all tasks."""

    def killed(*task: Any) -> Any:
        found = work(*task)
        for n in range(most):
            with contextlib.suppress(FileExistsError):
                (deaths / str(n)).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return found

    return killed


@pytest.mark.parametrize("stage", ["scan.scan", "scan.shuffle", "ranges.degrees", "ranges.divide", "ranges.cut"])
def test_a_task_whose_process_was_killed_is_done_again(
    stage: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, deaths = folder(tmp_path / "src", columns(True), "csv"), tmp_path_factory.mktemp("deaths")
    monkeypatch.setattr(f"{prepare.__name__}.{stage}", dying(operator.attrgetter(stage)(prepare), deaths, 1))
    same(src, tmp_path, split="temporal", min_user=2, min_item=2)
    assert [path.name for path in deaths.iterdir()] == ["0"]


@pytest.mark.slow
def test_tasks_that_are_killed_again_and_again_end_in_one_line(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    src, deaths = folder(tmp_path / "src", columns(True), "csv"), tmp_path_factory.mktemp("deaths")
    monkeypatch.setattr(prepare.ranges, "divide", dying(prepare.ranges.divide, deaths, 1000))
    assert call("prepare", "tables", src, tmp_path / "out", "--split", "random", "--engine", "ray") == 3
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "kept dying" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
