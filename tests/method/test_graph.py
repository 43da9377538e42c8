"""The item-item graph is made once for a run, here or by Ray actors, and read by whoever trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import small, trained

from m3dist import pipeline
from m3dist.data import graphs
from m3dist.data.dataset import Dataset
from m3dist.method import graph
from m3dist.training import data
from m3dist.training.context import Context

VALUES = ("model=ultragcn", "backbone.loss=ultragcn", "backbone.neighbours=3", "merge.epochs=1")


def test_it_is_a_stage_whose_artifact_training_reads(
    planted_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "item_neighbours", lambda *_: pytest.fail("made again"))
    values = (*VALUES, f"data={planted_root}", f"artifacts={tmp_path / 'shared'}")
    result = trained(tmp_path / "run", *values)
    assert list(result["stages"]) == ["graph", "merge"]
    dataset = Dataset(planted_root)
    tensors, meta = pipeline.artifact_store(small(tmp_path, *values)).load("graph", result["keys"]["graph"])
    want = graphs.item_neighbours(dataset.interactions("train"), (300, 150), 3)
    for name, x in zip(("neighbour", "omega"), want, strict=True):
        np.testing.assert_array_equal(tensors[name], x)
    assert meta == {"left_out": 0}
    again = trained(tmp_path / "seed", *values, "seed=1")
    assert again["skipped"] == ["graph"]  # of the data and its own values alone
    assert trained(tmp_path / "k", *values, "backbone.neighbours=2")["skipped"] == []


def test_training_reads_the_graph_where_its_file_lies(planted_root: Path, tmp_path: Path) -> None:
    """Its tensors are mapped from the file, which processes of a node share, and are not copied."""
    config = small(tmp_path, *VALUES, f"data={planted_root}")
    made = graph.run(Context(Dataset(planted_root), config)).tensors
    context = Context(Dataset(planted_root), config, load=lambda stage: (made, {}))
    weights = context.data.weights(config.backbone.resolved)
    assert weights.neighbour.data_ptr() == made["neighbour"].data_ptr()
    assert weights.omega.data_ptr() == made["omega"].data_ptr()


def test_a_cap_leaves_interactions_of_busy_users_out(planted_root: Path, tmp_path: Path) -> None:
    """All have 32."""
    config = small(tmp_path, *VALUES, f"data={planted_root}")
    dataset, whole = Dataset(planted_root), graph.run(Context(Dataset(planted_root), config))
    less = small(tmp_path, *VALUES, f"data={planted_root}", "graph.per_user=30")
    capped = graph.run(Context(dataset, less))
    assert capped.meta == {"left_out": 600}
    assert not torch.equal(capped.tensors["omega"], whole.tensors["omega"])
    assert pipeline.keys(config, dataset)["merge"] != pipeline.keys(less, dataset)["merge"]


@pytest.mark.timeout(240)
def test_actors_find_the_same_bits(
    ray_here: None, planted_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_PART", 1 << 14)
    dataset = Dataset(planted_root)
    assert len(graphs.parts(dataset.interactions("train"), (300, 150))) > 4
    here = graph.run(Context(dataset, small(tmp_path, *VALUES)))
    there = graph.run(Context(dataset, small(tmp_path, *VALUES, "workers=2")))
    assert there.meta == here.meta
    for name, x in here.tensors.items():
        assert torch.equal(there.tensors[name], x), name
    with pytest.raises(ValueError, match="workers: 9 x 1 CPU do not fit"):
        graph.run(Context(dataset, small(tmp_path, *VALUES, "workers=9")))
