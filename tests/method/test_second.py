"""Members under both losses: how much the second counts, and that they are members like others wherever they rank.

Shapes: U users, I items, M members, k width of rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_runs import trained
from torch import Tensor

import m3dist
from m3dist.config import load
from m3dist.data.dataset import Dataset
from m3dist.data.importers.newitems import NewItems
from m3dist.evaluation.ranking import Mask, Seen
from m3dist.method import race, registry, second
from m3dist.method.foldin import FoldIn
from m3dist.method.fused import Members
from m3dist.training.context import Context

KINDS = ("user", "matrix")
AUTO = ("backbone.loss=auto", "race.steps=3", "merge.epochs=6")
WINNER, OTHER = (load(None, [f"backbone.loss={loss}"]).backbone.resolved for loss in ("softmax", "ultragcn"))


def held_out(dataset: Dataset, width: int, noise: float) -> tuple[Tensor, Tensor]:
    """Rows [U, k] and [I, k] whose scores are high for validation interactions, the less so the more noise there is."""
    user, item = (torch.from_numpy(x.copy()).long() for x in dataset.interactions("val"))
    target_UI = torch.zeros(dataset.n_users, dataset.n_items)
    target_UI[user, item] = 1.0
    generator = torch.Generator().manual_seed(width)
    u, s, v = torch.linalg.svd(target_UI, full_matrices=False)
    users, items = u[:, :width] * s[:width], v[:width].T
    return users + noise * torch.randn(users.shape, generator=generator), items.contiguous()


def named(tables: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {f"{m}.{kind}": x for m, pair in enumerate(tables) for kind, x in zip(KINDS, pair, strict=True)}


def context(dataset: Dataset, tables: list[tuple[Tensor, Tensor]], behind: bool = False) -> Context:
    """Stage 3 after a race and a stage `second` that left these tables."""
    stored = named(tables)
    raced = {"backbone": WINNER.model_dump(mode="json"), "second": None if behind else OTHER.model_dump(mode="json")}

    def read(stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"race": ({}, raced), "second": (stored, {})}[stage]

    return Context(dataset, load(None, ["model=ultragcn"]), load=read).at(registry.model("ultragcn").final)


def members(tables: list[tuple[Tensor, Tensor]]) -> Members:
    return Members(named(tables))


def test_scores_of_both_losses_are_added_at_equal_spread(planted_root: Path) -> None:
    dataset = Dataset(planted_root)
    first, other = held_out(dataset, 40, 0.05), held_out(dataset, 60, 0.05)
    other = (other[0] * 37.0, other[1] + 5.0)  # neither their scale nor what all items share makes a difference
    found, learned, meta = second.joined(context(dataset, [other]), members([first]))
    share = meta["second"]["share"]
    assert share in second.SHARES[1:]
    everyone = torch.arange(dataset.n_users)
    scores = [(user @ item.T).double() for user, item in (first, other)]
    std = [score_UI.std(1).mean() for score_UI in scores]
    want_UI = scores[0] + scores[1] * (std[0] / std[1]) * share / (1 - share)
    (score_UI,) = found.scores(everyone)
    torch.testing.assert_close(score_UI.double(), want_UI, rtol=2e-4, atol=2e-4)
    assert learned[second.SCALE].tolist() == pytest.approx([float(std[0] / std[1]) * share / (1 - share)], rel=1e-4)


def test_the_second_loss_counts_as_much_as_validation_data_want(planted_root: Path) -> None:
    dataset = Dataset(planted_root)
    good, poor = held_out(dataset, 60, 0.0), held_out(dataset, 60, 3.0)
    same = members([good, good])
    found, learned, meta = second.joined(context(dataset, [poor, poor]), same)
    assert (found is same, learned, meta["second"]["share"]) == (True, {}, 0.0)
    found, learned, meta = second.joined(context(dataset, [good]), members([poor]))
    tried = meta["second"]["tried"]
    assert meta["second"]["share"] == max(second.SHARES)
    assert list(tried) == [str(share) for share in second.SHARES]
    assert [*tried.values()] == sorted(tried.values())


def test_a_loss_far_behind_has_no_members(planted_root: Path) -> None:
    dataset = Dataset(planted_root)
    one = members([held_out(dataset, 8, 0.1)])
    assert second.joined(context(dataset, [], behind=True), one) == (one, {}, {})
    alone = load(None, ["model=ultragcn", "backbone.loss=softmax"])
    assert second.joined(Context(dataset, alone).at(registry.model("ultragcn").final), one) == (one, {}, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> m3dist.Run:
    """A run whose members are half of each loss."""
    root = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "_BESIDE", 1.0)
        patch.setattr(second, "SHARES", (0.5,))
        trained(root / "run", *AUTO)
    return m3dist.load(root / "run", "cpu")


def test_a_run_ranks_as_it_was_evaluated(run: m3dist.Run) -> None:
    M, k = len(run.dataset.modalities), run.tensors["0.user"].shape[1]
    assert run.tensors[second.SCALE].shape == (M,)
    widths = [run.context.read(stage)["0.matrix"].shape[1] for stage in ("second", "merge")]
    assert widths == [widths[0], k]
    assert widths[0] < k
    assert run.evaluate("test") == pytest.approx(run.result["test"])
    users, items = run.embeddings()
    assert users.num_rows == run.dataset.n_users
    assert items.num_columns == 1 + M


def test_vectors_have_the_scores_of_both(run: m3dist.Run) -> None:
    vectors = run._vectors
    (some, row_uW), *_ = vectors.blocks()
    want_uI, _ = run.score(some.there_u, Mask(vectors.group.seen, some, run.dataset.n_items))
    unseen_uI = want_uI > -1e29
    assert 0 < int((~unseen_uI).sum()) < unseen_uI.numel() / 2
    torch.testing.assert_close((row_uW @ vectors.item_IW.T)[unseen_uI], want_uI[unseen_uI], rtol=1e-4, atol=1e-5)


def test_users_are_folded_in_under_both(run: m3dist.Run) -> None:
    histories = Seen.of(run.dataset.interactions("train"), run.dataset.n_users + 1)  # the last one has none
    rows_Muk, data = run.fold_in.rows(histories), run.context.data
    trained, M = run.context.read("second"), len(run.dataset.modalities)
    first_Muk, second_MuK = second.split(rows_Muk, trained["0.matrix"].shape[1])
    means = torch.stack([trained[f"{m}.user"].mean(0) for m in range(M)])
    backbone = second.backbone(run.context)
    assert backbone is not None
    items = [trained[f"{m}.matrix"] for m in range(M)]
    alone = FoldIn(backbone, data.weights(backbone), items, means, data.seen_items).rows(histories)
    torch.testing.assert_close(second_MuK, alone * run.tensors[second.SCALE].view(-1, 1, 1), rtol=1e-3, atol=1e-5)
    softmax = first_Muk if run.context.config.backbone.loss == "softmax" else alone
    assert torch.allclose(softmax[:, :-1].norm(dim=2), torch.ones(M, run.dataset.n_users), atol=1e-4)
    for m, user_Uk in enumerate(run.score.members.user):
        torch.testing.assert_close(rows_Muk[m, -1], user_Uk.mean(0), rtol=1e-4, atol=1e-6)
    padded = torch.full((2, 3), -1)
    padded[0] = torch.tensor([1, 5, 7])
    both = run.fold_in.rows(Seen.of((np.zeros(3, np.int64), np.array([1, 5, 7])), 2))
    torch.testing.assert_close(run.fold_in.padded(padded), both, rtol=1e-4, atol=1e-5)


def test_new_items_have_rows_of_both(run: m3dist.Run) -> None:
    features = {name: np.array(run.dataset.features(name))[:4] for name in run.dataset.modalities}
    more = run.add_items(NewItems(pa.array([9001, 9002, 9003, 9004]), features, {}))
    for m, item_Ik in enumerate(more.score.members.item):
        assert len(item_Ik) == run.dataset.n_items + 4
        assert len(torch.unique(item_Ik[-4:], dim=0)) == 4
        spoken_k = item_Ik[-4:].abs().sum(0) > 0  # by content, in all columns but those of UltraGCN's ids
        assert int((~spoken_k).sum()) == 8, m
    assert more.recommend([0], k=3).num_rows == 3


def test_a_run_starts_from_one_of_both_losses(run: m3dist.Run, tmp_path: Path) -> None:
    result = trained(tmp_path / "next", *AUTO, f"warm_from={run.root}", "warm.share=0.01", "warm.lr=1e-9")
    again = m3dist.load(tmp_path / "next", "cpu")
    assert result["stages"]["merge"]["second"]["tried"].keys() == {str(share) for share in second.SHARES}
    before, K = run.context.read("second"), run.context.read("second")["0.matrix"].shape[1]
    torch.testing.assert_close(again.context.read("second")["0.user"], before["0.user"], rtol=1e-4, atol=1e-5)
    first = second.split(run.tensors["0.user"], K)[0]
    torch.testing.assert_close(again.tensors["0.user"][:, : first.shape[1]], first, rtol=1e-4, atol=1e-5)
