"""Kills runs at random moments with SIGKILL and starts them again, until they end; prints a line of JSON for each run.

python soak_run.py KIND FOLDER KILLS [SEED]

KIND: alone, workers, actors or tune; all but the first use the Ray that RAY_ADDRESS names, whose process M3DIST_RAY
is. A run is a fork of this process, so that its start costs nothing; so is the undisturbed run that all are held
against. Every run is killed several times, its driver or, under Ray, one of its worker processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from fault_helpers import LONG, artifacts, lines
from omegaconf import OmegaConf

from m3dist import checksums, pipeline
from m3dist.cli.main import main as command_line
from m3dist.search import driver
from m3dist.storage import leases

SHORT = [*LONG, "align.epochs=4", "merge.epochs=4", "checkpoint.every_minutes=2e-3", "max_failures=100"]
EXTRA = {"alone": [], "workers": ["workers=2"], "actors": ["actors=2", "invariance.rounds=6", "invariance.moved=0"]}
STAGES = ("align", "invariance", "merge", "test", "end")
PLACES = dict.fromkeys(EXTRA, STAGES) | {"tune": ("trial 0", "trial 1", "trial 2", "choosing", "final")}
IN_A_ROW = 8  # kills of one run at most
PARTS = ("RayTrainWorker", "m3dist-environments", "_Actor", "ImplicitFunc", "TrainController")  # of process titles


def arguments(kind: str, out: Path) -> list[str]:
    """The command line of one run."""
    if kind != "tune":
        return ["train", *SHORT, *EXTRA[kind], f"out={out}"]
    base = out.with_suffix(".base.yaml")
    base.write_text(OmegaConf.to_yaml(OmegaConf.from_dotlist(SHORT)))
    path = out.with_suffix(".yaml")
    search = {
        "base": str(base), "space": {"merge.lr": {"log_uniform": [1e-3, 1e-1]}, "align.lr": {"choice": [0.01, 0.03]}},
        "scheduler": {"kind": "fifo"}, "concurrency": 1, "budget": {"trials": 3}, "final_seeds": [0],
        "retries": 100, "out": str(out),
    }  # fmt: skip
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(search)))
    return ["tune", str(path)]


def started(kind: str, out: Path) -> int:
    """The process id of a fork that runs the command."""
    words = arguments(kind, out)
    child = os.fork()
    if child:
        return child
    os.setsid()
    log = os.open(out.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        command_line(words)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    finally:
        os._exit(99)


def ended(child: int, seconds: float = 900) -> int | None:
    """The exit code of a process, which a signal makes negative; None where it still runs after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.01)


def parts_of_a_run() -> list[psutil.Process]:
    """Processes of Ray that work for a run: workers, controllers, actors, trials."""
    found = []
    for process in psutil.Process(int(os.environ["M3DIST_RAY"])).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(part in " ".join(process.cmdline()) for part in PARTS):
                found.append(process)
    return found


def place(kind: str, out: Path) -> int:
    """How far a run is, as an index of PLACES: the first stage without an artifact, or the number of ended trials."""
    if kind == "tune":
        log = out / "trials.jsonl"
        return min(log.read_text().count('"ended"'), 3) + (out / "best.yaml").exists() if log.exists() else 0
    there = {path.parent.name.split("-")[0] for path in out.glob("artifacts/*/meta.json")}
    return next((k for k, stage in enumerate(PLACES[kind][:-1]) if stage not in there), 4)


def story(kind: str, out: Path) -> dict[str, Any]:
    """What must not depend on kills: every tensor's checksum, every metric, and which steps were logged, in order."""
    if kind == "tune":
        events = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
        kept = {e["trial"]: (e["status"], e.get("metric"), e.get("stage")) for e in events if e["event"] == "ended"}
        values = {e["trial"]: e["values"] for e in events if e["event"] == "proposed"}
        summary = json.loads((out / "summary.json").read_text())
        told = {"trials": kept, "values": values, "best": summary["best"], "counts": summary["trials"]}
    else:
        result = json.loads((out / "result.json").read_text())
        told = {"validation": result["validation"], "test": result["test"], "lines": lines(out)}
    tensors = {
        f"{name}/{key}": checksums.of(x.numpy().tobytes())
        for name, tensors in artifacts(out).items()
        for key, x in tensors.items()
    }
    return {"told": told, "tensors": tensors, "half": sorted(str(p) for p in out.rglob("*.partial"))}


def killed(kind: str, out: Path, rng: np.random.Generator, seconds: float) -> tuple[Counter[str], int | None]:
    """Run to the end with kills on the way, some time after a stage was reached; what was killed, and the exit code."""
    kills: Counter[str] = Counter()
    child, code = started(kind, out), None
    for least in sorted(rng.integers(0, 5, rng.integers(2, IN_A_ROW + 1)).tolist()):
        while code is None and place(kind, out) < least:
            code = ended(child, 0.02)
        code = ended(child, rng.uniform(0, 0.2 * seconds)) if code is None else code
        if code is not None:  # it was faster
            return kills, code
        others = parts_of_a_run() if kind != "alone" and rng.random() < 0.4 else []
        where = PLACES[kind][place(kind, out)]
        if others:
            with contextlib.suppress(psutil.Error):
                victim = others[int(rng.integers(len(others)))]
                name = victim.name()
                victim.kill()
                kills[f"{name} in {where}"] += 1
            continue
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        if code != -signal.SIGKILL:  # it was faster
            return kills, code
        kills[f"driver in {where}"] += 1
        child, code = started(kind, out), None
    return kills, ended(child)


def main(kind: str, folder: Path, kills: int, seed: int) -> None:
    if kind == "alone":
        leases.HEARTBEAT, leases.EXPIRY = 0.2, 1.0  # a dead process's folder is free sooner
    began = time.monotonic()
    assert ended(started(kind, folder / "whole")) == 0, (folder / "whole.log").read_text()[-2000:]
    seconds, expected = time.monotonic() - began, story(kind, folder / "whole")
    done, run, rng = 0, 0, np.random.default_rng(seed)
    while done < kills:
        out = folder / f"run{run}"
        kills_here, code = killed(kind, out, rng, seconds)
        found: Any = story(kind, out) if code == 0 else (folder / f"run{run}.log").read_text()[-3000:]
        wrong = None if found == expected else {"expected": expected, "found": found}
        print(json.dumps({"run": run, "kills": kills_here, "code": code, "found": wrong}), flush=True)
        done, run = done + sum(kills_here.values()), run + 1


if __name__ == "__main__":
    _: tuple[Callable, ...] = (pipeline.run, driver.run)  # loaded before any fork
    main(sys.argv[1], Path(sys.argv[2]).resolve(), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)
