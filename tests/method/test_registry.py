"""Recommenders and stages of a user's own, by name, with all that the library's have; m3dist is not edited."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import own_code
import pytest
import ray
import torch
from cli_helpers import call
from small_runs import SMALL, popularity, small, trained

import m3dist
from m3dist import config as configs
from m3dist import pipeline
from m3dist.data.dataset import Dataset
from m3dist.method import registry
from m3dist.method.registry import ModelSpec, StageSpec
from m3dist.search import space
from m3dist.search.rungs import Clock, Rung, Rungs

VALUES = ("baseline.dim=16", "baseline.batch_size=512", "baseline.lr=0.02", "baseline.negatives=64")


@pytest.fixture
def factors(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a recommender that the decorator registered."""
    monkeypatch.setattr(registry, "RECOMMENDERS", dict(registry.RECOMMENDERS))
    assert registry.recommender("factors")(own_code.Factors) is own_code.Factors
    return "model=factors"


def test_a_registered_class_trains_ranks_and_is_opened(factors: str, planted_root: Path, tmp_path: Path) -> None:
    values = [factors, f"data={planted_root}", f"out={tmp_path}", *VALUES, "baseline.epochs=6"]
    config = configs.load(None, values)
    result = pipeline.run(config, quiet=True)
    assert result["validation"]["ndcg@10"] > 1.25 * popularity(Dataset(planted_root), config)["ndcg@10"]
    assert m3dist.load(str(tmp_path)).evaluate("test") == pytest.approx(result["test"])
    assert pipeline.run(config, quiet=True)["skipped"] == ["baseline", "test"]


def test_its_settings_are_values_of_the_config(factors: str, tmp_path: Path) -> None:
    keys = []
    for scale in ("1", "0.5"):
        values = (factors, *VALUES, "baseline.epochs=1", f"baseline.options.scale={scale}")
        keys.append(trained(tmp_path / scale, *values)["keys"]["baseline"])
    assert keys[0] != keys[1]
    with pytest.raises(ValueError, match=r"baseline.options.scael: factors has no such option; it has scale"):
        trained(tmp_path / "bad", factors, "baseline.options.scael=1")


@pytest.mark.timeout(300)
def test_a_registered_class_reaches_the_workers(factors: str, ray_here: None, tmp_path: Path) -> None:
    values = (factors, *VALUES, "baseline.epochs=2")
    alone = trained(tmp_path / "alone", *values)
    ray.cloudpickle.register_pickle_by_value(own_code)  # as a class of a notebook or a script is: not importable there
    try:
        many = trained(tmp_path / "many", *values, "workers=2")
    finally:
        ray.cloudpickle.unregister_pickle_by_value(own_code)
    for split in ("validation", "test"):
        assert many[split] == pytest.approx(alone[split], abs=1e-6)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package, as pip leaves it, that offers a recommender named `shop`."""
    root = tmp_path / "site"
    (root / "shop").mkdir(parents=True)
    code = Path(own_code.__file__).read_text()
    (root / "shop" / "__init__.py").write_text(code)
    (root / "shop-1.0.dist-info").mkdir()
    (root / "shop-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (root / "shop-1.0.dist-info" / "entry_points.txt").write_text("[m3dist.recommenders]\nshop = shop:Factors\n")
    monkeypatch.syspath_prepend(str(root))
    yield "shop"
    sys.modules.pop("shop", None)


def test_a_class_of_an_installed_package_is_found_by_its_name(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = (*SMALL, *VALUES, "baseline.epochs=1", f"out={tmp_path / 'run'}")
    assert call("train", *values, "model=shpo") == 2
    assert "did you mean shop?" in capsys.readouterr().err
    assert "shop" not in sys.modules  # a name alone imports nothing
    assert call("train", *values, f"model={package}", "baseline.options.scale=0.5") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["model"], set(result["stages"])) == ("shop", {"baseline"})
    assert call("recommend", tmp_path / "run", "--k", 2, "--out", tmp_path / "top.parquet") == 0


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model whose last stage is none of m3dist's."""
    first = registry.model("ultragcn").final
    own = StageSpec("lean", "own_code:lean", "baseline", inputs=("merge",), reads=("evaluation.metric",))
    monkeypatch.setitem(registry.MODELS, "leaning", ModelSpec("leaning", (first, own), "own_code:scorer"))
    return "model=leaning"


def test_a_stage_of_a_users_own_runs_and_its_artifact_ranks(staged: str, tmp_path: Path) -> None:
    result = trained(tmp_path, staged, "baseline.epochs=3", "baseline.lr=0.5")
    assert list(result["stages"]) == ["merge", "lean"]
    assert result["validation"] == result["stages"]["lean"]["validation"]
    assert result["validation"]["ndcg@10"] >= result["stages"]["merge"]["validation"]["ndcg@10"]  # 0 is tried first
    opened = m3dist.load(str(tmp_path))
    assert opened.evaluate("test") == pytest.approx(result["test"])
    assert set(opened.tensors) == {"0.user", "0.matrix", "lean"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "lean"] == [0, 1, 2]


