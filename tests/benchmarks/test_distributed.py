"""What the distributed benchmark measures is what its formulas predict, on small tables."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import costs, distributed, worker_steps
from benchmarks.sizes import Size
from benchmarks.trained import Highest


def test_bytes_by_hand() -> None:
    """3 users and 5 items, ids of width 2, content of width 4, two members, four workers."""
    assert costs.replicated_bytes(5, 2, 2) == 4 * 2 * 5 * 2
    assert costs.sharded_bytes(5, 2, 4, 2) == 0.75 * (4 * 5 + 2 * 4 * 2 * 5 * 2)
    assert costs.table_bytes(10 / 4, 20, 6, 2, 3) == 16 * 3 * (10 / 4 * 6 + 20 * 2)


def test_measured_bytes_and_memory_are_the_predicted_ones(tmp_path: Path) -> None:
    (row,) = distributed.sent(tmp_path, users=(20_000,), dim=8)
    for name in ("replicated", "sharded"):
        measured, predicted = row.values[f"{name}, KiB"], row.values[f"{name}, KiB (formula)"]
        assert 0.9 < measured / predicted < 1.1, name
    (row,) = distributed.memory(tmp_path, Size(20_001, 2000, 20_000, ()), worlds=(1,))
    assert row.values["tables, moments, best, MiB"] == row.values["the same by formula, MiB"]


def test_an_unknown_section_is_refused() -> None:
    refused = CliRunner().invoke(distributed.main, ["starts"])
    assert refused.exit_code == 2
    assert "startup" in refused.output


def test_memory_of_a_process_and_of_those_below_it() -> None:
    """100 MiB in a process that goes by the name of a worker, under one that waits for it."""
    worker = "x = b'x' * (100 << 20); import sys; sys.stdin.read()"
    named = ["ray::RayTrainWorker", "-c", worker]
    under = f"import subprocess, sys; subprocess.run({named!r}, executable=sys.executable)"
    child = subprocess.Popen([sys.executable, "-c", under], stdin=subprocess.PIPE)
    watch = Highest(child)
    watch.start()
    assert child.stdin is not None
    while not watch.together >> 20 >= 100:
        assert child.poll() is None
        time.sleep(0.1)
    child.stdin.close()
    watch.join()
    assert [x >> 20 for x in watch.workers.values()] == [watch.largest >> 20]
    assert 100 <= watch.largest >> 20 <= watch.resident >> 20 < 200


def test_more_than_the_limit_ends_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "x = b'x' * (100 << 20); import time; time.sleep(600)"])
    watch = Highest(child, limit=50 << 20)
    watch.start()
    assert child.wait(60) < 0


def test_steps_of_workers_share_a_batch_or_have_one_each(planted_root: Path) -> None:
    """Interactions a second are of the whole batch by the clock of the slower worker."""

    def batches(*extra: str) -> list[float]:
        values = ("--set", "merge.batch_size=512", "--steps", "2", "--turns", "1")
        result = CliRunner().invoke(worker_steps.main, ["--data", str(planted_root), *values, *extra])
        assert result.exit_code == 0, result.output
        found = re.findall(r"W = \d: ([\d.]+) ms .*, ([\d,]+) interactions/s", result.output)
        return [float(ms) / 1e3 * float(rate.replace(",", "")) for ms, rate in found]

    assert worker_steps.larger(("merge.batch_size=512", "backbone.groups=4"), 2) == (
        "merge.batch_size=1024",
        "backbone.groups=8",
    )
    shared, each = batches("--workers", "2"), batches("--workers", "2", "--each")
    assert shared == pytest.approx([512], rel=0.05)  # times are printed in tenths of a millisecond
    assert each == pytest.approx([1024], rel=0.05)
