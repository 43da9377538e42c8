"""Memory that a step frees stays with the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from m3dist.training.allocator import keep_freed_memory

MEMORY = """
import resource, sys
from pathlib import Path
import torch
from m3dist.training.allocator import keep_freed_memory
how, tests, out = sys.argv[1:]
if how == "keep":
    assert keep_freed_memory()
if how == "run":
    sys.path.append(tests)
    from small_runs import trained
    trained(Path(out), "model=duif", "baseline.epochs=1", "use_gpu=false", test=False)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20
def step():
    torch.ones(12 << 20)  # 48 MiB; by default glibc keeps no block above 32 MiB
before = resident()
for _ in range(30):
    step()
after = resident()
for _ in range(100):
    step()
print(after - before, resident() - after)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library's allocator has no such setting")
@pytest.mark.parametrize(("how", "keeps"), [("keep", True), ("run", True), ("default", False)])
def test_what_a_step_frees_is_there_for_the_next(how: str, keeps: bool, tmp_path: Path) -> None:
    """After a run on a CPU, too; without the setting it goes back to the system. MiB of 48."""
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, how, tests, str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    kept, more = (int(x) for x in done.stdout.split()[-2:])
    assert kept >= 40 if keeps else kept < 8
    assert more < 40  # not a block more
