"""What a search says of its trials in a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from search_helpers import plan_of

from m3dist.search.ledger import Ledger
from m3dist.search.table import Table


def test_the_reason_of_a_failure_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    ledger, reason = Ledger(plan), "ValueError: /data/[/red]\x1b[2J\u202e: expected [a, b]"
    ledger.record("proposed", trial="t0", index=0, values={"merge.lr": 0.1}, keys={})
    ledger.record("ended", trial="t0", status="failed", reason=reason)
    with Table(plan, ledger) as table:
        table.ended(ledger.trials["t0"])
    ledger.close()
    said = capsys.readouterr().err
    assert said.startswith(r"t0 failed (ValueError: /data/[/red]\x1b[2J\u202e: expected [a, b]): -, 0 epochs")
