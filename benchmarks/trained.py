"""`m3dist train` from its start to its end on a prepared data set: time and memory, beside what the dry run predicts.

    python -m benchmarks.trained --data DATA --set model=ultragcn --set backbone.loss=softmax --set merge.epochs=1

Prints what the command says with the seconds since its start, then the memory that each worker is predicted to need,
the peak of every worker (its libraries and pages that it shares included), and of all processes, Ray's among them, in
which shared pages count once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import psutil

from m3dist.config import load
from m3dist.data.dataset import Dataset
from m3dist.training import memory

PAUSE = 0.5  # seconds between two looks
WORKER = "ray::RayTrainWorker"


class Highest(threading.Thread):
    """The most that a process and all below it take, by looking now and then; bytes.

    together: of all, shared pages counted once; resident: counted in each. workers: peaks by process id of those that
    Ray Train started; largest: of any process.
    """

    def __init__(self, child: subprocess.Popen, limit: float = float("inf")):
        super().__init__(daemon=True)
        self._child, self._limit = child, limit
        self.together = self.resident = self.largest = 0
        self.workers: dict[int, int] = {}

    def run(self) -> None:
        while self._child.poll() is None:
            together = resident = 0
            for process in self._processes():
                try:
                    found = process.memory_full_info()
                    if "".join(process.cmdline()[:1]).startswith(WORKER):
                        self.workers[process.pid] = peak(process.pid)
                except (psutil.Error, OSError):
                    continue
                together, resident = together + found.pss, resident + found.rss
                self.largest = max(self.largest, found.rss)
            self.together, self.resident = max(self.together, together), max(self.resident, resident)
            if together > self._limit:
                self._child.terminate()
            time.sleep(PAUSE)

    def _processes(self) -> list[psutil.Process]:
        try:
            return [psutil.Process(self._child.pid), *psutil.Process(self._child.pid).children(recursive=True)]
        except psutil.Error:
            return []


def peak(pid: int) -> int:
    """The most memory that a process has had resident, in bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) << 10


def train(values: list[str], say: Callable[[str], object]) -> Highest:
    """Run the command with these values; raises ClickException when it fails."""
    command = [sys.executable, "-m", "m3dist", "train", *values]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "RAY_memory_monitor_refresh_ms": "0"},  # which would count what others take here
    )  # fmt: skip
    watch = Highest(child)
    watch.start()
    for line in child.stdout or ():
        say(line.rstrip())
    if child.wait():
        raise click.ClickException(f"m3dist train ended with {child.returncode}")
    watch.join()
    return watch


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--set", "values", multiple=True, metavar="KEY=VALUE")
def main(data: Path, workers: int, values: tuple[str, ...]) -> None:
    given = [f"data={data}", f"workers={workers}", *values]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = train(
            [*given, f"out={folder}/run"], lambda x: click.echo(f"[{time.perf_counter() - began:5.0f} s] {x}")
        )
    predicted = memory.predict(load(None, given), Dataset(data))
    click.echo("predicted of a worker, MiB: " + ", ".join(f"{k} {v / 2**20:,.0f}" for k, v in predicted.items()))
    click.echo("peak of each worker, MiB: " + ", ".join(f"{x / 2**20:,.0f}" for x in found.workers.values()))
    click.echo(f"all processes, MiB: {found.together / 2**20:,.0f}; {time.perf_counter() - began:,.0f} s in all")


if __name__ == "__main__":
    main()
