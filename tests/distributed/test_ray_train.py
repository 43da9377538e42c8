"""Ray Train runs: the numbers of one process, errors in one line, nothing left behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from parallel_helpers import SMALL, small

from m3dist import config as configs
from m3dist import pipeline
from m3dist.distributed import ray_train as launch
from m3dist.training.callbacks import Callback, Stopped
from m3dist.training.tracking import RunFailed, Tracker

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.timeout(240)]


def trained(out: Path, *extra: str, **options: Any) -> dict[str, Any]:
    return pipeline.run(configs.load(None, [*SMALL, f"out={out}", *extra]), quiet=True, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(
    "extra",
    [
        [],
        pytest.param(["strategy=deepspeed", "zero_stage=3"], marks=pytest.mark.slow),
        pytest.param(["actors=1"], marks=pytest.mark.slow),
    ],
)
def test_two_workers_give_the_numbers_of_one_process(extra: list[str], tmp_path: Path, alone: dict[str, Any]) -> None:
    result = trained(tmp_path, "workers=2", *extra)
    for split in ("validation", "test"):
        assert result[split] == pytest.approx(alone[split], abs=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    epochs = [(line["stage"], line["step"]) for line in lines]
    assert len(epochs) == len(set(epochs))
    assert {"align", "invariance", "merge", "test"} == {stage for stage, _ in epochs}
    assert list((tmp_path / "tb").rglob("events*"))
    assert not (tmp_path / "ray").exists()
    assert not list((tmp_path / "checkpoints").glob("*"))


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
    def work(engine: Any, tracker: Any, shared: Any) -> None:
        raise ValueError("features of 'visual' are bad")

    config = small("workers=1", f"out={tmp_path}")
    with pytest.raises(ValueError, match="features of 'visual' are bad"):
        launch.run(work, config, "bad", Tracker(None))


def test_a_diverging_loss_ends_without_retries(tmp_path: Path) -> None:
    def work(engine: Any, tracker: Any, shared: Any) -> None:
        raise FloatingPointError("align: the loss is nan")

    with pytest.raises(FloatingPointError, match="the loss is nan"):
        launch.run(work, small("workers=1", f"out={tmp_path}"), "nan", Tracker(None))


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
    def work(engine: Any, tracker: Any, shared: Any) -> None:
        pass

    said: list[str] = []
    tracker = Tracker(None)
    monkeypatch.setattr(launch, "SILENCE", 2.0)
    free = tmp_path / "free"

    def say(text: str) -> None:
        said.append(text)
        free.touch()

    def hold() -> None:
        while not free.exists():
            time.sleep(0.1)

    monkeypatch.setattr(tracker, "say", say)
    holder = ray.remote(num_cpus=2)(hold).remote()  # all there is
    launch.run(work, small("workers=1", f"out={tmp_path / 'run'}"), "busy", tracker)
    assert said[0].startswith("waiting for 1 workers; the cluster has 0 CPU")
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ValueError, "lower batch_size"),
        (RuntimeError("Connection reset\nray.exceptions.OutOfMemoryError: killed"), ValueError, "lower batch_size"),
        (RuntimeError("Connection reset\nlast words"), RunFailed, "more than max_failures=0 times.*last words"),
        (KeyError("lost"), RunFailed, r"KeyError: 'lost' \(.*test_ray_train.py:"),
    ],
)
def test_what_ends_workers_is_one_line(error: Exception, kind: type[Exception], says: str, tmp_path: Path) -> None:
    """An error that says that another worker is gone is tried again, max_failures times; any other ends the run."""

    def work(engine: Any, tracker: Any, shared: Any) -> None:
        raise error

    with pytest.raises(kind, match=says) as found:
        launch.run(work, small("workers=1", "max_failures=0", f"out={tmp_path}"), "ends", Tracker(None))
    assert "\n" not in str(found.value)
