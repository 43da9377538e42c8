"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from m3dist.training.allocator import keep_freed_memory

PAGES = """
import resource, sys
import torch
from m3dist.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return [torch.ones(4 << 20) for _ in range(4)]  # 64 MiB
for _ in range(5):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library's allocator has no such setting")
def test_a_step_of_known_size_takes_no_new_pages() -> None:
    def pages(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=True, timeout=120
        )
        return int(done.stdout)

    assert pages("keep") < 500
    assert pages("default") > 5000  # 16,384 pages of 4 KiB a step, fewer where the system's are larger
