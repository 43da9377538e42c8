"""What the method is for, on planted data: masks find the causal dimensions, and a flipped exposure costs less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m3dist import pipeline
from m3dist.config import load
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.data.writer import Writer
from m3dist.method import merge
from m3dist.method.content import Contents
from m3dist.method.merge import MergeTask
from m3dist.training.context import Context

SMALL = [
    "synthetic.users=300", "synthetic.items=200", "backbone.loss=softmax", "backbone.dim=16", "align.epochs=6",
    "align.batch_size=512", "merge.epochs=6", "merge.batch_size=512", "invariance.rounds=3",
    "invariance.batch_size=512",
]  # fmt: skip


def both(out: Path, *values: str) -> dict[str, dict[str, Any]]:
    """Results of M3-InvRL and of naive UltraGCN on the same data."""
    return {
        model: pipeline.run(load(None, [*SMALL, *values, f"model={model}", f"out={out / model}"]), quiet=True)
        for model in ("m3-invrl", "ultragcn")
    }


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


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_masks_separate_in_a_small_run(seed: int, tmp_path: Path) -> None:
    """Every planted dimension has a larger mask than every spurious one, and stage 3 ranks the better for it."""
    runs = both(tmp_path, f"seed={seed}")
    ours, naive = runs["m3-invrl"], runs["ultragcn"]
    assert ours["mask_auc"] == {f"modality{m}": 1.0 for m in range(3)}
    for mean in ours["mask_mean"].values():
        assert mean["planted"] > 1.5 * mean["spurious"]
    assert ours["test"]["ndcg@10"] > naive["test"]["ndcg@10"]


def shifted(root: Path, source: Path) -> str:
    """The same data with half of the flipped test split for validation."""
    data = Dataset(source)
    user, item = data.interactions("test")
    first = np.arange(len(user)) % 2 == 0
    with Writer(root) as out:
        for name in data.modalities:
            out.features(name, np.array(data.features(name)))
            out.truth(name, data.truth(name))
        parts = {"val": (user[first], item[first]), "test": (user[~first], item[~first])}
        out.interactions(data.n_users, data.n_items, {"train": data.interactions("train"), **parts})
        out.finish()
    return f"data={root}"


@pytest.mark.slow
def test_a_validation_split_that_is_shifted_chooses_the_masks(tmp_path: Path) -> None:
    """Where what is held out has another exposure than training had, learned masks win against none."""
    synthetic.write(tmp_path / "planted", load(None, SMALL).synthetic, 0)
    runs = both(tmp_path, shifted(tmp_path / "shifted", tmp_path / "planted"), "merge.masks=auto")
    selection = runs["m3-invrl"]["stages"]["selection"]
    assert selection["masks"] == "learned"
    assert selection["tried"]["learned"] > 1.02 * selection["tried"]["one"]
    assert runs["m3-invrl"]["test"]["ndcg@10"] > runs["ultragcn"]["test"]["ndcg@10"]


def test_the_projection_pays_for_its_square(tmp_path: Path) -> None:
    small = ["synthetic.users=60", "synthetic.items=50", "synthetic.interactions=20", "merge.batch_size=64"]
    synthetic.write(tmp_path / "data", load(None, small).synthetic, 0)
    loss, W = [], torch.empty(0)
    for weight in (0.0, 0.5):
        config = load(None, [*small, "backbone.loss=ultragcn", f"backbone.projection_l2={weight}"])
        context = Context(Dataset(tmp_path / "data"), config)
        task = MergeTask(context, Contents.beside(context.data.features[:1]))
        task.draws.seek(0, 0)
        W = task.members.models[0].project.weight.detach().clone()  # type: ignore[union-attr]
        loss.append(float(task.step()["0/l2"]))
    assert loss[1] - loss[0] == pytest.approx(0.5 * float(W.square().sum()), rel=1e-5)


@pytest.mark.parametrize("model", ["m3-invrl", "invrl"])
def test_members_read_through_masks_whose_mean_square_is_one(model: str, tmp_path: Path) -> None:
    """A mask says what dimensions are worth beside each other: how large it is does not matter."""
    small = ["synthetic.users=60", "synthetic.items=50", "synthetic.interactions=20", "backbone.loss=softmax"]
    synthetic.write(tmp_path / "data", load(None, small).synthetic, 0)
    dataset, generator = Dataset(tmp_path / "data"), torch.Generator().manual_seed(0)
    widths = [*dataset.modalities.values()]
    many = [*widths, sum(widths)] if model == "m3-invrl" else [sum(widths)]
    mask = [torch.rand(D, generator=generator) for D in many]
    x = [torch.randn(50, D, generator=generator) for D in widths]
    x.append(F.normalize(torch.cat(x, dim=1), dim=1) * 2**0.5)  # the shared representation

    def contents(masks: str, scale: float = 1.0) -> list[torch.Tensor]:
        stored: dict[str, dict[str, torch.Tensor]] = {
            "invariance": {f"mask.{r}": scale * part for r, part in enumerate(mask)},
            "align": {f"representation.{r}": part for r, part in enumerate(x)},
        }
        context = Context(dataset, load(None, small), load=lambda stage: (stored[stage], {}))
        found = (merge.modalities if model == "m3-invrl" else merge.features)(context, masks)
        return [part[:-1] for part in found.each() if part is not None]

    if model == "invrl":
        x = contents("one")  # the features themselves
    phi = [part * m / m.square().mean().sqrt() for part, m in zip(x, mask, strict=True)]
    want = phi if model == "invrl" else [torch.cat([part, phi[-1]], dim=1) for part in phi[:-1]]
    for scale in (1.0, 0.01):
        for found, part in zip(contents("learned", scale), want, strict=True):
            torch.testing.assert_close(found, part)
    plain = x if model == "invrl" else [torch.cat([part, x[-1]], dim=1) for part in x[:-1]]
    for found, part in zip(contents("one"), plain, strict=True):
        torch.testing.assert_close(found, part)
    shuffled = contents("shuffled")
    assert any(not torch.equal(a, b) for a, b in zip(shuffled, contents("learned"), strict=True))
    for a, b in zip(shuffled, contents("shuffled"), strict=True):
        assert torch.equal(a, b)
    mine = (shuffled[0] / plain[0])[0]  # every dimension's mask: the same entries in another order
    ours = (contents("learned")[0] / plain[0])[0]
    first = many[0]
    torch.testing.assert_close(mine[:first].sort().values, ours[:first].sort().values, rtol=1e-4, atol=1e-5)
