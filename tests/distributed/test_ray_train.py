"""Ray Train runs: the numbers of one process, errors in one line, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from parallel_helpers import SMALL, small

from m3dist import config as configs
from m3dist import pipeline
from m3dist.distributed import ray_train as launch
from m3dist.distributed import watch
from m3dist.training.callbacks import Callback, Callbacks, Stopped
from m3dist.training.tracking import RunFailed, Tracker

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.timeout(240)]
AUTO = ("backbone.loss=auto", "merge.masks=auto")


def trained(out: Path, *extra: str, **options: Any) -> dict[str, Any]:
    return pipeline.run(configs.load(None, [*SMALL, f"out={out}", *extra]), quiet=True, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By one process, with the loss and the masks that validation data choose."""
    return trained(tmp_path_factory.mktemp("decided"), *AUTO)


@pytest.mark.parametrize(
    "extra",
    [
        [],
        pytest.param(["strategy=deepspeed", "zero_stage=3"], marks=pytest.mark.slow),
        pytest.param(["actors=1"], marks=pytest.mark.slow),
    ],
)
def test_two_workers_give_the_numbers_of_one_process(extra: list[str], tmp_path: Path, decided: dict[str, Any]) -> None:
    """And choose the same by them."""
    result = trained(tmp_path, "workers=2", *AUTO, *extra)
    for split in ("validation", "test"):
        assert result[split] == pytest.approx(decided[split], abs=1e-6)
    for stage, choice in (("race", "backbone"), ("selection", "masks")):
        ours, theirs = (each["stages"][stage] for each in (result, decided))
        assert ours["tried"] == pytest.approx(theirs["tried"], abs=1e-6)
        assert ours[choice] == theirs[choice]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    epochs = [(line["stage"], line["step"]) for line in lines]
    assert len(epochs) == len(set(epochs))
    assert {"race", "align", "invariance", "selection", "merge", "test"} <= {stage for stage, _ in epochs}
    assert list((tmp_path / "tb").rglob("events*"))
    assert not (tmp_path / "ray").exists()
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_config_s_paths_are_read_from_the_folder_of_the_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the one where Ray was started, nor from one that Ray Train makes for workers."""
    (tmp_path / "data").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    result = trained(Path("runs/mine"), "data=data", "workers=1")
    assert (tmp_path / "runs" / "mine" / "result.json").exists()
    assert result["test"]["ndcg@10"] > 0


@pytest.mark.timeout(600)
def test_callbacks_hear_workers_and_end_them(tmp_path: Path, alone: dict[str, Any]) -> None:
    """Twice, after an epoch and after a step; what was trained till then stays."""
    heard: list[tuple[str, int, float]] = []

    class AfterTwoEpochs(Callback):
        def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
            heard.append((stage, epoch, values["loss"]))
            if len(heard) == 2:
                raise Stopped

    class AtAStep(Callback):
        def on_stage_begin(self, stage: str) -> None:
            heard.append((stage, -1, 0.0))

        def on_step(self, stage: str, epoch: int, step: int) -> None:
            heard.append((stage, epoch, step))
            raise Stopped

    with pytest.raises(Stopped):
        trained(tmp_path, "workers=1", callbacks=[AfterTwoEpochs()])
    assert [at for *at, _ in heard] == [["align", 0], ["align", 1]]
    heard.clear()
    with pytest.raises(Stopped):
        trained(tmp_path, "workers=1", callbacks=[AtAStep()])
    assert [at for *at, _ in heard] == [["align", -1], ["align", 2]]  # from where the first one ended
    assert trained(tmp_path)["test"] == pytest.approx(alone["test"], abs=1e-6)


def test_bad_input_found_by_a_worker_is_one_error(tmp_path: Path) -> None:
    def work(engine: Any, tracker: Any) -> None:
        raise ValueError("features of 'visual' are bad")

    config = small("workers=1", f"out={tmp_path}")
    with pytest.raises(ValueError, match="features of 'visual' are bad"):
        launch.run(launch.Task(work, "bad"), config, Tracker(None))


def test_a_diverging_loss_ends_without_retries(tmp_path: Path) -> None:
    def work(engine: Any, tracker: Any) -> None:
        raise FloatingPointError("align: the loss is nan")

    with pytest.raises(FloatingPointError, match="the loss is nan"):
        launch.run(launch.Task(work, "nan"), small("workers=1", f"out={tmp_path}"), Tracker(None))


def test_an_error_of_a_worker_is_one_line_and_no_retry(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def work(engine: Any, tracker: Any) -> None:
        with begun.open("a") as file:
            file.write("x")
        raise KeyError("lost\nin three\nlines")

    said: list[str] = []
    tracker = Tracker(None)
    tracker.say = said.append  # type: ignore[method-assign]
    with pytest.raises(RunFailed) as raised:
        launch.run(launch.Task(work, "error"), small("workers=1", f"out={tmp_path}"), tracker)
    assert str(raised.value).startswith("worker 0 failed: KeyError: ")
    assert "test_ray_train.py" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert begun.read_text() == "x"
    assert not [line for line in said if "failed" in line or "again" in line]  # it is the run's end and no more


def test_a_killed_worker_is_told_as_killed_and_the_run_ends(tmp_path: Path) -> None:
    def work(engine: Any, tracker: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    said: list[str] = []
    tracker = Tracker(None)
    tracker.say = said.append  # type: ignore[method-assign]
    with pytest.raises(RunFailed) as raised:
        launch.run(launch.Task(work, "killed"), small("workers=1", f"out={tmp_path}", "max_failures=0"), tracker)
    said = [line for line in said if not line.startswith("waiting ")]  # on a busy machine
    assert said[0].startswith("1 worker on ")
    assert "was killed from outside or crashed in native code; the run ends (failure 1, max_failures=0)" in said[1]
    for text in (said[1], str(raised.value)):
        assert "ended without an error: its process" in text
        assert "memory" not in text  # which Ray's own text of any death mentions
        assert "\n" not in text


def test_a_killed_controller_is_started_again(tmp_path: Path) -> None:
    """It has not loaded torch, which takes seconds, and on one node nothing waits for a node to be taken back.

    Callbacks hear the workers of the second one, too.
    """
    heard: list[tuple[str, int]] = []

    class Hears(Callback):
        def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
            heard.append((stage, epoch))

    def work(engine: Any, tracker: Any) -> None:
        if not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            for process in psutil.Process(os.getppid()).children(recursive=True):  # of this session's raylet
                with (tmp_path / "names").open("a") as file:
                    file.write(" ".join(process.cmdline()) + "\n")
                if " ".join(process.cmdline()).startswith("ray::TrainController"):
                    (tmp_path / "maps").write_text(Path(f"/proc/{process.pid}/maps").read_text())
                    process.kill()
            time.sleep(60)  # ended with its controller
        tracker.log("fine", 0, {"loss": 1.0})

    said: list[str] = []
    tracker = Tracker(None)
    tracker.say = said.append  # type: ignore[method-assign]
    task = launch.Task(work, "controller")
    launch.run(task, small("workers=1", f"out={tmp_path}"), tracker, Callbacks([Hears()]))
    assert heard == [("fine", 0)]
    said = [line for line in said if not line.startswith("waiting ")]  # on a busy machine
    assert said[1] == "Ray Train's controller died: killed from outside, or out of memory; starting it again"
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (line["loss"], line["workers"]) == (1.0, 1.0)
    assert "libarrow" in (tmp_path / "maps").read_text()
    assert "libtorch" not in (tmp_path / "maps").read_text()
    assert "ray::RayTrainWorker" in (tmp_path / "names").read_text()
    assert "PreemptionWatcher" not in (tmp_path / "names").read_text()


def test_ray_prints_nothing_of_its_own_about_dead_processes() -> None:
    script = """
