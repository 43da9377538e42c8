"""Many SIGKILLs at random moments of all stages, alone, on workers, on actors and in searches (soak_run.py).

M3DIST_KILLS=134 makes 134 of runs in one process and 22 of each other kind; M3DIST_SEED other moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

KILLS = int(os.environ.get("M3DIST_KILLS", "60"))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize(
    ("kind", "kills"), [("alone", KILLS), *((k, KILLS // 6) for k in ("workers", "actors", "tune"))]
)
def test_killed_runs_end_bit_for_bit_like_undisturbed_ones(
    kind: str, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    if kind != "alone":
        import ray

        request.getfixturevalue("ray_here")
        environment |= {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "M3DIST_RAY": str(os.getpid())}
    command = [sys.executable, str(Path(__file__).with_name("soak_run.py")), kind, str(tmp_path), str(kills)]
    process = subprocess.Popen(
        [*command, os.environ.get("M3DIST_SEED", "0")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    killed: Counter[str] = Counter()
    for line in process.stdout:
        print(line, end="", flush=True)
        run = json.loads(line)
        killed.update(run["kills"])
        assert (run["code"], run["found"]) == (0, None), (run, tmp_path)
    assert process.wait() == 0
    assert sum(killed.values()) >= kills
