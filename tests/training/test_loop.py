"""The training loop on a task of one parameter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from m3dist.config import Checkpoint, Fit
from m3dist.data.draws import Draws, Layout, Pairs, Plan
from m3dist.distributed.engine import Engine
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder
from m3dist.training import loop
from m3dist.training.loop import fit
from m3dist.training.steps import Rate
from m3dist.training.tracking import Display, Tracker


class OneNumber:
    """Minimises w^2 by steps of `size` of 8 interactions; keeps the learning rates of every step."""

    fixed = True

    def __init__(self, lr: float, size: int = 4):
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.dense = Engine().wrap(self.layer, [{"params": list(self.layer.parameters()), "lr": lr}])
        self.tables: dict = {}
        ids = torch.arange(8)
        self.draws = Draws(Pairs(ids, ids, 8, 8), Plan(1), Layout.of(8, size), 0)
        self.lr = Rate(2 * lr, torch.device("cpu"))
        self.rates = [self.lr]
        self.seen: list[tuple[float, float]] = []
        self.indices: list[list[int]] = []

    def step(self) -> dict[str, torch.Tensor]:
        assert self.dense.optimizer is not None
        self.seen.append((float(self.lr.now), float(self.dense.optimizer.param_groups[0]["lr"])))
        self.indices.append(self.draws.draw().index_Pb[0].tolist())
        loss = self.layer.weight.square().sum()
        self.dense.backward(loss)
        self.dense.step()
        return {"loss": loss.detach(), "one": torch.ones(())}

    def evaluate(self) -> dict[str, float]:
        return {"ndcg@10": 0.0}


@pytest.mark.parametrize(("decay", "rates"), [("linear", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]), ("none", [1] * 6)])
def test_the_learning_rate_falls_to_nothing_over_all_steps(decay: str, rates: list[float], tmp_path: Path) -> None:
    task = OneNumber(lr=0.5)
    settings = Fit(epochs=3, decay=decay, lr=0.5)  # type: ignore[arg-type]
    with Tracker(tmp_path, display=Display(quiet=True)) as tracker:
        fit(task, loop.Plan("merge", settings, "ndcg@10"), tracker)
    assert [rate for rate, _ in task.seen] == pytest.approx(rates)
    assert [lr for _, lr in task.seen] == pytest.approx([0.5 * rate for rate in rates])
    for epoch in range(3):  # two steps each, in an order of its own
        one, two = task.indices[2 * epoch : 2 * epoch + 2]
        assert sorted(one + two) == list(range(8))
    assert task.indices[:2] != task.indices[2:4]


def test_auto_takes_1500_steps_also_where_a_sample_is_more_than_an_interaction(tmp_path: Path) -> None:
    """750 epochs of two steps, each of as many interactions as a batch holds; 10 evaluations of the fit."""
    task, metrics = OneNumber(lr=0.5), []
    task.evaluate = lambda: (metrics.append(len(task.seen)), {"ndcg@10": 0.0})[1]  # type: ignore[method-assign]
    with Tracker(tmp_path, display=Display(quiet=True)) as tracker:
        fit(task, loop.Plan("merge", Fit(epochs="auto", batch_size=4096, patience=0), "ndcg@10"), tracker)
    assert len(task.seen) == 1500
    assert task.seen[-1][0] == pytest.approx(1 / 1500, rel=1e-4)  # the learning rate falls over all of them
    assert metrics == [150 * (k + 1) for k in range(10)]


def test_an_interrupt_is_heard_after_an_epoch_of_one_step(tmp_path: Path) -> None:
    task, folder = OneNumber(lr=0.5, size=8), Folder(str(tmp_path / "checkpoints"))
    checkpoints = Checkpoints(folder, "key", Checkpoint(), Engine())
    after_two = Tracker(tmp_path, display=Display(quiet=True), stop=lambda: len(task.seen) == 2)
    with after_two as tracker, pytest.raises(KeyboardInterrupt):
        fit(task, loop.Plan("merge", Fit(epochs=9), "ndcg@10"), tracker, checkpoints)
    saved = checkpoints.latest()
    assert saved is not None
    assert saved.meta["progress"]["epoch"] == 2


def logged(tmp_path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupt_inside_an_epoch_is_heard_and_the_fit_goes_on_with_its_sums(tmp_path: Path) -> None:
    settings, checkpoints = Fit(epochs=3, lr=0.5), Checkpoints(Folder(tmp_path / "c"), "key", Checkpoint(), Engine())
    straight, first, second = (OneNumber(lr=0.5, size=2) for _ in range(3))
    second.layer.load_state_dict(straight.layer.state_dict())
    first.layer.load_state_dict(straight.layer.state_dict())
    with Tracker(tmp_path / "straight", display=Display(quiet=True)) as tracker:
        fit(straight, loop.Plan("merge", settings, "ndcg@10"), tracker)
    after_six = Tracker(tmp_path / "run", display=Display(quiet=True), stop=lambda: len(first.seen) == 6)
    with after_six as tracker, pytest.raises(KeyboardInterrupt):
        fit(first, loop.Plan("merge", settings, "ndcg@10"), tracker, checkpoints)
    with Tracker(tmp_path / "run", display=Display(quiet=True)) as tracker:
        fit(second, loop.Plan("merge", settings, "ndcg@10"), tracker, checkpoints)
    assert first.indices + second.indices == straight.indices
    assert [*first.seen, *second.seen] == straight.seen
    assert torch.equal(second.layer.weight, straight.layer.weight)
    ours, theirs = logged(tmp_path / "run"), logged(tmp_path / "straight")
    for a, b in zip(ours, theirs, strict=True):
        assert (a["step"], a["one"], a["loss"], a["lr"]) == (b["step"], 1.0, b["loss"], b["lr"])


def test_a_loss_that_is_no_number_ends_a_fit(tmp_path: Path) -> None:
    task = OneNumber(lr=0.5)
    task.layer.weight.data.fill_(torch.nan)
    with (
        Tracker(tmp_path, display=Display(quiet=True)) as tracker,
        pytest.raises(FloatingPointError, match="lower merge"),
    ):
        fit(task, loop.Plan("merge", Fit(epochs=3), "ndcg@10"), tracker)


class Growing(OneNumber):
    """A task whose metric is best in its second evaluation."""

    def evaluate(self) -> dict[str, float]:
        epoch = len(self.seen) // self.draws.steps - 1
        return {"ndcg@10": 1.0 if epoch == 1 else 0.5, "other": float(epoch)}


def test_the_best_epoch_is_kept_and_patience_ends_a_fit(tmp_path: Path) -> None:
    task, weights = Growing(lr=0.5), []
    step = task.step
    task.step = lambda: (weights.append(float(task.layer.weight.detach())), step())[1]  # type: ignore[method-assign]
    settings = Fit(epochs=9, evaluate_every=1, patience=3, level=0)
    with Tracker(tmp_path, display=Display(quiet=True)) as tracker:
        best = fit(task, loop.Plan("merge", settings, "ndcg@10"), tracker)
    assert best == {"ndcg@10": 1.0, "other": 1.0, "epoch": 1}
    assert len(task.seen) == 2 * 5
    assert float(task.layer.weight.detach()) == weights[4]  # before the third epoch's first step


@pytest.mark.parametrize(("level", "epoch"), [(0.0, 1), (0.01, 3), (0.05, 4)])
def test_of_epochs_that_are_level_with_the_best_the_last_is_kept(level: float, epoch: int, tmp_path: Path) -> None:
    """Level with the best of all, not with the one kept before: a slow fall is not followed down."""
    task, metrics = OneNumber(lr=0.5), [0.5, 1.0, 0.98, 0.991, 0.96, 0.94]
    given, weights = iter(metrics), []

    def evaluate() -> dict[str, float]:
        weights.append(float(task.layer.weight.detach()))
        return {"ndcg@10": next(given)}

    task.evaluate = evaluate  # type: ignore[method-assign]
    settings = Fit(epochs=6, evaluate_every=1, level=level)
    with Tracker(tmp_path, display=Display(quiet=True)) as tracker:
        best = fit(task, loop.Plan("merge", settings, "ndcg@10"), tracker)
    assert best == {"ndcg@10": metrics[epoch], "epoch": epoch}
    assert float(task.layer.weight.detach()) == weights[epoch]
    assert len(set(weights)) == 6
