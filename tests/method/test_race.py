"""The race over losses: its candidates, how long each is tried, who wins; and that later stages train with the winner.

The same for masks: learned ones or none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small, trained

from m3dist import pipeline
from m3dist.config import Config, ResolvedBackbone, load
from m3dist.data.dataset import Dataset
from m3dist.method import race, registry
from m3dist.training.callbacks import Callback, Stopped
from m3dist.training.context import Context


def names(*values: str) -> list[tuple[Any, ...]]:
    found = race.candidates(load(None, values).backbone)
    return [(x.loss, x.tau, x.projection_l2) if x.loss == "softmax" else (x.loss, x.l2) for x in found]


def test_candidates_are_all_that_the_config_leaves_open() -> None:
    taus, l2s = race.TEMPERATURES, race.CONTENT
    others = [("ultragcn", l2) for l2 in race.ROWS]
    assert names() == [*(("softmax", tau, l2) for tau in taus for l2 in l2s), *others]
    assert names("backbone.tau=0.3") == [*(("softmax", 0.3, l2) for l2 in l2s), *others]
    assert names("backbone.projection_l2=0.5") == [*(("softmax", tau, 0.5) for tau in taus), *others]
    assert names("backbone.tau=0.3", "backbone.projection_l2=0.5") == [("softmax", 0.3, 0.5), *others]
    assert names("backbone.l2=0.4", "backbone.tau=0.3")[-2:] == [("softmax", 0.3, l2s[-1]), ("ultragcn", 0.4)]


def test_without_features_what_content_weighs_is_not_raced() -> None:
    found = race.candidates(load(None).backbone, features=False)
    assert [(x.loss, x.tau) for x in found[:2]] == [("softmax", tau) for tau in race.TEMPERATURES]
    assert [(x.loss, x.l2) for x in found[2:]] == [("ultragcn", l2) for l2 in race.ROWS]


def test_what_follows_the_loss_follows_each_candidates_own() -> None:
    *many, other = race.candidates(load(None, ["backbone.dim=24", "backbone.negatives=7", "backbone.l2=0.1"]).backbone)
    assert {(x.content, x.nu, x.kappa, x.projection_rate) for x in many} == {("add", 0.0, 0.0, 0.1)}
    assert (other.content, other.nu, other.kappa, other.projection_rate) == ("concat", 0.1, 1.0, 1.0)
    assert {(x.dim, x.negatives) for x in (*many, other)} == {(24, 7)}
    given = race.candidates(load(None, ["backbone.content=concat", "backbone.nu=0.5"]).backbone)
    assert {(x.content, x.nu) for x in given} == {("concat", 0.5)}


@pytest.mark.parametrize(
    ("interactions", "values", "epochs"),
    [
        (1_000_000, ["merge.epochs=20"], 3),  # 15 % of them
        (100_000, ["merge.epochs=20"], 7),  # 49 steps each: 300 of them
        (1000, ["merge.epochs=20"], 20),  # no more than stage 3 has
        (1000, ["merge.epochs=20", "race.steps=5", "race.share=0.5"], 10),
        (1000, ["merge.epochs=20", "race.steps=5", "merge.batch_size=100"], 3),
        (1000, ["merge.epochs=2", "race.steps=1"], 1),
        (1000, [], 300),  # auto: 1,500 steps
    ],
)
def test_candidates_have_a_share_of_the_epochs(interactions: int, values: list[str], epochs: int) -> None:
    config = load(None, [*values, "merge.lr=0.07"])
    found = race.shortened(config, interactions)
    longer = race.shortened(config, interactions, 3)
    assert longer.epochs == min(3 * epochs, config.merge.length(interactions))
    assert longer.interval(interactions) == max(1, longer.epochs // 10)
    assert (found.epochs, found.evaluate_every, found.patience) == (epochs, epochs, 0)
    assert (found.lr, found.batch_size, found.decay) == (0.07, config.merge.batch_size, "linear")


P, Q = race.CONTENT
LOW, HIGH = race.TEMPERATURES
ALL = [(LOW, P), (HIGH, P), (LOW, Q), (HIGH, Q)]


@pytest.mark.parametrize(
    ("metrics", "asked", "winner"),
    [
        ({(LOW, P): 0.3, (HIGH, P): 0.2, (LOW, Q): 0.31}, [(LOW, P), (HIGH, P), (LOW, Q)], (LOW, Q)),
        ({(LOW, P): 0.2, (HIGH, P): 0.3, (HIGH, Q): 0.29}, [(LOW, P), (HIGH, P), (HIGH, Q)], (HIGH, P)),
        ({(LOW, P): 0.3, (HIGH, P): 0.299, (LOW, Q): 0.2}, [(LOW, P), (HIGH, P), (LOW, Q)], (0.2828, P)),
        ({(LOW, P): 0.3, (HIGH, P): 0.299, (LOW, Q): 0.31, (HIGH, Q): 0.309}, ALL, (0.2828, Q)),
        ({(LOW, P): 0.3, (HIGH, P): 0.299, (LOW, Q): 0.31, (HIGH, Q): 0.32}, ALL, (HIGH, Q)),
    ],
)
def test_weights_of_content_are_tried_at_the_best_temperature(
    metrics: dict[tuple[float, float], float], asked: list[tuple[float, float]], winner: tuple[float, float]
) -> None:
    found: list[tuple[float, float]] = []

    def metric(one: ResolvedBackbone) -> float:
        found.append((one.tau, one.projection_l2))
        return metrics[found[-1]]

    raced = race.softmaxes([x for x in race.candidates(load(None).backbone) if x.loss == "softmax"], metric)
    assert found == asked
    best = race.chosen(raced)
    assert (best.tau, best.projection_l2) == winner


def won(*raced: tuple[float, float, float]) -> ResolvedBackbone:
    """raced: (tau, projection_l2, metric)."""
    pairs = []
    for tau, l2, metric in raced:
        values = ["backbone.loss=softmax", f"backbone.tau={tau}", f"backbone.projection_l2={l2}"]
        pairs.append((load(None, values).backbone.resolved, metric))
    return race.chosen(pairs)


def test_the_best_softmax_wins_and_level_temperatures_meet_between() -> None:
    assert won((0.2, 0.1, 0.3), (0.4, 0.1, 0.29)).tau == 0.2  # more than 1 % apart
    between = won((0.2, 0.1, 0.3), (0.4, 0.1, 0.2999))
    assert between.tau == pytest.approx((0.2 * 0.4) ** 0.5, abs=1e-4)
    other = won((0.2, 0.5, 0.25), (0.4, 0.5, 0.2999), (0.2, 0.1, 0.3), (0.4, 0.1, 0.1))
    assert (other.tau, other.projection_l2) == (0.2, 0.1)  # level with another weight of content, which is none of it
    assert won((0.2, 0.1, 0.3), (0.4, 0.5, 0.4)).projection_l2 == 0.5


@pytest.mark.parametrize(
    ("short", "longer", "winner"),
    [
        ((0.30, 0.20), None, "softmax"),
        ((0.20, 0.30), None, "ultragcn"),
        ((0.30, 0.29), (0.31, 0.32), "ultragcn"),  # close: a longer fit decides
        ((0.29, 0.30), (0.33, 0.32), "softmax"),
    ],
)
def test_losses_that_are_close_have_a_longer_fit(
    short: tuple[float, float],
    longer: tuple[float, float] | None,
    winner: str,
    planted_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = ["backbone.tau=0.3", "backbone.projection_l2=0.01", "backbone.l2=0.03", "race.share=0.1", "race.steps=1"]
    values += ["merge.epochs=100", "backbone.id_dropout=0"]
    long = 10 * race.LONGER
    asked: list[tuple[str, int]] = []

    def fit(task: Any, plan: Any, tracker: Any) -> dict[str, float]:
        loss = task.members.config.loss
        asked.append((loss, plan.settings.epochs))
        softmax, ultragcn = short if plan.settings.epochs == 10 else longer or (0.0, 0.0)
        return {"ndcg@10": softmax if loss == "softmax" else ultragcn}

    monkeypatch.setattr(race, "fit", fit)
    meta = race.run(Context(Dataset(planted_root), load(None, values))).meta
    assert meta["backbone"]["loss"] == winner
    far = max(short) == 0.3 and longer is None
    assert (meta["second"] or {}).get("loss") == (None if far else {"softmax", "ultragcn"}.difference([winner]).pop())
    assert asked == [("softmax", 10), ("ultragcn", 10), *([("softmax", long), ("ultragcn", long)] if longer else [])]
    assert len(meta["tried"]) == len(asked)


def test_a_longer_fit_decides_between_weights_of_l2_too(planted_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And alone does where the first weight's short fit is close."""
    long = 10 * race.LONGER
    metrics = {10: {"softmax": 0.3, 0.03: 0.31}, long: {"softmax": 0.34, 0.03: 0.28, 0.05: 0.33}}

    def fit(task: Any, plan: Any, tracker: Any) -> dict[str, float]:
        config = task.members.config
        return {"ndcg@10": metrics[plan.settings.epochs]["softmax" if config.loss == "softmax" else config.l2]}

    monkeypatch.setattr(race, "fit", fit)
    values = ["backbone.tau=0.3", "backbone.projection_l2=0.01", "backbone.id_dropout=0", "race.share=0.1"]
    config = load(None, [*values, "race.steps=1", "merge.epochs=100"])
    meta = race.run(Context(Dataset(planted_root), config)).meta
    assert (meta["backbone"]["loss"], meta["second"]["loss"], meta["second"]["l2"]) == ("softmax", "ultragcn", 0.05)
    assert len(meta["tried"]) == 5