def test_it_is_keyed_and_skipped(staged: str, tmp_path: Path) -> None:
    values = (staged, "baseline.epochs=2")
    trained(tmp_path, *values)
    assert trained(tmp_path, *values)["skipped"] == ["merge", "lean", "test"]
    assert trained(tmp_path, *values, "baseline.lr=0.7")["skipped"] == ["merge"]  # of its section
    assert trained(tmp_path, *values, "evaluation.metric=ndcg@5")["skipped"] == []  # which both read
    assert trained(tmp_path, *values, "merge.lr=0.7")["skipped"] == []  # its input
    assert pipeline.planned(small(tmp_path, staged, "stages=[merge]"), test=True) == ["merge"]


def test_it_is_searched(staged: str, tmp_path: Path) -> None:
    """Its epochs count after those of the stages before it, and it has rungs of its own."""
    path = tmp_path / "search.yaml"
    path.write_text(
        f"base: {{model: leaning, merge: {{epochs: 3}}, baseline: {{epochs: 4}}, out: {tmp_path}}}\n"
        "space: {merge.lr: {choice: [0.1, 0.01]}, baseline.epochs: {choice: [2, 4]}}\n"
        f"budget: {{trials: 4}}\nout: {tmp_path / 'search'}\n"
    )
    plan = space.load(path, ["synthetic.users=60", "synthetic.items=50", "synthetic.interactions=12"])
    assert plan.stages == ["merge", "lean"]
    one, two = ({"merge.lr": 0.1, "baseline.epochs": epochs} for epochs in (2, 4))
    assert plan.keys(one)["merge"] == plan.keys(two)["merge"]
    assert plan.keys(one)["lean"] != plan.keys(two)["lean"]
    clock = Clock(plan.extremes(), plan.dataset)
    assert clock.length == {"merge": 3, "lean": 4}
    assert clock.position("lean", clock.epoch("lean", 0)) == 3 + 1
    rungs = Rungs(clock, "max", grace=2, reduction=2)
    assert rungs.milestones["lean"] == [2, 4]
    assert rungs.judge("a", "lean", 2, 0.5) is None
    assert rungs.judge("b", "lean", 2, 0.4) == Rung("lean", 2)


def planned(*values: str) -> list[str]:
    config = configs.load(None, values)
    return [stage.name for stage in registry.model(config.model).planned(config)]


def test_a_stage_is_there_only_where_its_key_has_the_value() -> None:
    assert planned() == ["graph", "race", "align", "invariance", "selection", "second", "merge"]
    assert planned("merge.losses=one") == ["graph", "race", "align", "invariance", "selection", "merge"]
    assert planned("backbone.loss=softmax") == ["align", "invariance", "selection", "merge"]
    assert planned("merge.masks=learned") == ["graph", "race", "align", "invariance", "second", "merge"]
    assert planned("model=invrl", "merge.masks=one") == ["graph", "race", "pretrain", "invariance", "second", "merge"]
    assert planned("model=ultragcn") == ["graph", "race", "second", "merge"]
    assert planned("model=ultragcn", "backbone.loss=ultragcn") == ["graph", "merge"]
    assert planned("model=ultragcn", "backbone.loss=ultragcn", "backbone.nu=0") == ["merge"]
    assert planned("model=vbpr") == ["baseline"]
    some = configs.load(None, ["stages=[graph,race,align]"])
    assert some.stage_names == ("graph", "race", "align")
    with pytest.raises(ValueError, match="in the order align, invariance, selection, merge"):
        configs.load(None, ["stages=[race]", "backbone.loss=softmax"])


def test_a_stage_of_a_users_own_has_a_condition_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is neither trained nor keyed where it is not planned."""
    first = registry.model("ultragcn").final
    own = StageSpec(
        "lean", "own_code:lean", "baseline", inputs=("merge",), reads=("evaluation.metric",),
        only=("invariance.gate", "softmax"),
    )  # fmt: skip
    again = replace(first, name="again", inputs=("merge", "lean"))
    spec = ModelSpec("maybe", (first, own, again), "m3dist.method.fused:scorer")
    monkeypatch.setitem(registry.MODELS, "maybe", spec)
    values = ("model=maybe", "baseline.epochs=1", "merge.epochs=1")
    without = trained(tmp_path, *values)
    assert list(without["stages"]) == ["merge", "again"]
    assert set(without["keys"]) == {"merge", "again", "test"}
    beside = trained(tmp_path, *values, "invariance.gate=softmax")
    assert list(beside["stages"]) == ["merge", "lean", "again"]
    assert beside["skipped"] == ["merge"]  # the last stage has one more input
    assert beside["keys"]["again"] != without["keys"]["again"]


def test_lengths_are_numbers_of_a_stages_section() -> None:
    """What makes a stage longer: the study multiplies it, whichever model."""
    for spec in (*registry.MODELS.values(), registry.model("vbpr")):
        for stage in spec.stages:
            section = getattr(configs.load(None), stage.section)
            for name in stage.lengths:
                longer = configs.validate({stage.section: {name: 7}})
                assert getattr(getattr(longer, stage.section), name) == 7
            assert (section.length(5000) >= 1) == bool(stage.lengths)  # a stage without any logs nothing
    (rounds,) = (stage for stage in registry.model("m3-invrl").stages if stage.name == "invariance")
    assert set(rounds.lengths) == {"environment_steps", "mask_steps"}


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean vbpr"):
        configs.load(None, ["model=vbrp"])
    assert torch.nn.Module in registry.recommender_class("vbpr").__mro__
