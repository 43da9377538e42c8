"""What the method is for, on planted data: masks find the causal dimensions, and a flipped exposure costs less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from m3dist import pipeline
from m3dist.config import load
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.method.merge import MergeTask
from m3dist.training.context import Context


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_masks_separate_and_the_drop_is_smaller(tmp_path: Path) -> None:
    """The defaults, as `m3dist train` runs them, beside naive UltraGCN on the same data."""
    drops: dict[str, list[float]] = {"m3-invrl": [], "ultragcn": []}
    for seed in (0, 1, 2):
        tested: dict[str, float] = {}
        for model, drop in drops.items():
            config = load(None, [f"model={model}", f"seed={seed}", f"out={tmp_path / model}-{seed}"])
            run: dict[str, Any] = pipeline.run(config, quiet=True)
            tested[model] = run["test"]["ndcg@10"]
            drop.append(1 - tested[model] / run["validation"]["ndcg@10"])
            if model == "m3-invrl":
                assert min(run["mask_auc"].values()) >= 0.9
        assert tested["m3-invrl"] > tested["ultragcn"]
    # 0.21 to 0.32 against 0.22 to 0.37: of one seed alone the order is not sure
    assert sum(drops["m3-invrl"]) < sum(drops["ultragcn"])


def test_the_projection_pays_for_its_square(tmp_path: Path) -> None:
    small = ["synthetic.users=60", "synthetic.items=50", "synthetic.interactions=20", "merge.batch_size=64"]
    synthetic.write(tmp_path / "data", load(None, small).synthetic, 0)
    loss, W = [], torch.empty(0)
    for weight in (0.0, 0.5):
        config = load(None, [*small, f"backbone.projection_l2={weight}"])
        context = Context(Dataset(tmp_path / "data"), config)
        task = MergeTask(context, [context.data.features[0]])
        task.draws.seek(0, 0)
        W = task.members.models[0].project.weight.detach().clone()  # type: ignore[union-attr]
        loss.append(float(task.step()["0/l2"]))
    assert loss[1] - loss[0] == pytest.approx(0.5 * float(W.square().sum()), rel=1e-5)
