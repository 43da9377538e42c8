"""Runs in processes of their own, that tests cut off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from parallel_helpers import SMALL

from m3dist.storage.artifacts import Store

LONG = [
    *SMALL, "align.epochs=8", "merge.epochs=8", "align.batch_size=64", "merge.batch_size=64", "backbone.groups=1",
    "align.patience=0", "merge.patience=0", "checkpoint.every_minutes=5e-4",  # several in an epoch
]  # fmt: skip


def start(out: Path, *extra: str, address: str = "", ray: str = "") -> subprocess.Popen:
    """`m3dist train` on this machine alone, as a job of the cluster whose job API has this address, or in this Ray."""
    submit = ["submit", "--address", address, "--"] if address else []
    return _started([*submit, "train", *LONG, f"out={out}", *extra], ray)


def resumed(out: Path, *values: str, ray: str = "") -> subprocess.Popen:
    """`m3dist train --resume`."""
    return _started(["train", "--resume", str(out), *values], ray)


def resume(out: Path, *values: str) -> None:
    """Go on to the end."""
    process = resumed(out, *values)
    assert process.wait(600) == 0, process.communicate()[1]


def _started(arguments: list[str], ray: str) -> subprocess.Popen:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # of this test session
    command = [sys.executable, "-m", "m3dist", *arguments]
    env |= {"RAY_ADDRESS": ray} if ray else {}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)


def until(condition: Callable[[], Any], seconds: float, process: subprocess.Popen) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    raise TimeoutError(process.communicate()[1])


def mid_epoch(out: Path, stage: str) -> Callable[[], bool]:
    """Whether a checkpoint inside an epoch after the first is there."""

    return lambda: any(not name.startswith("00000") and name[6:].strip("0") for name in saved(out, stage))


def saved(out: Path, stage: str) -> set[str]:
    """Names of the checkpoints of a stage: epoch and step."""
    return {path.parent.name for path in (out / "checkpoints").glob(f"{stage}-*/[0-9]*/meta.json")}


def artifacts(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of every stage, whole, whoever wrote them."""
    store, names = Store(out / "artifacts"), [x.parent.name for x in sorted((out / "artifacts").glob("*/meta.json"))]
    found = {name: name.split("-", 1) for name in names}
    return {name: store.load(*x)[0] | store.interactions(*x) for name, x in found.items()}


def first_line(out: Path) -> str:
    """Of metrics.jsonl, with the time at which it was written: a run that starts anew has another."""
    return (out / "metrics.jsonl").read_text().partition("\n")[0]


def lines(out: Path) -> list[tuple[str, int]]:
    return [(x["stage"], x["step"]) for x in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]


def same(out: Path, other: Path, exact: bool = True) -> None:
    ours, theirs = artifacts(out), artifacts(other)
    assert set(ours) == set(theirs)
    for name, tensors in theirs.items() if exact else ():
        for key, value in tensors.items():
            assert torch.equal(ours[name][key], value), (name, key)
    results = [json.loads((at / "result.json").read_text()) for at in (out, other)]
    for split in ("validation", "test"):
        assert results[0][split] == pytest.approx(results[1][split], abs=0 if exact else 1e-6)
    assert lines(out) == lines(other)
    assert not list(out.rglob("*.partial")), "half-written files"
    assert not list((out / "checkpoints").glob("*/*"))


def workers_under(pid: int) -> list[psutil.Process]:
    """Processes of Ray Train workers under a process that started a Ray of its own."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def nothing_left(children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=90)  # the agents of a killed raylet take their time
    assert not [child.name() for child in alive]