@pytest.mark.parametrize(
    ("first", "tried", "second"),
    [(0.17, ["0.03"], None), (0.19, ["0.03", "0.05"], 0.05), (0.29, ["0.03", "0.03 longer", "0.05 longer"], 0.03)],
)
def test_ultragcns_second_weight_is_tried_where_it_can_matter(
    first: float, tried: list[str], second: float | None, planted_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the first is hopeless beside a softmax of 0.3, nor by a short fit where both have a longer one."""

    def fit(task: Any, plan: Any, tracker: Any) -> dict[str, float]:
        config = task.members.config
        return {"ndcg@10": 0.3 if config.loss == "softmax" else first if config.l2 == 0.03 else 0.25}

    monkeypatch.setattr(race, "fit", fit)
    values = ["backbone.tau=0.3", "backbone.projection_l2=0.01", "backbone.id_dropout=0", "race.share=0.1"]
    config = load(None, [*values, "race.steps=1", "merge.epochs=100"])
    meta = race.run(Context(Dataset(planted_root), config)).meta
    assert [name.partition("l2 ")[2] for name in meta["tried"] if "ultragcn" in name] == tried
    assert meta["backbone"]["loss"] == "softmax"
    assert (meta["second"] or {}).get("l2") == second


@pytest.mark.parametrize(("dropping", "want"), [(0.31, race.DROPOUT), (0.3, 0.0)])
def test_ids_are_left_out_where_the_best_softmax_gains_by_it(
    dropping: float, want: float, planted_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float]] = []

    def fit(task: Any, plan: Any, tracker: Any) -> dict[str, float]:
        backbone = task.members.config
        if backbone.loss == "softmax":
            asked.append((backbone.tau, backbone.id_dropout))
        return {"ndcg@10": dropping if backbone.id_dropout else 0.3 if backbone.tau == 0.4 else 0.2}

    monkeypatch.setattr(race, "fit", fit)
    meta = race.run(Context(Dataset(planted_root), load(None, ["backbone.projection_l2=0.01"]))).meta
    assert asked == [(0.2, 0.0), (0.4, 0.0), (0.4, race.DROPOUT)]
    assert (meta["backbone"]["loss"], meta["backbone"]["tau"]) == ("softmax", 0.4)
    assert meta["backbone"]["id_dropout"] == want
    asked.clear()
    given = race.run(Context(Dataset(planted_root), load(None, ["backbone.tau=0.4", "backbone.id_dropout=0.1"]))).meta
    assert set(asked) == {(0.4, 0.1)}
    assert given["backbone"]["id_dropout"] == 0.1


def shapes(run: dict[str, Any], config: Config) -> dict[str, tuple[int, ...]]:
    """Of the users' rows that stages left."""
    store = pipeline.artifact_store(config)
    stages = {"align": "member.user", "merge": "0.user"}
    return {stage: tuple(store.load(stage, run["keys"][stage])[0][name].shape) for stage, name in stages.items()}


@pytest.mark.parametrize(("tau", "negative_weight", "winner"), [(0.25, 1e5, "softmax"), (1e-3, 1, "ultragcn")])
def test_later_stages_train_with_the_winner(
    tau: float, negative_weight: float, winner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A softmax so cold that it sees one negative loses, and so does UltraGCN's loss with next to no positives."""
    values: tuple[str, ...] = ("backbone.loss=auto", f"backbone.tau={tau}", "backbone.projection_l2=0.01")
    values += (f"backbone.negative_weight={negative_weight}", "race.steps=160")
    values += ("backbone.id_dropout=0", "backbone.l2=0.03")
    values = (*values, "merge.epochs=40", "evaluation.metric=ndcg@5", "merge.masks=auto", "merge.losses=one")
    config = small(tmp_path, *values)
    run = pipeline.run(config)
    assert list(run["stages"]) == ["graph", "race", "align", "invariance", "selection", "merge"]
    _, meta = pipeline.artifact_store(config).load("race", run["keys"]["race"])
    best, metric = max(meta["tried"].items(), key=lambda pair: pair[1])
    name = {"softmax": f"softmax tau {tau:g} projection_l2 0.01", "ultragcn": "ultragcn l2 0.03"}
    assert set(meta["tried"]) == set(name.values())
    assert best == name[winner]
    assert meta["metric"] == "ndcg@5"
    assert metric > 1.05 * min(meta["tried"].values())
    assert ResolvedBackbone.model_validate(meta["backbone"]).loss == winner
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if line["stage"] == "race")
    assert {key: line[key] for key in meta["tried"]} == meta["tried"]
    _, selection = pipeline.artifact_store(config).load("selection", run["keys"]["selection"])
    assert selection["masks"] == max(selection["tried"], key=selection["tried"].__getitem__)
    assert set(selection["tried"]) == {"learned", "one"}
    said = capsys.readouterr()
    assert f"race: {best} (" in said.out + said.err
    assert f"selection: {selection['masks']} (" in said.out + said.err
    width = {"softmax": 8, "ultragcn": 16}[winner]  # content has columns of its own beside ids, or is added to them
    assert shapes(run, config) == {"align": (120, width), "merge": (120, width)}
    rows = pipeline.artifact_store(config).load("merge", run["keys"]["merge"])[0]["0.user"]
    unit = torch.allclose(rows.norm(dim=1), torch.ones(120), atol=1e-5)
    assert unit == (winner == "softmax")


def test_a_fixed_loss_has_no_race(tmp_path: Path) -> None:
    run = trained(tmp_path, "model=ultragcn", "backbone.loss=ultragcn")
    assert list(run["stages"]) == ["graph", "merge"]
    assert "race" not in run["keys"]
    again = trained(tmp_path, "model=ultragcn", "backbone.loss=auto", "race.steps=1")
    assert list(again["stages"]) == ["graph", "race", "second", "merge"]
    assert again["keys"]["merge"] != run["keys"]["merge"]
    longer = trained(tmp_path, "model=ultragcn", "backbone.loss=auto", "race.steps=2", "merge.patience=1")
    assert longer["skipped"] == ["graph"]  # the race's section, and what comes after it
    assert trained(tmp_path, "model=ultragcn", "backbone.loss=auto", "race.steps=2")["skipped"] == ["graph", "race"]


class Cut(Callback):
    """Notes what is fitted, and ends the run in the epoch given."""

    def __init__(self, at: str = "") -> None:
        self.at, self.fitted = at, list[str]()

    def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        if epoch == 0:
            self.fitted.append(stage)
        if f"{stage} {epoch}" == self.at:
            raise Stopped


@pytest.mark.parametrize("stage", ["race", "masks"])
def test_what_is_cut_off_goes_on_with_the_candidate_that_was_fitted(stage: str, tmp_path: Path) -> None:
    at = {"race": "race softmax tau 0.4 projection_l2 0.001", "masks": "masks one"}[stage]
    values = ("backbone.loss=auto", "race.steps=8", "merge.masks=auto", "merge.losses=one")
    whole = trained(tmp_path / "whole", *values, callbacks=[all_of := Cut()])
    with pytest.raises(Stopped):
        trained(tmp_path / "run", *values, callbacks=[first := Cut(f"{at} 1")])
    again = trained(tmp_path / "run", *values, callbacks=[then := Cut()])
    assert again["stages"]["race"]["tried"] == whole["stages"]["race"]["tried"]
    assert again["test"] == whole["test"]
    assert first.fitted[-1] == at == then.fitted[0]
    assert [*first.fitted, *then.fitted[1:]] == all_of.fitted


def test_stages_that_read_the_race_see_its_winner(planted_root: Path) -> None:
    winner = load(None, ["backbone.loss=softmax", "backbone.tau=0.33"]).backbone.resolved
    asked = []

    def read(stage: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        asked.append(stage)
        return {}, {"backbone": winner.model_dump(mode="json")}

    config, spec = load(None), registry.model("m3-invrl")
    context = Context(Dataset(planted_root), config, load=read)
    for stage in spec.planned(config):
        backbone = context.at(stage).config.backbone
        assert backbone == (config.backbone if stage.name in ("graph", "race") else winner)
    assert asked == ["race"] * 5
    fixed = load(None, ["backbone.loss=ultragcn"])
    there = Context(Dataset(planted_root), fixed, load=read).at(spec.stage("align"))
    assert there.config.backbone == fixed.backbone
    assert len(asked) == 5
    with pytest.raises(ValueError, match="is decided by the stage `race`"):
        _ = config.backbone.resolved


DENSE = ("synthetic.users=300", "synthetic.items=150", "synthetic.interactions=50")
SPARSE = ("synthetic.users=500", "synthetic.items=600", "synthetic.interactions=20")


@pytest.mark.parametrize("data", [DENSE, SPARSE])
def test_auto_is_no_worse_than_the_better_fixed_loss(data: tuple[str, ...], tmp_path: Path) -> None:
    """On data with many and with few interactions of an item."""
    values = (
        "model=ultragcn",
        *data,
        "backbone.dim=16",
        "backbone.content_dim=16",
        "merge.epochs=20",
        "race.steps=150",
    )
    reached = {}
    for loss in ("softmax", "ultragcn", "auto"):
        config = load(None, [*values, f"backbone.loss={loss}", f"out={tmp_path / loss}"])
        reached[loss] = pipeline.run(config, quiet=True, test=False)["validation"]["ndcg@10"]
    assert reached["auto"] >= 0.99 * max(reached["softmax"], reached["ultragcn"])