import os, time
from m3dist.distributed import placement
import ray
placement.connect()
die = ray.remote(max_retries=0)(lambda: os._exit(7))
try:
    ray.get(die.remote())
except ray.exceptions.WorkerCrashedError:
    time.sleep(3)
    print("told")
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, env=environment)
    assert done.stdout == "told\n", done.stderr
    assert "raylet" not in done.stderr


def test_prometheus_reads_the_values_of_a_run(tmp_path: Path) -> None:
    """Whose folder has a name that Ray would not take."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    seen = tmp_path / "seen"

    def work(engine: Any, tracker: Any) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not seen.exists():
            tracker.log("fine", 3, {"loss": 0.25})
            text = urllib.request.urlopen(address, timeout=10).read().decode()
            if found := [line for line in text.splitlines() if line.startswith("ray_m3dist_loss{")]:
                seen.write_text("\n".join(found))
            time.sleep(1)

    launch.run(launch.Task(work, "metrics"), small("workers=1", f"out={tmp_path}/Läufe"), Tracker(None))
    (line,) = seen.read_text().splitlines()
    assert f'run="{tmp_path}/L%C3%A4ufe"' in line
    assert 'stage="fine"' in line
    assert line.endswith(" 0.25")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["workers=9"], "workers: 9 x 1 CPU do not fit the cluster, which has 2 CPU"),
        (["workers=1", "resources_per_worker={CPU: 3}"], "1 x 3 CPU do not fit"),
        (["workers=1", "use_gpu=true"], "the cluster has no GPU"),
        (["workers=1", "resources_per_worker={TPU: 1}"], r"1 CPU \+ 1 TPU do not fit"),
    ],
)
def test_what_the_cluster_cannot_run_is_refused(values: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        launch.check(small(*values))


def test_a_busy_cluster_is_waited_for_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(engine: Any, tracker: Any) -> None:
        pass

    said: list[str] = []
    tracker = Tracker(None)
    monkeypatch.setattr(watch, "SILENCE", 2.0)
    free = tmp_path / "free"

    def say(text: str) -> None:
        said.append(text)
        free.touch()

    def hold() -> None:
        while not free.exists():
            time.sleep(0.1)

    monkeypatch.setattr(tracker, "say", say)
    holder = ray.remote(num_cpus=2)(hold).remote()  # all there is
    launch.run(launch.Task(work, "busy"), small("workers=1", f"out={tmp_path / 'run'}"), tracker)
    assert re.match(r"waiting for 1 worker of 1 CPU each for \d+ s; the cluster's 1 node\(s\) have 0 CPU", said[0])
    assert said[-1].startswith("1 worker on ")
    ray.get(holder)


def test_what_one_worker_needs_must_stand_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 2.0}}]
    monkeypatch.setattr(launch.ray, "nodes", lambda: nodes)
    launch.require("workers", 1, {"CPU": 1, "GPU": 1})
    with pytest.raises(ValueError, match=r"2 x 4 CPU \+ 1 GPU do not fit .* room for 0"):
        launch.require("workers", 2, {"CPU": 4, "GPU": 1})


def test_gpus_may_come_where_the_cluster_can_grow() -> None:
    launch.check(small("workers=1", "use_gpu=true", "autoscaling=true"))


def test_elastic_workers_need_their_minimum_alone() -> None:
    launch.check(small("workers=[2,9]"))
    launch.check(small("workers=9", "autoscaling=true"))
