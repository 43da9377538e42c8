"""What to try next."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from search_helpers import plan_of

from m3dist.search import proposals
from m3dist.search.ledger import Ledger


def test_random_proposals_are_fixed_by_the_seed_and_share_stages(tmp_path: Path) -> None:
    def points(folder: str, seed: int, siblings: int) -> list[dict]:
        plan = plan_of(tmp_path / folder, seed=seed, reuse={"siblings": siblings})
        ledger = Ledger(plan)
        source = proposals.of(plan, ledger)
        out = []
        for _ in range(8):
            proposal = source.next()
            assert proposal is not None
            out.append(proposal.values)
        ledger.close()
        return out

    first = points("a", 3, 4)
    assert first == points("b", 3, 4) != points("c", 4, 4)
    assert len({p["align.lr"] for p in first}) == 2
    assert len({p["merge.lr"] for p in first}) == 8
    assert len({p["align.lr"] for p in points("d", 3, 1)}) == 8


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_siblings_share_the_first_stage_that_varies(tmp_path: Path, searcher: str) -> None:
    """Stage 1 is the same in every point, so stage 2 is what there is to share."""
    wide = {"invariance.gamma": {"log_uniform": [1e-2, 1.0]}, "merge.lr": {"log_uniform": [1e-3, 1e-1]}}
    plan = plan_of(tmp_path, space=wide, searcher=searcher, startup=4, reuse={"siblings": 3})
    ledger = Ledger(plan)
    store = proposals.Stages(plan, ledger).store
    for n in range(9):
        proposal = proposals.of(plan, ledger).next()
        assert proposal is not None
        ledger.record("proposed", trial=f"t{n}", index=proposal.index, values=proposal.values, keys=proposal.keys)
        ledger.record("result", trial=f"t{n}", stage="merge", step=3, epochs=1, seconds=1.0, metric=0.1)
        ledger.record("ended", trial=f"t{n}", status="finished", metric=0.1)
        for stage in ("align", "invariance"):
            store.save(stage, proposal.keys[stage], {}, {})
    values = [t.values for t in ledger.trials.values()]
    ledger.close()
    assert sorted(Counter(v["invariance.gamma"] for v in values).values()) == [3, 3, 3]
    assert len({v["merge.lr"] for v in values}) == 9


def test_many_trials_at_once_need_not_wait_for_their_siblings(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, reuse={"siblings": 4, "lookahead": 8})
    ledger = Ledger(plan)
    source = proposals.of(plan, ledger)
    for n in range(6):
        proposal = source.next()
        assert proposal is not None, f"{n} trials run, and nothing is left to start"
        ledger.record("proposed", trial=f"t{n}", index=proposal.index, values=proposal.values, keys=proposal.keys)
        ledger.record("started", trial=f"t{n}")
    ledger.close()


def test_points_that_differ_in_one_stage_only_share_no_value_of_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, space={"merge.lr": {"log_uniform": [1e-3, 1e-1]}}, reuse={"siblings": 3})
    ledger = Ledger(plan)
    source = proposals.of(plan, ledger)
    points = [proposal.index for proposal in (source.next() for _ in range(6)) if proposal]
    ledger.close()
    assert points == [0, 1, 2, 3, 4, 5]  # none was passed over as a copy of the one before


def test_proposals_wait_for_stages_in_training_and_pass_over_stopped_ones(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, reuse={"siblings": 3, "lookahead": 6})
    ledger = Ledger(plan)
    source = proposals.of(plan, ledger)

    def start() -> proposals.Proposal:
        proposal = source.next()
        assert proposal is not None
        name = f"t{len(ledger.trials)}"
        ledger.record("proposed", trial=name, index=proposal.index, values=proposal.values, keys=proposal.keys)
        ledger.record("started", trial=name)
        return proposal

    one, two = start(), start()
    assert one.keys["align"] != two.keys["align"]  # the sibling would wait, so another group goes first
    ledger.dead[one.keys["align"]] = "stopped"
    third = start()
    assert third.keys["align"] not in (one.keys["align"], two.keys["align"])
    store = proposals.Stages(plan, ledger).store
    store.save("align", two.keys["align"], {}, {})
    assert start().keys["align"] == two.keys["align"]
    ledger.close()


def test_a_grid_is_walked_once_with_the_first_stage_outermost(tmp_path: Path) -> None:
    given = {"merge.lr": {"grid": [0.1, 0.2]}, "align.lr": {"grid": [0.1, 0.2, 0.3]}}
    plan = plan_of(tmp_path, space=given, searcher="grid", reuse={"on": False})
    ledger = Ledger(plan)
    source, points = proposals.of(plan, ledger), []
    for _ in range(6):
        proposal = source.next()
        assert proposal is not None
        points.append(tuple(proposal.values.items()))
    with pytest.raises(StopIteration):
        source.next()
    assert len(points) == len(set(points)) == 6
    assert [dict(p)["align.lr"] for p in points] == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
    ledger.close()


@pytest.mark.parametrize("searcher", ["random", "grid", "optuna"])
def test_points_of_the_file_go_first_and_once(searcher: str, tmp_path: Path) -> None:
    given = {"merge.lr": {"grid": [0.1, 0.2, 0.3]}, "invariance.gamma": {"choice": [0.1, 1.0]}}
    mine = [{"invariance.gamma": 1.0, "merge.lr": 0.2}, {"merge.lr": 0.3, "invariance.gamma": 0.1}]
    plan = plan_of(tmp_path, space=given, searcher=searcher, points=mine, reuse={"on": False})
    ledger, found = Ledger(plan), []
    for n in range(6):
        proposal = proposals.of(plan, ledger).next()
        assert proposal is not None
        ledger.record("proposed", trial=f"t{n}", index=proposal.index, values=proposal.values, keys=proposal.keys)
        found.append(proposal.values)
    assert found[:2] == mine
    assert len({tuple(sorted(values.items())) for values in found}) == 6
    ledger.close()


def test_optuna_learns_from_the_ledger_and_shares_stages(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, searcher="optuna", startup=4, reuse={"siblings": 2})
    ledger = Ledger(plan)
    store = proposals.Stages(plan, ledger).store
    for n in range(12):
        proposal = proposals.of(plan, ledger).next()  # made anew: nothing is remembered but the ledger
        assert proposal is not None
        ledger.record("proposed", trial=f"t{n}", index=n, values=proposal.values, keys=proposal.keys)
        value = -abs(np.log(proposal.values["align.lr"]) - np.log(0.05))
        ledger.record("result", trial=f"t{n}", stage="merge", step=3, epochs=1, seconds=1.0, metric=value)
        ledger.record("ended", trial=f"t{n}", status="finished", metric=value)
        store.save("align", proposal.keys["align"], {}, {})
    groups = Counter(t.keys["align"] for t in ledger.trials.values())
    assert set(groups.values()) == {2}
    late = [abs(np.log(t.values["align.lr"] / 0.05)) for t in list(ledger.trials.values())[-4:]]
    early = [abs(np.log(t.values["align.lr"] / 0.05)) for t in list(ledger.trials.values())[:4]]
    assert np.mean(late) < np.mean(early)
    ledger.close()
