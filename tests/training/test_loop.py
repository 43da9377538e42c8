"""The training loop on a task of one parameter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m3dist.config import Checkpoint, Fit
from m3dist.data.sampling import Batch, Draws, Sampler
from m3dist.distributed.engine import Engine
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder
from m3dist.training.loop import Plan, fit
from m3dist.training.tracking import Display, Tracker


class OneNumber:
    """Minimises w^2; keeps the learning rate of every step."""

    def __init__(self, lr: float):
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.dense = Engine().wrap(self.layer, [{"params": list(self.layer.parameters()), "lr": lr}])
        self.tables: dict = {}
        ids = torch.arange(8)
        self.sampler = Sampler((ids, ids), 8, 4, Draws(1), (0, "t"))
        self.seen: list[tuple[float, float]] = []

    def step(self, batch: Batch) -> dict[str, torch.Tensor]:
        assert self.dense.optimizer is not None
        self.seen.append((self.dense.rate, self.dense.optimizer.param_groups[0]["lr"]))
        loss = self.layer.weight.square().sum()
        self.dense.backward(loss)
        self.dense.step()
        return {"loss": loss}

    def evaluate(self) -> dict[str, float]:
        return {"ndcg@10": 0.0}


@pytest.mark.parametrize(("decay", "rates"), [("linear", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]), ("none", [1] * 6)])
def test_the_learning_rate_falls_to_nothing_over_all_steps(decay: str, rates: list[float], tmp_path: Path) -> None:
    task = OneNumber(lr=0.5)
    settings = Fit(epochs=3, decay=decay, lr=0.5)  # type: ignore[arg-type]
    with Tracker(tmp_path, display=Display(quiet=True)) as tracker:
        fit(task, Plan("merge", settings, "ndcg@10"), tracker)
    assert [rate for rate, _ in task.seen] == pytest.approx(rates)
    assert [lr for _, lr in task.seen] == pytest.approx([0.5 * rate for rate in rates])


def test_an_interrupt_is_heard_after_an_epoch_of_one_step(tmp_path: Path) -> None:
    task, folder = OneNumber(lr=0.5), Folder(str(tmp_path / "checkpoints"))
    ids = task.sampler.user
    task.sampler = Sampler((ids, ids), 8, 8, Draws(1), (0, "t"))
    checkpoints = Checkpoints(folder, "key", Checkpoint(), Engine())
    after_two = Tracker(tmp_path, display=Display(quiet=True), stop=lambda: len(task.seen) == 2)
    with after_two as tracker, pytest.raises(KeyboardInterrupt):
        fit(task, Plan("merge", Fit(epochs=9), "ndcg@10"), tracker, checkpoints)
    saved = checkpoints.latest()
    assert saved is not None
    assert saved.meta["progress"]["epoch"] == 2
