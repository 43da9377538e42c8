"""What a search leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from search_helpers import plan_of

from m3dist.search import dimensions, optuna_study
from m3dist.search.ledger import Ledger


def test_importance_names_the_value_that_matters(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ledger = Ledger(plan)
    rng = np.random.default_rng(0)
    for n in range(40):
        values = dimensions.draw(plan.space, dict.fromkeys(plan.space, rng))
        metric = -abs(np.log(values["merge.lr"] / 0.01)) + 0.01 * rng.standard_normal()
        ledger.record("proposed", trial=f"t{n}", index=n, values=values, keys=plan.keys(values))
        ledger.record("result", trial=f"t{n}", stage="merge", step=3, epochs=1, seconds=1.0, metric=metric)
        ledger.record("ended", trial=f"t{n}", status="finished", metric=metric)
    shares = optuna_study.importance(plan, ledger)
    assert max(shares, key=lambda name: shares[name]) == "merge.lr"
    ledger.close()
