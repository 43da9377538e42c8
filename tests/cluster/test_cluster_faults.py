"""A head and nodes whose processes come, go and are killed: what the user sees, and that the job ends the same."""

from __future__ import annotations

import json
import os
import shlex
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from local_places import ROOT, TINY, Place, command, family, start, wait  # type: ignore[import-not-found]
from ray.job_submission import JobSubmissionClient

from m3dist import config, pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SMALL = TINY + "merge: {epochs: 2, masks: learned}\n"
PACED = ("merge.epochs=150", "merge.patience=0", "merge.evaluate_every=50", "checkpoint.every_epochs=2")


def _killed(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _titled(place: Place, title: str) -> list[int]:
    return [pid for pid in sorted(place.pids()) if command(pid).startswith(title)]


def test_a_worker_the_controller_and_a_node_are_killed_one_by_one(tmp_path):
    """A head and two nodes of one CPU each, and a run of two workers."""
    folder = Path(tempfile.mkdtemp(prefix="m3k"))
    (tmp_path / "small.yaml").write_text(SMALL)
    place = start(folder, tmp_path, nodes=2, CPUS="1", PYTHONPATH=str(ROOT))
    try:
        process, said = _paced(place, "small.yaml", "workers=2", f"out={tmp_path}/run", *PACED)
        _says(process, said, "merge 2: loss")
        _killed(_titled(place, "ray::RayTrainWorker")[:1])
        _says(process, said, "was killed from outside or crashed in native code; starting again (failure 1, ")
        _says(process, said, "2 workers again; they go on from the last checkpoint")
        _killed(_titled(place, "ray::TrainController"))
        _says(process, said, "Ray Train's controller died: killed from outside, or out of memory; starting it again")
        _says(process, said, "2 workers again; they go on from the last checkpoint", times=2)
        nodes = [family(int((place.state / f"node{i}.pid").read_text())) for i in (1, 2)]
        _killed(next(pids for pids in nodes if any(command(pid).startswith("ray::RayTrainWorker") for pid in pids)))
        _says(process, said, "2 workers again; they go on from the last checkpoint", times=3)
        assert any("lost its node, which left" in line or "lost the connection" in line for line in said), said
        _ends_the_same(process, said, tmp_path)
    finally:
        place.script("--stop")


def _ends_the_same(process: Any, said: list[str], folder: Path) -> None:
    """The job ends with the metrics of a run without a cluster, and printed nothing of Ray's own."""
    (folder / "hurry").touch()
    assert process.wait(timeout=600) == 0, "".join(said)
    assert not any(raw in line for raw in ("Traceback", "(raylet)") for line in said)
    result = json.loads((folder / "run/result.json").read_text())
    alone = pipeline.run(config.load(folder / "small.yaml", [*PACED, f"out={folder}/alone"]), quiet=True)
    assert result["test"] == pytest.approx(alone["test"], abs=1e-6)
    assert result["validation"] == pytest.approx(alone["validation"], abs=1e-6)


def _lines(process: Any) -> list[str]:
    said: list[str] = []
    threading.Thread(target=lambda: said.extend(process.stdout or []), daemon=True).start()
    return said


def _says(process: Any, said: list[str], text: str, times: int = 1) -> None:
    told = lambda: sum(text in line for line in said) >= times  # noqa: E731
    wait(lambda: told() or process.poll() is not None, 400)
    assert told(), "".join(said)


@pytest.mark.parametrize("embeddings", ["replicated", "sharded"])
def test_an_elastic_run_grows_and_shrinks(embeddings, tmp_path):
    """A head of one CPU, which holds one worker; a node comes, and goes again."""
    folder = Path(tempfile.mkdtemp(prefix="m3e"))
    (tmp_path / "small.yaml").write_text(SMALL)
    place = start(folder, tmp_path, nodes=0, CPUS="1", PYTHONPATH=str(ROOT))
    try:
        out = tmp_path / "run"
        elastic = ("workers=[1,2]", f"embeddings={embeddings}", "cluster.resize_seconds=2", f"out={out}", *PACED)
        process, said = _paced(place, "small.yaml", *elastic)
        _says(process, said, "1 worker on ")
        wait(lambda: _workers_logged(out) == {1.0}, 200)  # a second one may come before the first has ended an epoch
        assert place.script("add", "1", CPUS="1", PYTHONPATH=str(ROOT)).returncode == 0
        _says(process, said, "2 workers now, 1 before, new: ")
        wait(lambda: _workers_logged(out) == {1.0, 2.0}, 200)
        assert place.script("remove", "1").returncode == 0
        _says(process, said, "lost its node, which ")  # its provider took back, as Ray may see in time, or left
        _says(process, said, "1 worker now, 2 before; they go on from the last checkpoint")
        _ends_the_same(process, said, tmp_path)
    finally:
        place.script("--stop")


def _paced(place: Place, *arguments: str) -> tuple[Any, list[str]]:
    """paced.py as a job, in the folder that commands run in; follows it, and what it has printed so far."""
    words = shlex.join(["python", str(Path(__file__).with_name("paced.py")), *arguments])
    environment = {"RAY_ADDRESS": "auto", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    job = JobSubmissionClient(place.address).submit_job(
        entrypoint=f"cd {place.elsewhere} && exec {words}", runtime_env={"env_vars": environment}
    )
    process = place.popen("jobs", "logs", "--address", place.address, "--follow", job)
    return process, _lines(process)


def _workers_logged(out: Path) -> set[float]:
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return set()
    return {json.loads(line).get("workers") for line in lines if line.endswith("}")}


def test_a_job_whose_head_is_killed_goes_on_when_given_again(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="m3h"))
    (tmp_path / "small.yaml").write_text(SMALL)
    arguments = ("small.yaml", "workers=1", f"out={tmp_path}/run", *PACED)
    place = start(folder, tmp_path, nodes=1, PYTHONPATH=str(ROOT))
    try:
        process, said = _paced(place, *arguments)
        _says(process, said, "merge 10: loss")
        _killed(family(int((place.state / "head.pid").read_text())))
        assert process.wait(timeout=300) == 3, "".join(said)
        assert "submit the same command again when it is back" in said[-1]
    finally:
        place.script("--stop")
    place = start(folder, tmp_path, nodes=1, PYTHONPATH=str(ROOT))
    try:
        process, said = _paced(place, *arguments)
        _says(process, said, "1 worker on ")
        _ends_the_same(process, said, tmp_path)
        assert not any(line.startswith(("align 0", "merge 3:")) for line in said)  # what was done is not done again
    finally:
        place.script("--stop")
