"""What a run holds in memory at most, on real data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RAW = Path(__file__).parents[3] / "shared" / "data" / "ml1m"
TRAIN = "from m3dist.cli.main import main; main()"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not RAW.is_dir(), reason=f"needs MovieLens 1M with features at {RAW}")
def test_ml1m_end_to_end_in_one_and_a_half_gibibytes(tmp_path: Path) -> None:
    """One epoch and one round of every stage, which hold what more of them hold."""
    data = tmp_path / "data"
    subprocess.run([sys.executable, "-c", TRAIN, "prepare", "tables", str(RAW), str(data)], check=True)
    short = ["align.epochs=1", "invariance.rounds=1", "merge.epochs=1"]
    child = subprocess.Popen([sys.executable, "-c", TRAIN, "train", f"data={data}", f"out={tmp_path / 'run'}", *short])
    _, status, usage = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert 0.2 * 2**30 < peak < 1.5 * 2**30
