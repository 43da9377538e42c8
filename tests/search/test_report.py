"""What a search leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from search_helpers import plan_of, write

from m3dist.cli.main import cli
from m3dist.search import dimensions, driver, optuna_study
from m3dist.search.ledger import Ledger
from m3dist.training.tracking import RunFailed


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


@pytest.mark.parametrize(
    ("failures", "kind", "says"),
    [
        ({}, ValueError, "no trial reached its last stage; give the search more budget"),
        ({"FloatingPointError: merge: nan": 2}, FloatingPointError, "no trial succeeded, 2 failed: FloatingPointError"),
        ({"FloatingPointError: nan": 1, "RunFailed: worker 0": 2}, RunFailed, "3 failed: RunFailed: worker 0; trials/"),
    ],
)
def test_a_search_without_a_result_is_no_success(
    failures: dict[str, int], kind: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = {
        "trials": {"failed": 2}, "skipped": 0, "seconds": 1.0, "best": None, "failures": failures,
        "reuse": {"stages": {}, "epochs": 0, "seconds": 0.0, "epochs_trained": 3},
    }  # fmt: skip
    monkeypatch.setattr(driver, "run", lambda plan: summary)
    with pytest.raises(kind, match=says):
        cli.main(["tune", str(write(tmp_path))], standalone_mode=False)
