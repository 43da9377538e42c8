"""What to try next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_helpers import BASE, plan_of

from m3dist.search import driver, searchers, stages
from m3dist.search.dimensions import Values
from m3dist.search.ledger import Ledger
from m3dist.search.searchers.base import Proposal, Searcher, Sequence
from m3dist.search.space import Plan
from m3dist.storage.artifacts import Output


def searcher_of(plan: Plan, ledger: Ledger) -> Searcher:
    return searchers.find(plan.search.searcher)(plan, ledger)


def propose(ledger: Ledger, searcher: Searcher) -> Proposal:
    """The searcher's next proposal, written down as a trial that waits."""
    proposal = searcher.next()
    assert proposal is not None, f"{len(ledger.trials)} trials, and nothing is left to start"
    name = f"t{len(ledger.trials)}"
    ledger.record("proposed", trial=name, index=proposal.index, values=proposal.values, keys=proposal.keys)
    return proposal


def finish(ledger: Ledger, metric: float) -> None:
    """The last trial trained all its stages and ended with this value."""
    name = list(ledger.trials)[-1]
    ledger.record("result", trial=name, stage="merge", step=3, epochs=1, seconds=1.0, metric=metric)
    ledger.record("ended", trial=name, status="finished", metric=metric)


@pytest.fixture
def ledger_of(tmp_path: Path) -> Iterator[Any]:
    """The ledger of a new search that differs from the small one by these values."""
    ledgers: list[Ledger] = []

    def make(**search: Any) -> Ledger:
        ledgers.append(Ledger(plan_of(tmp_path / str(len(ledgers)), **search)))
        return ledgers[-1]

    yield make
    for ledger in ledgers:
        ledger.close()


def test_random_proposals_are_fixed_by_the_seed_and_share_stages(ledger_of: Any) -> None:
    def points(seed: int, siblings: int) -> list[Values]:
        ledger = ledger_of(seed=seed, reuse={"siblings": siblings})
        searcher = searcher_of(ledger.plan, ledger)
        return [proposal.values for proposal in (searcher.next() for _ in range(8)) if proposal]

    first = points(3, 4)
    assert first == points(3, 4) != points(4, 4)
    assert len({p["align.lr"] for p in first}) == 2
    assert len({p["merge.lr"] for p in first}) == 8
    assert len({p["align.lr"] for p in points(3, 1)}) == 8


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_siblings_share_the_first_stage_that_varies(ledger_of: Any, searcher: str) -> None:
    """Stage 1 is the same in every point, so stage 2 is what there is to share."""
    wide = {"invariance.gamma": {"log_uniform": [1e-2, 1.0]}, "merge.lr": {"log_uniform": [1e-3, 1e-1]}}
    ledger = ledger_of(space=wide, searcher=searcher, startup=4, reuse={"siblings": 3})
    store = stages.store(ledger.plan.base)
    for _ in range(9):
        proposal = propose(ledger, searcher_of(ledger.plan, ledger))
        finish(ledger, 0.1)
        for stage in ("align", "invariance"):
            store.save(stage, proposal.keys[stage], Output({}, {}))
    values = [t.values for t in ledger.trials.values()]
    assert sorted(Counter(v["invariance.gamma"] for v in values).values()) == [3, 3, 3]
    assert len({v["merge.lr"] for v in values}) == 9


def test_many_trials_at_once_need_not_wait_for_their_siblings(ledger_of: Any) -> None:
    ledger = ledger_of(reuse={"siblings": 4, "lookahead": 8})
    searcher = searcher_of(ledger.plan, ledger)
    for n in range(6):
        propose(ledger, searcher)
        ledger.record("started", trial=f"t{n}")


def test_points_that_differ_in_one_stage_only_share_no_value_of_it(ledger_of: Any) -> None:
    ledger = ledger_of(space={"merge.lr": {"log_uniform": [1e-3, 1e-1]}}, reuse={"siblings": 3})
    searcher = searcher_of(ledger.plan, ledger)
    points = [proposal.index for proposal in (searcher.next() for _ in range(6)) if proposal]
    assert points == [0, 1, 2, 3, 4, 5]  # none was passed over as a copy of the one before


def test_proposals_wait_for_stages_in_training_and_skip_stopped_ones(ledger_of: Any) -> None:
    ledger = ledger_of(reuse={"siblings": 3, "lookahead": 6}, scheduler={"grace": 1, "reduction": 2})
    searcher = searcher_of(ledger.plan, ledger)

    def start() -> Proposal:
        proposal = propose(ledger, searcher)
        ledger.record("started", trial=list(ledger.trials)[-1])
        return proposal

    one, two = start(), start()
    assert one.keys["align"] != two.keys["align"]  # the sibling would wait, so another group goes first
    for name, value in (("t1", 0.5), ("t0", 0.1)):
        ledger.record("result", trial=name, stage="align", step=0, epochs=1, seconds=1.0, metric=value)
    assert ledger.trials["t0"].reason == "rung at epoch 1 of align"
    third = start()
    assert third.keys["align"] not in (one.keys["align"], two.keys["align"])
    assert searcher.skipped == 2  # siblings of the one that was stopped
    stages.store(ledger.plan.base).save("align", two.keys["align"], Output({}, {}))
    assert start().keys["align"] == two.keys["align"]


