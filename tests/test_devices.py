"""Every model, stage, evaluation and recommendation on a device that is not the CPU: a stand-in with a GPU's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli_helpers import call

from benchmarks.standin import NAME, Counted
from m3dist import pipeline
from m3dist.config import Config, load
from m3dist.data.dataset import Dataset
from m3dist.data.importers.newitems import NewItems
from m3dist.distributed import devices
from m3dist.distributed.engine import Engine, Strategy
from m3dist.method.registry import MODELS, RECOMMENDERS
from m3dist.serving.rules import Rules
from m3dist.serving.run import Run
from m3dist.training.callbacks import Callback, Callbacks, Stopped
from m3dist.training.tracking import Tracker

SMALL = [
    "backbone.dim=8", "backbone.content_dim=8", "backbone.negatives=16",
    "backbone.loss=softmax", "align.epochs=2", "align.dim=8",
    "align.contrastive_items=32", "invariance.rounds=2", "invariance.environments=3", "invariance.negatives=16",
    "merge.masks=learned", "invariance.environment_steps=4", "invariance.mask_steps=8",
    "merge.epochs=2", "baseline.epochs=2", "baseline.dim=8", "baseline.negatives=16", "evaluation.k=[5,10]",
    *(f"{stage}.batch_size=256" for stage in ("align", "invariance", "merge", "baseline")),
    *(f"{stage}.evaluate_every=1" for stage in ("align", "merge", "baseline")),
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from m3dist.config import Synthetic
    from m3dist.data import synthetic

    out = tmp_path_factory.mktemp("devices") / "data"
    synthetic.write(out, Synthetic(users=80, items=60, interactions=20), 0)
    return out


def config_of(root: Path, out: Path, *extra: str) -> Config:
    return load(None, [*SMALL, f"data={root}", f"out={out}", *extra])


def trained(config: Config, device: str, callbacks: list[Callback] | None = None) -> dict[str, float]:
    """Test metrics of a run whose stages are computed on a device."""
    engine = Engine(device=device, strategy=Strategy(precision=config.precision))
    with Tracker(None, Callbacks(callbacks or [])) as tracker:
        pipeline.work(pipeline.Job(config, tuple(pipeline.planned(config, True))), engine, tracker)
    dataset = Dataset(config.data)
    return pipeline.artifact_store(config).load("test", pipeline.keys(config, dataset)["test"])[1]["metrics"]


@pytest.mark.parametrize("model", [*MODELS, *RECOMMENDERS])
def test_a_device_gives_the_metrics_of_the_cpu(model: str, root: Path, tmp_path: Path, counted: Counted) -> None:
    few = ["baseline.options.hidden=16"] if model == "macridvae" else []
    here = trained(config_of(root, tmp_path / "here", f"model={model}", *few), "cpu")
    there = trained(config_of(root, tmp_path / "there", f"model={model}", *few), NAME)
    assert counted.launches > 100
    assert there.keys() == here.keys()
    assert {k: there[k] for k in there} == pytest.approx(here, abs=2e-3)


@pytest.mark.parametrize(
    "extra",
    [
        ["merge.fusion=attention", "invariance.gate=softmax", "merge.init=align", "optimizer=dense"],
        ["merge.fusion=loss", "invariance.gate=hard_sigmoid", "align.encoder=linear", "backbone.nu=0"],
        ["align.encoder=mlp", "merge.fusion=equal", "backbone.groups=1", "backbone.neighbour_samples=2"],
        ["backbone.loss=ultragcn"],
        ["backbone.loss=ultragcn", "backbone.sampling=per_positive", "backbone.negatives=4"],
    ],
)
def test_choices_run_on_a_device(extra: list[str], root: Path, tmp_path: Path, counted: Counted) -> None:
    here = trained(config_of(root, tmp_path / "here", *extra), "cpu")
    there = trained(config_of(root, tmp_path / "there", *extra), NAME)
    assert there["ndcg@10"] == pytest.approx(here["ndcg@10"], abs=5e-3)


def test_what_validation_data_decide_is_tried_on_a_device(root: Path, tmp_path: Path, counted: Counted) -> None:
    """Candidates have the metrics of the CPU; which of level ones wins may be a matter of bits."""
    values = ["backbone.loss=auto", "merge.masks=auto", "race.steps=3"]
    config = config_of(root, tmp_path / "there", *values)
    assert np.isfinite([*trained(config, NAME).values()]).all()
    tried = raced(config)
    here = config_of(root, tmp_path / "here", *values)
    trained(here, "cpu")
    assert len(tried) >= 5
    assert tried == pytest.approx(raced(here), abs=5e-3)


def raced(config: Config) -> dict[str, float]:
    """What every candidate of a finished run's race reached."""
    key = pipeline.keys(config, Dataset(config.data))["race"]
    return pipeline.artifact_store(config).load("race", key)[1]["tried"]


