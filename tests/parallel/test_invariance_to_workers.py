"""The number of workers changes neither losses nor metrics nor parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parallel_helpers import planted, rounds, small, spawn, trajectories

STEPS = 50
RUNS = [
    ("align", small()),
    ("merge", small()),
    ("align", small("backbone.sampling=per_positive", "backbone.negatives=4", "align.encoder=identity")),
    ("merge", small("optimizer=dense", "backbone.nu=0")),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "data", small())


@pytest.fixture(scope="module")
def alone(root: Path) -> list[dict[str, Any]]:
    return trajectories(0, 1, RUNS, root, STEPS)


def agree(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Losses to 1e-5 relative, metrics to 1e-6."""
    for name in theirs["losses"][0]:
        ours_t, theirs_t = ([step[name] for step in run["losses"]] for run in (ours, theirs))
        np.testing.assert_allclose(ours_t, theirs_t, rtol=1e-5, atol=1e-7, err_msg=name)
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-6)


def same_everywhere(results: list[dict[str, Any]]) -> None:
    for other in results[1:]:
        assert other["metrics"] == results[0]["metrics"]
        for name, value in results[0]["state"].items():
            assert torch.equal(other["state"][name], value), name


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_workers_share_the_same_numbers(world: int, root: Path, alone: list[dict[str, Any]]) -> None:
    results = spawn(world, trajectories, RUNS, root, STEPS)
    for at, single in enumerate(alone):
        agree(results[0][at], single)
        same_everywhere([ranks[at] for ranks in results])


def deepspeed(stage: int, *extra: str) -> Any:
    return small("strategy=deepspeed", f"zero_stage={stage}", *extra)


ROUNDS = [small(), small("invariance.gate=hard_sigmoid", "invariance.empty=drop")]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_workers_find_the_same_environments_and_masks(world: int, root: Path) -> None:
    alone = rounds(0, 1, ROUNDS, root)
    runs = [*ROUNDS, *(deepspeed(stage) for stage in ((2,) if world == 2 else (0, 1, 2, 3)))]
    results = spawn(world, rounds, runs, root, timeout=240)
    for at, config in enumerate(runs):
        ours, theirs = results[0][at], alone[ROUNDS.index(config) if config in ROUNDS else 0]
        for mine, other in zip(ours[1]["rounds"], theirs[1]["rounds"], strict=True):
            for name, value in other.items():
                if name.split("/")[-1] in ("loss", "fit", "variance", "size", "mask"):
                    assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
        for name, x in theirs[0].items():
            if name.startswith("environment"):
                assert float((ours[0][name] != x).double().mean()) < 1e-3, name  # where two score the same
            else:
                torch.testing.assert_close(ours[0][name], x, rtol=1e-4, atol=1e-5)
        for other in results[1:]:
            for name, x in ours[0].items():
                assert torch.equal(other[at][0][name], x), name
