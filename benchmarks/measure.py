"""Timing, the roof of this machine, peak memory, and rows that later runs are compared with."""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import m3dist
from benchmarks.costs import Cost
from m3dist.distributed.engine import Engine

Call = Callable[[], object]


@dataclass
class Row:
    """What one thing costs: named values, of which those called `times ...` and `share ...` are ratios of this run."""

    section: str
    what: str
    values: dict[str, float]
    note: str = ""


@dataclass
class Report:
    """All rows of a run and the machine that they were measured on."""

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def write(self, path: Path) -> None:
        path.write_text(
            json.dumps({"machine": self.machine, "rows": [vars(row) for row in self.rows]}, indent=1) + "\n"
        )

    @staticmethod
    def read(path: Path) -> Report:
        """Raises ValueError when the file is not a report."""
        try:
            raw = json.loads(path.read_text())
            return Report(raw["machine"], [Row(**row) for row in raw["rows"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a report of `python -m benchmarks --json` ({error})") from None


def seconds(call: Call, repeats: int = 5, least: float = 0.0, device: str = "cpu") -> float:
    """Median wall-clock seconds of a call, after one to warm up; of more repeats where `least` seconds are not over."""
    return alternate({"it": call}, repeats, least, device)["it"]


def alternate(calls: dict[str, Call], repeats: int = 5, least: float = 0.0, device: str = "cpu") -> dict[str, float]:
    """Median seconds of every call. They take turns, so that a busy neighbour slows all of them alike.

    On a GPU (device: "cuda") the clock is read when the GPU has done all that it was given.
    """
    wait: Call = torch.cuda.synchronize if device == "cuda" else lambda: None
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    while len(next(iter(times.values()))) < repeats or time.perf_counter() - began < least:
        for name, call in calls.items():
            wait()
            started = time.perf_counter()
            call()
            wait()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def repeated(call: Call, times: int) -> Call:
    """A call that makes `times` calls."""

    def several() -> None:
        for _ in range(times):
            call()

    return several


@dataclass(frozen=True)
class Roof:
    """What a device can do at best: matrix products of float32 numbers in FLOP/s, and memory in bytes/s.

    On a GPU products are by TF32, as steps have them.
    """

    flops: float
    bandwidth: float
    gpu: dict[str, float] = field(default_factory=dict)  # all rates of a GPU, where there is one
    device: str = "cpu"

    def share(self, spent: Cost, took: float) -> dict[str, float]:
        """The part of the better of both bounds that a step of `took` seconds reached."""
        compute, memory = spent.flop / self.flops, spent.moved / self.bandwidth
        bound = "compute" if compute >= memory else "memory"
        return {f"share of the roof ({bound})": max(compute, memory) / took}


@functools.cache
def product(device: str) -> tuple[Call, float]:
    """A matrix product large enough to reach a device's rate, and its FLOP."""
    n, engine = 8192 if device == "cuda" else 1536, Engine(device=device)
    a, out = torch.randn(n, n, device=device), torch.empty(n, n, device=device)

    def multiply() -> None:
        with engine.fast_products():
            torch.mm(a, a, out=out)

    return multiply, 2.0 * n**3


def roof(device: str = "cpu") -> Roof:
    """Both rates of a device, measured by products and by copies between arrays too large for a cache."""
    gpu = _gpu()
    if device == "cuda":
        return Roof(gpu["GPU TF32 GFLOP/s"] * 1e9, gpu["GPU GB/s"] * 1e9, gpu, device)
    multiply, flop = product(device)
    a, b = torch.zeros(1 << 27), torch.zeros(1 << 27)  # 512 MiB each
    took = alternate({"product": multiply, "copy": lambda: b.copy_(a)}, 7)
    return Roof(flop / took["product"], 2 * a.numel() * 4 / took["copy"], gpu)


def _gpu() -> dict[str, float]:
    """Products of 8192 x 8192 in three precisions, and copies; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    fast, flop = product("cuda")
    x, bf16 = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    a = torch.zeros(1 << 29, device="cuda")
    b = torch.empty_like(a)
    products: dict[str, Call] = {"float32": lambda: x @ x, "TF32": fast, "bf16": lambda: bf16 @ bf16}
    took = alternate({**products, "copy": lambda: b.copy_(a)}, 10, device="cuda")
    rates = {f"GPU {name} GFLOP/s": flop / took[name] / 1e9 for name in products}
    return {**rates, "GPU GB/s": 2 * a.numel() * 4 / took["copy"] / 1e9}


def against_roof(call: Call, spent: Cost, limits: Roof, repeats: int = 7, least: float = 1.0) -> dict[str, float]:
    """Median seconds of a call and its share of the roof, whose product rate is measured in turns with it."""
    multiply, flop = product(limits.device)
    took = alternate({"it": call, "product": multiply}, repeats, least, limits.device)
    here = Roof(flop / took["product"], limits.bandwidth)
    return {"ms": took["it"] * 1e3, **here.share(spent, took["it"])}


def peak_mib(call: Call, device: str = "cpu") -> float:
    """The most memory during a call: on a GPU of its tensors; else resident, data and libraries included, and NaN where
    the system does not say."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 2**20
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        clear.write_text("5")
        call()
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        call()
        return float("nan")


def machine(limits: Roof) -> dict[str, Any]:
    model = next((x.split(":")[1].strip() for x in _cpuinfo() if x.startswith("model name")), platform.processor())
    return {
        "cpu": model,
        "device": torch.cuda.get_device_name() if limits.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "m3dist": m3dist.__version__,
        "GFLOP/s": limits.flops / 1e9,
        "GB/s": limits.bandwidth / 1e9,
        **limits.gpu,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def show(report: Report, console: Console) -> None:
    about = report.machine
    title = f"{about['GFLOP/s']:.0f} GFLOP/s float32, {about['GB/s']:.1f} GB/s, {about['threads']} threads"
    title += "".join(f", {name} {value:,.0f}" for name, value in about.items() if name.startswith("GPU"))
    table = Table("section", "what", "measure", "value", title=title)
    for row in report.rows:
        for at, (name, value) in enumerate(row.values.items()):
            head = (row.section, row.what) if at == 0 else ("", "")
            table.add_row(*head, name, f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}")
        if row.note:
            head = ("", "") if row.values else (row.section, row.what)
            table.add_row(*head, row.note, "", style="dim")
    console.print(table)


def compare(old: Report, new: Report, console: Console) -> None:
    """Print every value that both reports have, with new / old."""
    before = {(row.section, row.what, name): value for row in old.rows for name, value in row.values.items()}
    table = Table("section", "what", "measure", "old", "new", "new / old", title="compared")
    for row in new.rows:
        for name, value in row.values.items():
            was = before.get((row.section, row.what, name))
            if was is None:
                continue
            ratio = f"{value / was:.2f}" if was else "-"
            table.add_row(row.section, row.what, name, f"{was:,.4g}", f"{value:,.4g}", ratio)
    console.print(table)


def only(names: Iterable[str], given: tuple[str, ...], what: str) -> list[str]:
    """The names chosen, in their order; all where none is given. Raises ValueError on an unknown one."""
    known = list(names)
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if not given or name in given]