def test_a_run_without_workers_trains_on_the_device_it_finds(
    root: Path, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = pipeline.run(config_of(root, tmp_path / "here", "workers=0"), quiet=True)
    monkeypatch.setattr(devices, "wanted", lambda use_gpu: torch.device(NAME))
    counted.clear()
    there = pipeline.run(config_of(root, tmp_path / "there", "workers=0"))
    said = capsys.readouterr()
    assert f"on {NAME}" in said.out + said.err
    assert counted.launches > 100
    assert there["test"] == pytest.approx(here["test"], abs=2e-3)


class _StopAfter(Callback):
    def __init__(self, stage: str):
        self.stage = stage

    def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        if stage == self.stage:
            raise Stopped


@pytest.fixture
def straight(root: Path, tmp_path: Path) -> dict[str, float]:
    return trained(config_of(root, tmp_path / "straight"), "cpu")


@pytest.mark.parametrize("stage", ["align", "invariance", "merge"])
@pytest.mark.parametrize("first", ["cpu", NAME])
def test_a_run_goes_on_on_another_device(
    stage: str, first: str, root: Path, tmp_path: Path, straight: dict[str, float], counted: Counted
) -> None:
    config = config_of(root, tmp_path / "run")
    with pytest.raises(Stopped):
        trained(config, first, [_StopAfter(stage)])
    assert any((tmp_path / "run" / "checkpoints").glob(f"{stage}-*/0*"))
    then = trained(config, "cpu" if first == NAME else NAME)
    assert then == pytest.approx(straight, abs=2e-3)


@pytest.fixture
def finished(root: Path, tmp_path: Path) -> Path:
    pipeline.run(config_of(root, tmp_path / "finished"), quiet=True)
    return tmp_path / "finished"


def test_a_run_recommends_and_evaluates_on_a_device(finished: Path, counted: Counted) -> None:
    here, there = Run(finished, "cpu"), Run(finished, NAME)
    assert there.evaluate("test") == pytest.approx(here.evaluate("test"), abs=1e-6)
    ours, theirs = here.recommend([3, 7, 11], 5).to_pydict(), there.recommend([3, 7, 11], 5).to_pydict()
    assert ours["item"] == theirs["item"]
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-5)


def test_new_users_and_items_on_a_device(finished: Path, tmp_path: Path, counted: Counted) -> None:
    found = []
    for device in ("cpu", NAME):
        run = Run(finished, device)
        features = {name: np.array(run.dataset.features(name)[:2]) for name in run.dataset.modalities}
        more = run.add_items(NewItems(pa.array([5000, 5001]), features, {}))
        rules = Rules(exclude={"a": [1]}, candidates=[*range(40), 5000], boosts={3: 0.1}, diverse=0.3)
        histories = {"a": [2, 4, 5001], "b": []}
        found.append(more.recommend([7], 5, histories, rules, reasons=True).to_pydict())
        run.export(tmp_path / device)
    ours, theirs = found
    for name in ("user", "item", "reason", "because_1", "because_2", "because_3"):
        assert ours[name] == theirs[name]
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-4)
    one, other = (pq.read_table(tmp_path / device / "users.parquet")["vector"].to_numpy() for device in ("cpu", NAME))
    np.testing.assert_allclose(np.stack(one), np.stack(other), atol=1e-5)


def test_commands_take_a_device(
    finished: Path, tmp_path: Path, counted: Counted, capsys: pytest.CaptureFixture[str]
) -> None:
    printed, tables = {}, {}
    for device in ("cpu", NAME):
        capsys.readouterr()
        before = counted.launches
        assert call("evaluate", finished, "--device", device) == 0
        lines = capsys.readouterr().out.splitlines()
        printed[device] = {line.rsplit(None, 1)[0]: float(line.rsplit(None, 1)[1]) for line in lines}
        out = tmp_path / f"{device}.parquet"
        assert call("recommend", finished, "--k", 3, "--out", out, "--device", device) == 0
        tables[device] = pq.read_table(out)
        assert (counted.launches > before) == (device == NAME)
    assert printed[NAME] == pytest.approx(printed["cpu"], abs=2e-6)
    assert tables[NAME]["item"].to_pylist() == tables["cpu"]["item"].to_pylist()
    capsys.readouterr()
    for name, said in (("nowhere", "no device is called 'nowhere'"), ("cuda:99", "cuda:99 is not there")):
        assert call("evaluate", finished, "--device", name) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("model", [*MODELS, *RECOMMENDERS])
def test_half_precision_trains(model: str, root: Path, tmp_path: Path) -> None:
    """Under bf16 a CPU shows the faults of types that a GPU would; artifacts stay float32."""
    few: list[Any] = ["baseline.options.hidden=16"] if model == "macridvae" else []
    config = config_of(root, tmp_path, f"model={model}", "precision=bf16", *few)
    result = trained(config, "cpu")
    assert np.isfinite([*result.values()]).all()
    store, keys = pipeline.artifact_store(config), pipeline.keys(config, Dataset(root))
    for stage in config.stage_names:
        for name, x in store.load(stage, keys[stage])[0].items():
            assert str(x.dtype) != "torch.bfloat16", name