def test_a_grid_is_walked_once_with_the_first_stage_outermost(ledger_of: Any) -> None:
    given = {"merge.lr": {"grid": [0.1, 0.2]}, "align.lr": {"grid": [0.1, 0.2, 0.3]}}
    ledger = ledger_of(space=given, searcher="grid", reuse={"on": False})
    searcher, points = searcher_of(ledger.plan, ledger), []
    for _ in range(6):
        proposal = searcher.next()
        assert proposal is not None
        points.append(tuple(proposal.values.items()))
    with pytest.raises(StopIteration):
        searcher.next()
    assert len(points) == len(set(points)) == 6
    assert [dict(p)["align.lr"] for p in points] == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]


@pytest.mark.parametrize("searcher", ["random", "grid", "optuna"])
def test_points_of_the_file_go_first_and_once(searcher: str, ledger_of: Any) -> None:
    given = {"merge.lr": {"grid": [0.1, 0.2, 0.3]}, "invariance.gamma": {"choice": [0.1, 1.0]}}
    mine = [{"invariance.gamma": 1.0, "merge.lr": 0.2}, {"merge.lr": 0.3, "invariance.gamma": 0.1}]
    ledger = ledger_of(space=given, searcher=searcher, points=mine, reuse={"on": False})
    found = [propose(ledger, searcher_of(ledger.plan, ledger)).values for _ in range(6)]
    assert found[:2] == mine
    assert len({tuple(sorted(values.items())) for values in found}) == 6
    with pytest.raises(StopIteration):
        searcher_of(ledger.plan, ledger).next()


def test_optuna_learns_from_the_ledger_and_shares_stages(ledger_of: Any) -> None:
    ledger = ledger_of(searcher="optuna", startup=4, reuse={"siblings": 2})
    store = stages.store(ledger.plan.base)
    for _ in range(12):
        proposal = propose(ledger, searcher_of(ledger.plan, ledger))  # made anew: only the ledger remembers
        finish(ledger, -abs(np.log(proposal.values["align.lr"]) - np.log(0.05)))
        store.save("align", proposal.keys["align"], Output({}, {}))
    groups = Counter(t.keys["align"] for t in ledger.trials.values())
    assert set(groups.values()) == {2}
    late = [abs(np.log(t.values["align.lr"] / 0.05)) for t in list(ledger.trials.values())[-4:]]
    early = [abs(np.log(t.values["align.lr"] / 0.05)) for t in list(ledger.trials.values())[:4]]
    assert np.mean(late) < np.mean(early)


def test_optuna_gives_values_as_the_file_has_them(ledger_of: Any) -> None:
    """Numbers, text and switches, under a condition."""
    given = {
        "invariance.gate": {"choice": ["sigmoid", "hard_sigmoid"]},
        "invariance.gate_noise": {"choice": [0, 0.25], "when": {"invariance.gate": "hard_sigmoid"}},
        "invariance.gamma_warmup": {"choice": [True, False]},
        "merge.epochs": {"randint": [2, 30]},
    }
    ledger = ledger_of(space=given, searcher="optuna", startup=2, reuse={"on": False})
    for n in range(8):
        propose(ledger, searcher_of(ledger.plan, ledger))
        finish(ledger, n / 10)
    points = [trial.values for trial in ledger.trials.values()]
    for point in points:
        assert set(point) - {"invariance.gate_noise"} == {"invariance.gate", "invariance.gamma_warmup", "merge.epochs"}
        assert isinstance(point["invariance.gamma_warmup"], bool)
        assert ("invariance.gate_noise" in point) == (point["invariance.gate"] == "hard_sigmoid")
        assert point.get("invariance.gate_noise", 0) in (0, 0.25)
        assert point["merge.epochs"] in range(2, 31)
    assert {point["invariance.gate"] for point in points} == {"sigmoid", "hard_sigmoid"}


@pytest.mark.timeout(600)
def test_a_searcher_of_ones_own_runs_by_name(ray_here: None, tmp_path: Path) -> None:
    @searchers.register("halving")
    class Halving(Sequence):
        """Half the rate of the point before."""

        def points(self) -> Iterator[Values]:
            rate = 0.08
            while True:
                yield {"merge.lr": rate}
                rate /= 2

    given = {"merge.lr": {"uniform": [0.001, 0.1]}}
    plan = plan_of(
        tmp_path, space=given, searcher="halving", budget={"trials": 3}, final_seeds=[], concurrency=1,
        scheduler={"kind": "fifo"}, base={**BASE, "model": "ultragcn"},
    )  # fmt: skip
    driver.run(plan, quiet=True)
    ledger = Ledger(plan)
    ledger.close()
    assert [t.values["merge.lr"] for t in ledger.trials.values()] == [0.08, 0.04, 0.02]
    assert {t.status for t in ledger.trials.values()} == {"finished"}


def test_a_searcher_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "from m3dist.search.searchers.base import Sequence\n\n\n"
        "class Fixed(Sequence):\n    def points(self):\n        return iter([{'merge.lr': 0.05}])\n"
    )
    installed = tmp_path / "elsewhere-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[m3dist.searchers]\nfixed = elsewhere:Fixed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = plan_of(tmp_path / "search", space={"merge.lr": {"uniform": [0.001, 0.1]}}, searcher="fixed")
    ledger = Ledger(plan)
    proposal = searcher_of(plan, ledger).next()
    ledger.close()
    assert proposal is not None
    assert proposal.values == {"merge.lr": 0.05}
