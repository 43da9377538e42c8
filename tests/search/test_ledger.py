"""What is known of trials outlives the process that knew it."""

from __future__ import annotations

from pathlib import Path

import pytest
from search_helpers import LATE, plan_of

from m3dist.search.ledger import Ledger


def test_a_folder_belongs_to_one_search(tmp_path: Path) -> None:
    Ledger(plan_of(tmp_path)).close()
    Ledger(plan_of(tmp_path, budget={"trials": 50}, concurrency=1)).close()  # these may change
    with pytest.raises(ValueError, match="belongs to another search"):
        Ledger(plan_of(tmp_path, space=LATE))


def test_the_ledger_remembers_rungs_and_drops_a_torn_line(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, scheduler={"grace": 2, "reduction": 2})
    ledger = Ledger(plan)
    for n, value in enumerate((0.5, 0.4)):
        keys = plan.keys({"align.lr": 0.01 * (n + 1)})
        ledger.record("proposed", trial=f"t{n}", index=n, values={"align.lr": 0.01 * (n + 1)}, keys=keys)
        ledger.record("started", trial=f"t{n}")
        ledger.record("result", trial=f"t{n}", stage="align", step=1, epochs=2, seconds=1.0, metric=value)
    assert ledger.trials["t1"].reason == "rung at epoch 2 of align"
    ledger.close()
    with (plan.out / "trials.jsonl").open("a") as file:
        file.write('{"event": "result", "tri')
    again = Ledger(plan)
    assert again.hopeless == ledger.hopeless != {}
    assert [t.status for t in again.trials.values()] == ["waiting", "waiting"]
    assert again.trials["t1"].reason == ledger.trials["t1"].reason
    assert again.epochs == 4
    again.close()


def test_a_reused_stage_saves_what_it_took_the_trial_that_trained_it(tmp_path: Path) -> None:
    ledger = Ledger(plan_of(tmp_path, scheduler={"kind": "fifo"}))
    for name in ("t0", "t1", "t2"):
        point = {"align.lr": 0.01, "merge.lr": 0.01 * (1 + int(name[1]))}
        ledger.record("proposed", trial=name, index=int(name[1]), values=point, keys=ledger.plan.keys(point))
    for epochs, (stage, step) in enumerate((("align", 0), ("align", 1), ("merge", 0)), start=1):
        done = {"epochs": epochs, "seconds": 10.0 * epochs}
        ledger.record("result", trial="t0", stage=stage, step=step, metric=0.1, **done)
    ledger.record("result", trial="t2", stage="align", step=0, metric=0.1, epochs=1, seconds=10.0)  # was stopped there
    ledger.record("ended", trial="t1", status="finished", reused=["align", "invariance"])
    assert ledger.saved(ledger.trials["t1"]) == (2, 20.0)  # nobody knows what stage 2 took
    assert ledger.saved(ledger.trials["t0"]) == (0, 0.0)
    ledger.close()


def test_a_damaged_event_is_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ledger = Ledger(plan)
    for n in range(3):
        ledger.record("chosen", trial=f"t{n}")
    ledger.close()
    log = plan.out / "trials.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[1].replace('"t1"', '"t9"') + lines[2])
    with pytest.raises(ValueError, match=r"trials.jsonl, line 2: damaged \(its checksum .*; delete it and the lines"):
        Ledger(plan)
    log.write_text(lines[0] + lines[2])
    again = Ledger(plan)
    assert again.chosen == "t2"
    again.close()
