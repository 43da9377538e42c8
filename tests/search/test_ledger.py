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
    assert again.dead == ledger.dead != {}
    assert [t.status for t in again.trials.values()] == ["waiting", "waiting"]
    assert again.trials["t1"].reason == ledger.trials["t1"].reason
    assert again.epochs == 4
    again.close()
