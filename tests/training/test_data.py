"""What every stage reads of a data set, on the device of one worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m3dist.config import Backbone
from m3dist.data.dataset import Dataset
from m3dist.data.draws import Plan
from m3dist.data.graphs import item_neighbours
from m3dist.data.writer import Writer
from m3dist.distributed.engine import Engine
from m3dist.training.data import DeviceData, standardised

TRAIN = (np.array([0, 0, 1, 2, 2, 2], dtype=np.int32), np.array([0, 1, 1, 0, 1, 2], dtype=np.int32))
VISUAL = np.array([[1, 10], [3, 10], [9, 9], [5, 16]], dtype=np.float32)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Item 2 lacks the modality `visual`; item 3 has no training interactions."""
    none = (np.array([0], dtype=np.int32), np.array([3], dtype=np.int32))
    with Writer(tmp_path / "data") as out:
        out.features("visual", VISUAL, np.array([True, True, False, True]))
        out.features("text", np.eye(4, 3, dtype=np.float16))
        out.interactions(3, 4, {"train": TRAIN, "val": none, "test": (none[0] + 1, none[1])})
        out.finish()
    return Dataset(tmp_path / "data")


def test_features_are_standardised_over_who_has_them_and_of_length_1(dataset: Dataset) -> None:
    visual, text = DeviceData(dataset, Engine()).features
    have = VISUAL[[0, 1, 3]]
    want = (have - have.mean(0)) / have.std(0)
    np.testing.assert_allclose(visual[[0, 1, 3]], want / np.linalg.norm(want, axis=1, keepdims=True), rtol=1e-5)
    assert visual[2].tolist() == [0, 0]
    assert text.dtype == torch.float32
    both = DeviceData(dataset, Engine()).all_features
    assert both is not None
    assert torch.equal(both, torch.cat([visual, text], dim=1))


def test_constants_are_made_once_for_a_backbone(dataset: Dataset) -> None:
    data, backbone = DeviceData(dataset, Engine()), Backbone(loss="ultragcn", neighbours=2)
    weights = data.weights(backbone.resolved)
    assert data.weights(Backbone(loss="ultragcn", neighbours=2).resolved) is weights
    assert data.weights(Backbone(loss="ultragcn", neighbours=1).resolved) is not weights
    neighbour, omega = item_neighbours(TRAIN, (3, 4), 2)
    assert weights.neighbour.view(5, 2).tolist() == neighbour.tolist()
    np.testing.assert_allclose(weights.omega.view(5, 2), omega)
    torch.testing.assert_close(weights.c_I[:4], 1 / torch.tensor([3.0, 4.0, 2.0, 1.0]).sqrt())
    for without in (Backbone(loss="ultragcn", nu=0.0), Backbone(loss="softmax", neighbours=2)):
        assert not hasattr(data.weights(without.resolved), "neighbour")  # no item-item graph where nothing reads it
    assert data.weights(Backbone(loss="softmax", nu=0.1, neighbours=2).resolved).neighbour.view(5, 2).shape == (5, 2)


def test_steps_are_over_the_training_interactions(dataset: Dataset) -> None:
    draws = DeviceData(dataset, Engine()).draws(3, 100, Plan(2), groups=2)
    assert draws.steps == 1
    draws.seek(0, 0)
    batch = draws.draw()
    pairs = zip(batch.user_Pb[batch.valid_Pb].tolist(), batch.item_Pb[batch.valid_Pb].tolist(), strict=True)
    assert sorted(pairs) == sorted(zip(*(x.tolist() for x in TRAIN), strict=True))


def test_negatives_can_be_drawn_from_the_items_with_interactions_alone(dataset: Dataset) -> None:
    data = DeviceData(dataset, Engine())
    assert data.seen_items is not None
    assert data.seen_items.tolist() == [0, 1, 2]
    assert data.with_interactions(1).tolist() == [1, 1, 1, 0]
    assert data.with_interactions(1, (2, 4)).tolist() == [1, 0]
    assert data.with_interactions(0).tolist() == [1, 1, 1]
    for pool, want in ((None, {0, 1, 2, 3}), (data.seen_items, {0, 1, 2})):
        drawn = data.draws(3, 100, Plan(200), pool=pool).draw().negative
        assert set(drawn.view(-1).tolist()) == want


def test_where_all_items_have_interactions_there_is_no_pool(planted_root: Path) -> None:
    planted = Dataset(planted_root)
    assert (planted.degrees[1] > 0).all()
    assert DeviceData(planted, Engine()).seen_items is None


def test_a_worker_holds_its_part_of_the_rows_where_tables_are_sharded(dataset: Dataset) -> None:
    users = torch.tensor([2, 0, 1, 0])
    parts = [DeviceData(dataset, Engine(rank, 2), sharded=True) for rank in range(2)]
    assert [part.bounds(0) for part in parts] == [(0, 0), (0, 3)]  # of so few interactions there is one shard of users
    assert [part.bounds(1) for part in parts] == [(0, 2), (2, 4)]
    assert [part.mine(users).tolist() for part in parts] == [[False] * 4, [True] * 4]
    assert [len(part.pairs[0]) for part in parts] == [0, 6]
    whole = DeviceData(dataset, Engine(1, 2))  # items' rows on every worker; users' where their interactions are
    assert not whole.sharded
    assert (whole.bounds(0), whole.bounds(1)) == ((0, 3), None)
    alone = DeviceData(dataset, Engine(), sharded=True)
    assert not alone.sharded
    assert (alone.bounds(0), alone.bounds(1)) == (None, None)
    assert alone.mine(users).all()


def test_columns_have_mean_zero_and_variance_one() -> None:
    x = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3
    out = standardised(x, x)
    torch.testing.assert_close(out.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(5))


def test_only_items_that_have_the_modality_count() -> None:
    x = torch.tensor([[1.0], [3.0], [99.0]])
    assert standardised(x, x[:2])[:2].tolist() == [[-1.0], [1.0]]


def test_constant_columns_become_zero() -> None:
    """Their rounding errors, scaled to variance one, would outweigh all other columns."""
    x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))
    for column, value in ((1, 0.1), (2, 1e-8), (3, -12345.678), (4, 0.0)):
        x[:, column] = value
    x[:, 5] = 0.3 + (torch.arange(1000) % 2) * 2**-25  # alike but for float32's last bit
    out = standardised(x, x)
    assert (out[:, 1:] == 0).all()
    assert out[:, 0].abs().min() > 0


def test_a_small_spread_around_a_large_mean_is_no_constant() -> None:
    x = (1000 + torch.arange(8) * 0.01)[:, None]
    torch.testing.assert_close(standardised(x, x).var(0, correction=0), torch.ones(1), rtol=1e-3, atol=0)
