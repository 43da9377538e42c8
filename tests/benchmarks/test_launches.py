"""A step asks of a GPU no more than its budget, and neither waits nor copies."""

from __future__ import annotations

import pytest

from benchmarks.launches import BLOCK_WAITS, MOST, measure

STEPS = [f"{name} step" for name in MOST]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return {row.what: row.values for row in measure(tmp_path_factory.mktemp("launches"))}


def test_every_kind_of_step_and_an_evaluation_block_are_measured(rows: dict[str, dict[str, float]]) -> None:
    assert rows.keys() == {*STEPS, "evaluation block"}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_stays_within_its_budget(step: str, rows: dict[str, dict[str, float]]) -> None:
    counts = rows[step]
    assert 20 < counts["launches"] <= MOST[step.removesuffix(" step")]
    assert (counts["waits"], counts["copies"]) == (0, 0)


def test_an_evaluation_block_waits_once_at_most(rows: dict[str, dict[str, float]]) -> None:
    counts = rows["evaluation block"]
    assert counts["launches"] > 5
    assert counts["waits"] <= BLOCK_WAITS
    assert counts["copies"] == 0
