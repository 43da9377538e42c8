"""Runs that are killed or interrupted go on from their checkpoints and end with the numbers of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import ray
from fault_helpers import (
    LONG,
    first_line,
    mid_epoch,
    nothing_left,
    resume,
    resumed,
    same,
    saved,
    start,
    until,
    workers_under,
)

from m3dist import config as configs
from m3dist import pipeline


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    # in a process like the others: bits may depend on what else a process has loaded
    process = start(out, "checkpoint.every_minutes=0")
    assert process.wait(150) == 0, process.communicate()[1]
    return out


@pytest.mark.timeout(1500)
def test_ctrl_c_and_a_kill_change_no_bit(tmp_path: Path, undisturbed: Path) -> None:
    """Ctrl-C in the middle of stage 1, which writes the only checkpoint there is; a kill in the middle of stage 3."""
    process = start(tmp_path, "checkpoint.every_minutes=0", "checkpoint.every_epochs=0")
    metrics = tmp_path / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1, 400, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 130
    assert len(saved(tmp_path, "align")) == 1
    first = first_line(tmp_path)
    assert not (tmp_path / "result.json").exists()
    process = resumed(tmp_path, "checkpoint.every_minutes=5e-4")
    until(mid_epoch(tmp_path, "merge"), 400, process)
    process.kill()
    process.wait()
    (next((tmp_path / "checkpoints").glob("merge-*")) / "99999-0000001").mkdir()  # what a kill while saving leaves
    resume(tmp_path)
    same(tmp_path, undisturbed)
    assert first_line(tmp_path) == first


@pytest.mark.timeout(1500)
def test_a_run_of_workers_goes_on_whatever_happens(ray_here: None, tmp_path: Path) -> None:
    """A killed worker, a killed driver and Ctrl-C, one after the other; then elastic workers under ZeRO, then none."""
    address, here = ray.get_runtime_context().gcs_address, os.getpid()
    few = ("model=ultragcn", "merge.epochs=20")
    pipeline.run(configs.load(None, [*LONG, *few, f"out={tmp_path / 'undisturbed'}"]), quiet=True)
    out = tmp_path / "run"

    def further(process: subprocess.Popen) -> None:
        before = max(saved(out, "merge"), default="")
        until(lambda: max(saved(out, "merge"), default="") > before, 400, process)

    process = start(out, *few, "workers=2", ray=address)
    until(mid_epoch(out, "merge"), 400, process)
    first = first_line(out)
    until(lambda: workers_under(here), 60, process)[0].kill()
    further(process)
    workers = workers_under(here)
    process.kill()
    process.wait()
    nothing_left(workers)
    process = resumed(out, "workers=[1,2]", "strategy=deepspeed", "zero_stage=2", ray=address)
    further(process)
    workers = workers_under(here)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 130
    nothing_left(workers)
    assert not (out / "result.json").exists()
    resume(out, "workers=0", "strategy=ddp")
    same(out, tmp_path / "undisturbed", exact=False)
    assert first_line(out) == first


def test_resume_refuses_another_config(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(ValueError, match="would change its stage merge"):
        pipeline.resumed(str(undisturbed), ("merge.lr=0.5",))
    with pytest.raises(ValueError, match="no run to resume"):
        pipeline.resumed(str(tmp_path), ())
    assert pipeline.resumed(str(undisturbed), ("workers=2", "strategy=deepspeed")).workers == 2
    with pytest.raises(ValueError, match="holds a run on data=synthetic"):
        pipeline.run(configs.load(None, [f"out={undisturbed}", "data=elsewhere"]))


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two workers."""
    out = tmp_path_factory.mktemp("two")
    process = start(out, "workers=2")
    assert process.wait(600) == 0, process.communicate()[1]
    return out


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("strategy", [[], ["strategy=deepspeed", "zero_stage=2"]])
def test_a_killed_worker(strategy: list[str], tmp_path: Path, by_two: Path) -> None:
    process = start(tmp_path, "workers=2", *strategy)
    until(mid_epoch(tmp_path, "align"), 400, process)
    until(lambda: workers_under(process.pid), 60, process)[0].kill()
    children = psutil.Process(process.pid).children(recursive=True)
    assert process.wait(300) == 0, process.communicate()[1]
    same(tmp_path, by_two, exact=not strategy)
    nothing_left(children)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_workers_killed_in_two_stages_with_sharded_tables(tmp_path: Path) -> None:
    """One between rounds of stage 2 and one in the middle of an epoch of stage 3: the run ends with the same bits."""
    values = ("workers=2", "embeddings=sharded", "invariance.rounds=12", "invariance.moved=0")
    process = start(tmp_path / "whole", *values)
    assert process.wait(900) == 0, process.communicate()[1]
    out = tmp_path / "run"
    process = start(out, *values)
    middle = {"invariance": lambda: saved(out, "invariance"), "merge": mid_epoch(out, "merge")}
    for stage, reached in middle.items():
        until(reached, 900, process)
        until(lambda: workers_under(process.pid), 60, process)[0].kill()
        assert not [*(out / "artifacts").glob(f"{stage}-*/meta.json")]
    assert process.wait(900) == 0, process.communicate()[1]
    same(out, tmp_path / "whole")
    for stage in ("align", "invariance", "merge"):
        assert len([*(out / "artifacts").glob(f"{stage}-*/rows-*-of-00002.safetensors")]) == 2, stage


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("values", "exact"),
    [
        (["workers=2"], True),
        (["workers=1"], False),
        (["workers=3", "resources_per_worker={CPU: 0.5}"], False),
        (["workers=2", "strategy=deepspeed", "zero_stage=3"], False),
        (["workers=0"], False),
    ],
)
def test_a_killed_driver_goes_on_with_any_workers(values: list[str], exact: bool, tmp_path: Path, by_two: Path) -> None:
    process = start(tmp_path, "workers=2")
    until(mid_epoch(tmp_path, "merge"), 400, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    nothing_left(children)
    resume(tmp_path, *values)
    same(tmp_path, by_two, exact=exact)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ctrl_c_with_workers(tmp_path: Path, by_two: Path) -> None:
    process = start(tmp_path, "workers=2")
    until(mid_epoch(tmp_path, "align"), 400, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    nothing_left(children)
    process = start(tmp_path, "workers=2")
    assert process.wait(300) == 0, process.communicate()[1]
    same(tmp_path, by_two)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sigterm_with_actors(tmp_path: Path) -> None:
    """Ray, which starts for the actors, takes SIGTERM for itself; a run still ends as by Ctrl-C."""
    process = start(tmp_path, "actors=2", "invariance.rounds=100", "invariance.moved=0")
    metrics = tmp_path / "metrics.jsonl"
    until(lambda: metrics.exists() and '"invariance"' in metrics.read_text(), 400, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    nothing_left(children)
