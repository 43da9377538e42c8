"""Which trials go on."""

from __future__ import annotations

from pathlib import Path

from search_helpers import plan_of

from m3dist.search.rungs import Clock, Rungs


def _clock(tmp_path: Path) -> Clock:
    plan = plan_of(tmp_path)
    return Clock(plan.extremes(), plan.dataset)


def test_positions_count_epochs_through_all_stages(tmp_path: Path) -> None:
    clock = _clock(tmp_path)
    assert clock.length == {"align": 4, "invariance": 1, "merge": 4}
    assert clock.position("merge", clock.epoch("merge", 0)) == 4 + 1 + 1


def _said(rungs: Rungs, trial: str, stage: str, epoch: int, best: float | None) -> str:
    stop = rungs.judge(trial, stage, epoch, best)
    return str(stop or "")


def test_rungs_compare_within_a_stage_only(tmp_path: Path) -> None:
    rungs = Rungs(_clock(tmp_path), "max", grace=2, reduction=2)
    assert rungs.milestones == {"align": [2, 4], "merge": [2, 4]}
    assert _said(rungs, "a", "align", 2, 0.5) == ""
    assert _said(rungs, "b", "align", 1, 0.1) == ""  # before the first rung
    assert _said(rungs, "b", "align", 2, 0.4) == "rung at epoch 2 of align"
    assert _said(rungs, "reuses", "merge", 2, 0.01) == ""  # first in merge: align's values do not count there
    assert _said(rungs, "c", "merge", 2, 0.005) == "rung at epoch 2 of merge"
    assert _said(rungs, "d", "invariance", 1, None) == ""


def test_a_stage_left_early_is_held_against_the_rungs_it_jumped(tmp_path: Path) -> None:
    rungs = Rungs(_clock(tmp_path), "max", grace=2, reduction=2)
    rungs.judge("a", "align", 2, 0.5)
    rungs.judge("a", "align", 4, 0.6)
    assert _said(rungs, "b", "align", 3, 0.55) == ""
    assert _said(rungs, "b", "invariance", 1, None) == "rung at epoch 4 of align"


def test_lower_is_better_when_asked(tmp_path: Path) -> None:
    rungs = Rungs(_clock(tmp_path), "min", grace=2, reduction=2)
    assert _said(rungs, "a", "align", 2, 0.5) == ""
    assert _said(rungs, "b", "align", 2, 0.4) == ""
    assert _said(rungs, "c", "align", 2, 0.9) == "rung at epoch 2 of align"
