"""Timing, the roof of this machine, peak memory, and rows that later runs are compared with."""

from __future__ import annotations

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


def seconds(call: Call, repeats: int = 5, least: float = 0.0) -> float:
    """Median wall-clock seconds of a call, after one to warm up; of more repeats where `least` seconds are not over."""
    return alternate({"it": call}, repeats, least)["it"]


def alternate(calls: dict[str, Call], repeats: int = 5, least: float = 0.0) -> dict[str, float]:
    """Median seconds of every call. They take turns, so that a busy neighbour slows all of them alike."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    while len(next(iter(times.values()))) < repeats or time.perf_counter() - began < least:
        for name, call in calls.items():
            started = time.perf_counter()
            call()
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
    """What this process can do at best: float32 matrix products in FLOP/s, and memory in bytes/s."""

    flops: float
    bandwidth: float
    gpu: dict[str, float] = field(default_factory=dict)  # rates of a GPU, where there is one

    def share(self, flop: float, moved: float, took: float) -> dict[str, float]:
        """The part of the better of both bounds that a step of `took` seconds reached."""
        compute, memory = flop / self.flops, moved / self.bandwidth
        bound = "compute" if compute >= memory else "memory"
        return {f"share of the roof ({bound})": max(compute, memory) / took}


_MATRIX = torch.randn(1536, 1536)
_PRODUCT = torch.empty(1536, 1536)


def multiply() -> None:
    """A matrix product large enough to reach the machine's rate: 2 * 1536^3 FLOP."""
    torch.mm(_MATRIX, _MATRIX, out=_PRODUCT)


MULTIPLY_FLOP = 2 * 1536**3


def roof() -> Roof:
    """Both rates, measured: products of 1536 x 1536 float32, and copies between arrays too large for a cache."""
    a, b = torch.zeros(1 << 27), torch.zeros(1 << 27)  # 512 MiB each
    took = alternate({"product": multiply, "copy": lambda: b.copy_(a)}, 7)
    return Roof(MULTIPLY_FLOP / took["product"], 2 * a.numel() * 4 / took["copy"], _gpu())


def _gpu() -> dict[str, float]:
    """float32 and bf16 products of 8192 x 8192, and copies; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}

    def rate(call: Call) -> float:
        def waited() -> None:
            call()
            torch.cuda.synchronize()

        return seconds(waited, 10)

    out = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        out[f"GPU {name} GFLOP/s"] = 2 * 8192**3 / rate(lambda x=x: x @ x) / 1e9
    a = torch.zeros(1 << 29, device="cuda")
    b = torch.empty_like(a)
    return {**out, "GPU GB/s": 2 * a.numel() * 4 / rate(lambda: b.copy_(a)) / 1e9}


def against_roof(
    call: Call, flop: float, moved: float, limits: Roof, repeats: int = 7, least: float = 1.0
) -> dict[str, float]:
    """Median seconds of a call and its share of the roof, whose product rate is measured in turns with it."""
    took = alternate({"it": call, "product": multiply}, repeats, least)
    here = Roof(MULTIPLY_FLOP / took["product"], limits.bandwidth)
    return {"ms": took["it"] * 1e3, **here.share(flop, moved, took["it"])}


def peak_mib(call: Call) -> float:
    """The most resident memory of this process during a call, data and libraries included; NaN where the system does
    not say."""
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
