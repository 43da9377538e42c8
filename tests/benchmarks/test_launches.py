"""A step asks of a GPU no more than its budget, neither waits nor copies, and asks no more of larger tables."""

from __future__ import annotations

import pytest

from benchmarks.launches import BLOCK, EMBEDDINGS, LOSSES, MOST, SHARED, measure
from benchmarks.sizes import Size, made

ALONE = [f"{kind} step, {loss}" for loss in LOSSES for kind in MOST]
OF_TWO = [
    f"{kind} step of one of two workers, {embeddings}, {loss}"
    for loss in LOSSES
    for embeddings in EMBEDDINGS
    for kind in ("align", "merge")
]
STEPS = [*ALONE, *OF_TWO]
Counts = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counts]:
    """At two sizes of tables, both with items that have no interactions, and batches as they are by default."""
    found = {}
    for name, size in (("small", Size(600, 1500, 9000, (16, 12, 8))), ("large", Size(6000, 9000, 9000, (16, 12, 8)))):
        rows = measure(made(size, tmp_path_factory.mktemp("launches") / name), name)
        found[name] = {row.what.removesuffix(f", {name}"): row.values for row in rows}
    return found


def test_every_kind_of_step_and_an_evaluation_block_are_measured(counts: dict[str, Counts]) -> None:
    assert counts["large"].keys() == {*STEPS, "evaluation block"}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_stays_within_its_budget(step: str, counts: dict[str, Counts]) -> None:
    found = counts["large"][step]
    assert 20 < found["launches"] <= MOST[step.partition(" ")[0]] + (0 if step in ALONE else SHARED)
    assert (found["waits"], found["copies"]) == (0, 0)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_does_not_grow_with_tables(step: str, counts: dict[str, Counts]) -> None:
    assert counts["large"][step] == counts["small"][step]


def test_an_evaluation_block_waits_once_at_most(counts: dict[str, Counts]) -> None:
    found = counts["large"]["evaluation block"]
    assert 20 < found["launches"] <= BLOCK
    assert found["waits"] <= 1
    assert found["copies"] == 0
