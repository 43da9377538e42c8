"""Items that are alike, by what a run ranks by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_runs import trained

import m3dist
from m3dist.data.importers.newitems import NewItems


def cosines(run: m3dist.Run, name: str) -> np.ndarray:
    row_Ik = np.stack(run.embeddings()[1][f"vector_{name}"].to_numpy())
    row_Ik /= np.linalg.norm(row_Ik, axis=1, keepdims=True)
    return row_Ik @ row_Ik.T


def test_items_alike_by_one_modality_and_by_all(finished_run: Path) -> None:
    run = m3dist.load(finished_run, "cpu")
    modalities = list(run.dataset.modalities)
    each = [cosines(run, name) for name in modalities]
    weights = run.result["stages"]["merge"]["fusion_weight"]
    expected = dict(zip(modalities, each, strict=True))
    expected["fused"] = sum(weight * one for weight, one in zip(weights, each, strict=True))
    for by, like_II in expected.items():
        table = run.similar_items([7, "3"], 5, by)
        assert table["item"].to_pylist() == [7] * 5 + [3] * 5
        assert table["rank"].to_pylist() == [1, 2, 3, 4, 5] * 2
        for row in table.to_pylist():
            others = np.delete(like_II[row["item"]], row["item"])
            assert row["cosine"] == pytest.approx(like_II[row["item"], row["similar"]], abs=1e-5)
            assert row["cosine"] == pytest.approx(np.sort(others)[-row["rank"]], abs=1e-5)
    assert run.similar_items([7], 500).num_rows == 89
    assert run.similar_items([7]).num_rows == 20


def test_new_items_are_alike_too(finished_run: Path) -> None:
    run = m3dist.load(finished_run, "cpu")
    features = {name: np.array(run.dataset.features(name))[:1] for name in run.dataset.modalities}
    more = run.add_items(NewItems(pa.array([1000]), features, {}))
    like = more.similar_items([1000], 90)
    assert sorted(like["similar"].to_pylist()) == list(range(90))
    assert 1000 in more.similar_items([0], 90)["similar"].to_pylist()


def test_what_cannot_be_asked(finished_run: Path, tmp_path: Path) -> None:
    run = m3dist.load(finished_run, "cpu")
    with pytest.raises(ValueError, match="by=smell: expected one of fused, modality0, modality1, modality2"):
        run.similar_items([1], by="smell")
    with pytest.raises(ValueError, match="similar_items: 1 of 1 item ids are unknown: 1000"):
        run.similar_items([1000])
    trained(tmp_path, "model=vbpr", "baseline.epochs=1")
    other = m3dist.load(tmp_path, "cpu")
    assert other.similar_items([1], 3).num_rows == 3
    with pytest.raises(ValueError, match="by=modality0: expected one of fused"):
        other.similar_items([1], by="modality0")
