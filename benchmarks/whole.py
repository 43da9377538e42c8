"""Section `whole`: where the wall-clock of `m3dist train` goes, without workers and with two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row

SHORT = ("align.epochs=2", "invariance.rounds=1", "merge.epochs=4")  # start-ups do not depend on epochs


def measure(data: Path) -> Iterator[Row]:
    yield train(data, 0)
    yield train(data, 2, SHORT)


def train(data: Path, workers: int, overrides: tuple[str, ...] = ()) -> Row:
    """One run of its own process; raises ValueError when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger"
        command = [sys.executable, "-m", "benchmarks.timed", str(ledger), str(workers), "train", f"data={data}"]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())} if not workers else {}
        environment = {**os.environ, **threads, "RAY_AUTH_MODE": "disabled"}
        began = time.time()
        result = ran([*command, f"out={folder}/run", *overrides], Path(folder) / "run", environment)
        took = time.time() - began
        parts = [json.loads(path.read_text()) for path in Path(folder).glob("ledger.*")]
        values = account(began, took, json.loads(ledger.read_text())["asked"], parts)
    values["ndcg@10"] = result["validation"]["ndcg@10"]
    kind = "" if not overrides else ", short"
    return Row("whole", f"m3dist train {data.name}, workers: {workers}{kind}", values, note=" ".join(overrides))


def ran(command: list[str], out: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The result of a run that a command makes in the folder `out`; raises ValueError when it fails."""
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise ValueError(f"m3dist train failed: {ended.stderr[-2000:]}")
    return json.loads((out / "result.json").read_text())


def account(began: float, took: float, asked: list[float], parts: list[dict]) -> dict[str, float]:
    """Shares of `took` seconds. Start-up: from the start of the process to the run, and from asking for workers until
    they work; waiting: what no process that trains accounts for."""
    parts = sorted(parts, key=lambda part: part["entered"])
    starting = asked[0] - began + sum(part["entered"] - at for part, at in zip(parts, asked, strict=True))
    sums: dict[str, float] = {"start-up": starting}
    for part in parts:
        for name, seconds in part["clocks"].items():
            sums[name] = sums.get(name, 0.0) + seconds
    sums["waiting and exit"] = took - sum(sums.values())
    shares = {f"share {name}": seconds / took for name, seconds in sums.items()}
    overhead = 1 - shares.get("share steps", 0.0) - shares.get("share evaluation", 0.0)
    return {
        "s": took, **shares, "share not steps or evaluation": overhead, "start-ups": float(len(parts)),
        "s per start-up": starting / len(parts),
    }  # fmt: skip
