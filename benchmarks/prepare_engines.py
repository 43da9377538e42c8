"""What `m3dist prepare tables` takes with the local engine and with Ray's, measured over all processes of each.

    PORT=8465 cluster/local.sh 2
    python -m benchmarks.prepare_engines --interactions 1e8 --address 127.0.0.1:8466

Makes a folder of ten CSV files (text ids, a hundred interactions a user, times), prepares it by each engine with a
temporal split and a 5-core, and prints wall time, processor seconds, the peak of all processes together (PSS, so that
shared pages count once), of this command's process and of the largest task (RSS), the files beside the destination at
their largest, and the fingerprint. The cluster's processes are those that `cluster/local.sh` marked; without --address
Ray starts on this machine and its processes are the command's children.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv as pacsv

FILES = 10
ITEMS = 50_000
PAUSE = 2  # seconds between two looks, which cost a tenth of a second of the processor each
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray keeps 127.0.0.1 and looks for no public address
MARK = "M3DIST_LOCAL_CLUSTER"  # in the environment of a local cluster's processes
OPTIONS = ("--split", "temporal", "--min-user", "5", "--min-item", "5")


def generate(folder: Path, n: int) -> None:
    """Write n interactions as ten CSV files: users drawn evenly, items by popularity."""
    folder.mkdir()
    for f in range(FILES):
        rng, rows = np.random.default_rng(f), n // FILES
        user = rng.integers(0, max(n // 100, 1), rows)
        item = np.minimum((rng.pareto(0.7, rows) * 50).astype(np.int64), ITEMS - 1)
        columns = {name: pa.array(np.char.add(name[0], x.astype("U"))) for name, x in (("user", user), ("item", item))}
        named = {f"{name}_id": column for name, column in columns.items()}
        named["timestamp"] = pa.array(1_500_000_000 + rng.integers(0, 10**8, rows))
        pacsv.write_csv(pa.table(named), folder / f"part-{f}.csv")


class Watch:
    """Sums over a command's process, those below it and the marked ones, taken now and then."""

    def __init__(self, command: psutil.Process, marked: bool):
        self._command, self._marked = command, marked
        self._ours: dict[int, bool] = {}
        self._first: dict[int, float] = {}
        self._cpu: dict[int, float] = {}
        self.together, self.driver, self.task = 0, 0, 0

    @property
    def seconds(self) -> float:
        return sum(self._cpu[pid] - self._first[pid] for pid in self._cpu)

    def look(self) -> None:
        below = {x.pid for x in self._command.children(recursive=True)}
        together = 0
        for pid in psutil.pids():
            try:
                if pid == self._command.pid or pid in below or self._is_marked(pid):
                    together += self._add(psutil.Process(pid))
            except psutil.Error:
                continue
        self.together = max(self.together, together)

    def _is_marked(self, pid: int) -> bool:
        if self._marked and pid not in self._ours:
            self._ours[pid] = MARK in psutil.Process(pid).environ()
        return self._ours.get(pid, False)

    def _add(self, process: psutil.Process) -> int:
        taken = sum(process.cpu_times()[:2])
        old = process.create_time() < self._command.create_time()  # whose seconds before do not count
        self._first.setdefault(process.pid, taken if old else 0.0)
        self._cpu[process.pid] = taken
        memory = process.memory_full_info()
        if process.pid == self._command.pid:
            self.driver = max(self.driver, memory.rss)
        elif "".join(process.cmdline()[:1]).startswith("ray::"):
            self.task = max(self.task, memory.rss)
        return memory.pss


def measured(engine: str, source: Path, address: str | None) -> dict[str, float | str]:
    """One engine over the source, in a process of its own."""
    target = source.with_name(engine)
    environment = {**os.environ, **({"RAY_ADDRESS": address} if address else {}), LOOPBACK: "0"}
    command = [sys.executable, "-m", "m3dist", "prepare", "tables", str(source), str(target), *OPTIONS]
    began, disk = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen([*command, "--engine", engine], stdout=said, stderr=said, env=environment)
        watch = Watch(psutil.Process(child.pid), marked=bool(address) and engine == "ray")
        while child.poll() is None:
            watch.look()
            disk = max(disk, sum(held(path) for path in source.parent.glob(f".{engine}.*.partial")))
            time.sleep(PAUSE)
        if child.returncode:
            said.seek(0)
            raise click.ClickException(said.read().decode()[-2000:])
    meta = json.loads((target / "dataset.json").read_text())
    return {
        "wall s": time.perf_counter() - began,
        "CPU s": watch.seconds,
        "all processes, MiB": watch.together / 2**20,
        "command, MiB": watch.driver / 2**20,
        "largest task, MiB": watch.task / 2**20,
        "beside the destination, MB": disk / 1e6,
        "kept": sum(meta["interactions"].values()),
        "fingerprint": meta["fingerprint"],
    }


def held(folder: Path) -> int:
    """Bytes of the files of a folder that changes."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


@click.command(help=__doc__)
@click.option("--interactions", default=1e7, show_default=True)
@click.option("--engine", "engines", type=click.Choice(["local", "ray"]), multiple=True, default=["local", "ray"])
@click.option("--address", help="Of a cluster that runs, by cluster/local.sh.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the made data here, and use what is there.")
def main(interactions: float, engines: tuple[str, ...], address: str | None, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        source = place / f"source{int(interactions)}"
        if not source.exists():
            generate(source, int(interactions))
        for engine in engines:
            found = measured(engine, source, address)
            print(
                f"{engine}: "
                + ", ".join(f"{k} {v:,.0f}" if k != "fingerprint" else f"{k} {v}" for k, v in found.items())
            )


if __name__ == "__main__":
    main()
