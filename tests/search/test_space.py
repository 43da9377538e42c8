"""What a search file may say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from search_helpers import SPACE, call, plan_of, small_synthetic, write

from m3dist import config as configs
from m3dist.search import dimensions, space

TUNE = Path(__file__).parents[2] / "tune"


def test_the_papers_grid(tmp_path: Path) -> None:
    plan = space.load(TUNE / "paper.yaml", [f"out={tmp_path}", *small_synthetic()])
    assert plan.size == 337_500
    assert plan.base.backbone.loss == "ultragcn"  # kappa and nu weigh its terms
    assert plan.stages == ["align", "invariance", "merge"]  # nothing of the paper's is decided by a race
    assert plan.base.invariance.rounds == 5
    for fit in (plan.base.align, plan.base.merge):
        assert (fit.batch_size, fit.epochs) == (512, 200)
    config = plan.config({"learning_rate": 0.0001, "align.tau": 5})
    assert (config.align.lr, config.merge.lr, config.align.tau) == (0.0001, 0.0001, 5)


@pytest.mark.parametrize("name", ["quick.yaml", "ml1m.yaml", "plain.yaml"])
def test_shipped_searches_are_valid(name: str, tmp_path: Path) -> None:
    space.load(TUNE / name, [f"out={tmp_path}", "data=synthetic", *small_synthetic()])


def test_all_problems_of_a_search_file_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base={"align": {"epoch": 3}},
        space={"align.lr": {"unifrom": [0, 1]}},
        sheduler={"kind": "asha"},
        budget={},
    )
    with pytest.raises(configs.ConfigError) as error:
        space.load(path)
    said = str(error.value)
    for part in ("align.epoch: unknown key; did you mean align.epochs", "space.align.lr.unifrom: unknown key",
                 "sheduler: unknown key; did you mean scheduler"):  # fmt: skip
        assert part in said
    assert not (tmp_path / "s").exists()


POINT = {"align.lr": 0.01, "invariance.gamma": 0.1, "merge.lr": 0.02}


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"space": {"align.lrr": {"choice": [1, 2]}}}, "did you mean align.lr"),
        ({"space": {"align.lr": {"choice": [0.1, -1.0]}}}, "greater than 0, got -1.0"),
        ({"space": {"align.lr": {"uniform": [1, 0.1]}}}, "low < high"),
        ({"space": {"align.lr": {"uniform": [0.1, 1], "choice": [1]}}}, "exactly one of"),
        ({"space": {"seed": {"choice": [1, 2]}}}, "must be the same in all trials"),
        ({"space": {"align.lr": {"choice": [0.1, 0.2], "when": {"align.tau": 1}}}}, "not in the space"),
        ({"space": {"autoscaling": {"choice": [True, False]}}}, "changes nothing that is trained"),
        (
            {"space": {"backbone.loss": {"choice": ["auto", "ultragcn"]}}},
            "space.backbone.loss: 'auto' trains the stages race, align, invariance, second, merge, the base align, ",
        ),
        ({"budget": {}}, "at least one of trials, epochs and minutes"),
        ({"searcher": "grid"}, "searcher=grid needs grid or choice"),
        ({"searcher": "optnua"}, "searcher: no such searcher; expected one of grid, "),
        ({"searcher": "optnua"}, "did you mean optuna?"),
        ({"metric": "ndcg@7"}, "evaluation.k"),
        ({"points": [{"align.lr": 0.01, "merge.lr": 0.01}]}, "points[0]: expected a value of invariance.gamma"),
        ({"points": [POINT | {"merge.lr": 0.5}]}, "points[0].merge.lr: 0.5 is not in space.merge.lr"),
        ({"points": [POINT | {"invariance.gamma": 0.5}]}, "0.5 is not in space.invariance.gamma"),
        ({"points": [POINT, POINT | {"align.tau": 1}]}, "points[1].align.tau: is not in the space"),
        ({"base": {"data": "/nowhere"}}, "not a prepared data set"),
        ({"out": "s3://bucket/s"}, "a folder that all nodes mount; a URI cannot be locked"),
        ({"base": {"artifacts": "s3://bucket/s"}}, "artifacts=s3://bucket/s: trials meet in a folder"),
    ],
)
def test_bad_searches_are_one_clear_error(
    search: dict, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("tune", str(write(tmp_path, **search))) == 2
    assert says in capsys.readouterr().err


def test_overrides_reach_the_search_or_its_base(tmp_path: Path) -> None:
    plan = space.load(write(tmp_path), ["budget.trials=9", "align.epochs=3", "base.seed=5", "seed=7"])
    assert (plan.search.budget.trials, plan.base.align.epochs, plan.base.seed, plan.search.seed) == (9, 3, 5, 7)


def test_conditions_hold_in_draws_and_grids(tmp_path: Path) -> None:
    given = {
        "invariance.gate": {"choice": ["sigmoid", "hard_sigmoid"]},
        "invariance.gate_noise": {"choice": [0.1, 0.2, 0.3], "when": {"invariance.gate": "hard_sigmoid"}},
    }
    plan = plan_of(tmp_path, space=given)
    points = list(dimensions.grid(plan.space))
    assert len(points) == 1 + 3
    rng = np.random.default_rng(0)
    for values in [*points, *(dimensions.draw(plan.space, dict.fromkeys(given, rng)) for _ in range(50))]:
        assert ("invariance.gate_noise" in values) == (values["invariance.gate"] == "hard_sigmoid")


def test_dimensions_know_the_first_stage_that_they_change(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, space={**SPACE, "backbone.nu": {"choice": [0.0, 0.1]}})
    assert plan.stage == {
        "align.lr": "align", "invariance.gamma": "invariance", "merge.lr": "merge", "backbone.nu": "align",
    }  # fmt: skip
    assert list(plan.space)[:2] == ["align.lr", "backbone.nu"]
