"""Tables that people open elsewhere."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from m3dist.study.report import write_table


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@sum", "\t=1", "\r=1"])
def test_a_spreadsheet_takes_no_text_for_a_formula(text: str, tmp_path: Path) -> None:
    write_table(tmp_path / "t", "T", [{"name": text, "value": -0.5, "plain": "a=b"}])
    with (tmp_path / "t.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {"name": f"'{text}", "value": "-0.5", "plain": "a=b"}


def test_a_table_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    write_table(tmp_path / "t", "T", [{"name": "a"}])
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_table(tmp_path / "t", "T", [{"name": "b"}, {"name": "c", "more": 1}])
    assert (tmp_path / "t.csv").read_text().split() == ["name", "a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.md"]
