"""A hostile corpus of some five hundred files: nothing runs, nothing crashes, nothing fills the memory.

Each case is prepared in a process of its own (hostile_run.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile_corpus
import hostile_makers
import pytest

SLOW = (
    "slow_bombs",
    "bombs",
    "repeats",
    "texts",
    "runners",
    "arrays",
    "expanding",
)  # a minute and more on a busy machine


def test_the_payload_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: an ordinary unpickler runs it, so that the corpus proves something."""
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(hostile_makers.Payload()))
    assert (tmp_path / hostile_makers.RAN).is_dir()


def test_the_corpus_is_large_enough() -> None:
    assert sum(len(list(part())) for part in hostile_corpus.PARTS.values()) > 480


@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    "part", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in hostile_corpus.PARTS]
)
def test_hostile_files(tmp_path: Path, part: str) -> None:
    """Each is refused in one line, or read; within ten times its size and 200 MiB; and leaves nothing."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hostile_run.py")), str(tmp_path), part],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(list(hostile_corpus.PARTS[part]()))
    for case in found:
        assert case["status"] == 0, case
        assert case["said"] == "read" or case["said"].startswith("refused: "), case
        assert "\n" not in case["said"], case
        assert len(case["said"]) < 1000, case
        assert case["grown"] <= 10 * case["size"] + (200 << 20), case
        assert not case["left"], case
