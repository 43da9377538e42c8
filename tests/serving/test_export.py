"""Runs as files for other programs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cli_helpers import call
from small_runs import trained
from test_histories import lists

import m3dist
from m3dist.serving.histories import Histories

EVERYTHING = m3dist.Rules(include_seen=True)


def vectors(path: Path) -> tuple[list[Any], np.ndarray]:
    table = pq.read_table(path)
    return table["id"].to_pylist(), np.stack(table["vector"].to_numpy())


@pytest.mark.parametrize("of", ["fused", "one member", "factors"])
def test_inner_products_are_scores(finished_run: Path, tmp_path: Path, of: str) -> None:
    root = finished_run
    if of != "fused":
        root = tmp_path / "run"
        trained(root, "model=" + ("ultragcn" if of == "one member" else "vbpr"), "baseline.epochs=1")
    run = m3dist.load(str(root), "cpu")
    run.export(tmp_path / "out")
    (users, user_UW), (items, item_IW) = (vectors(tmp_path / "out" / f"{kind}.parquet") for kind in ("users", "items"))
    assert users == run.dataset.user_ids.to_pylist()
    assert items == run.dataset.item_ids.to_pylist()
    score_UI = user_UW @ item_IW.T
    rows = run.recommend(k=90, rules=EVERYTHING).to_pylist()
    assert len(rows) == 120 * 90
    assert [score_UI[row["user"], row["item"]] for row in rows] == pytest.approx(
        [row["score"] for row in rows], abs=1e-5
    )


def test_an_index_gives_our_lists(finished_run: Path, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed; pip install '.[export]'")
    out = tmp_path / "out"
    assert call("export", finished_run, out, "--format", "faiss") == 0
    run = m3dist.load(str(finished_run), "cpu")
    index = faiss.read_index(str(out / "index.faiss"))
    items, _ = vectors(out / "items.parquet")
    users, user_UW = vectors(out / "users.parquet")
    score_Uk, at_Uk = index.search(user_UW.astype(np.float32), 20)
    table = run.recommend(k=20, rules=EVERYTHING)
    ours = np.array(table["score"].to_pylist()).reshape(-1, 20)
    assert score_Uk == pytest.approx(ours, abs=1e-5)
    gap_Uk = np.diff(ours, axis=1, append=-9.0)
    apart = [u for u in range(len(users)) if np.abs(gap_Uk[u]).min() > 1e-5]  # no two scores are level
    assert len(apart) > 90
    listed = lists(table)
    assert [[items[at] for at in at_Uk[u]] for u in apart] == [listed[users[u]] for u in apart]


def test_a_model_gives_our_lists(finished_run: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; pip install '.[export]'")
    pytest.importorskip("onnx", reason="onnx is not installed; pip install '.[export]'")
    assert call("export", finished_run, tmp_path, "--format", "onnx") == 0
    run = m3dist.load(str(finished_run), "cpu")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    users, seen = [3, 7, 11], []
    for split in ("train", "val", "test"):
        user, item = run.dataset.interactions(split)
        seen += [(users.index(u), i) for u, i in zip(user.tolist(), item.tolist(), strict=True) if u in users]
    given = {"user": np.array(users), "seen": np.array(seen), "k": np.array([8])}
    item_uk, score_uk = session.run(["item", "score"], given)
    table = run.recommend(users, 8)
    assert item_uk.ravel().tolist() == table["item"].to_pylist()
    assert score_uk.ravel() == pytest.approx(table["score"].to_numpy(), abs=1e-5)
    given["seen"] = np.zeros((0, 2), np.int64)
    table = run.recommend(users, 8, rules=EVERYTHING)
    assert session.run(["item"], given)[0].ravel().tolist() == table["item"].to_pylist()
    assert "model.onnx" in (tmp_path / "README.md").read_text()


HISTORIES = {"a": [1, 2, 3], "b": [5], "c": [], "d": [7, 8, 9, 10, 11, 40]}
PADDED = np.full((4, 6), -1)
for row, items in enumerate(HISTORIES.values()):
    PADDED[row, : len(items)] = items
FOLDED = (
    ["merge.fusion=entropy"],
    ["merge.fusion=attention"],
    ["model=ultragcn", "backbone.loss=ultragcn"],
    ["model=invrl", "merge.fusion=equal"],
)


@pytest.mark.parametrize("given", [FOLDED[0], FOLDED[2]], ids=str)
def test_histories_side_by_side_have_the_scores_of_lists(given: list[str], tmp_path: Path) -> None:
    trained(tmp_path, *given)
    run = m3dist.load(tmp_path, "cpu")
    score_uI = Histories(run.fold_in, run.score)(torch.from_numpy(PADDED))
    table = run.recommend(k=90, histories=HISTORIES)
    places = {user: row for row, user in enumerate(HISTORIES)}
    found = [float(score_uI[places[row["user"]], row["item"]]) for row in table.to_pylist()]
    assert found == pytest.approx(table["score"].to_pylist(), abs=1e-4)
    assert torch.isinf(score_uI).sum() == 10  # what users have seen


@pytest.mark.slow  # torch takes half a minute to write one
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("given", FOLDED, ids=str)
def test_a_model_folds_histories_in(given: list[str], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; pip install '.[export]'")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed; pip install '.[export]'")
    trained(tmp_path / "run", *given)
    assert call("export", tmp_path / "run", tmp_path / "out", "--format", "onnx-histories") == 0
    run = m3dist.load(tmp_path / "run", "cpu")
    session = runtime.InferenceSession(str(tmp_path / "out/histories.onnx"), providers=["CPUExecutionProvider"])
    item_uk, score_uk = session.run(["item", "score"], {"history": PADDED, "k": np.array([8])})
    table = run.recommend(k=8, histories=HISTORIES)
    assert score_uk.ravel() == pytest.approx(table["score"].to_numpy(), abs=1e-4)
    assert item_uk.ravel().tolist() == table["item"].to_pylist()
    alone = session.run(["item"], {"history": PADDED[1:2, :1], "k": np.array([3])})[0]
    assert alone[0].tolist() == item_uk[1, :3].tolist()
    assert "histories.onnx" in (tmp_path / "out/README.md").read_text()


def test_a_card_travels_along(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert call("export", finished_run, out) == 0
    card, result = json.loads((out / "card.json").read_text()), json.loads((finished_run / "result.json").read_text())
    assert set(card["sha256"]) == {"users.parquet", "items.parquet"}
    for name, checksum in card["sha256"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == checksum
        assert f"{checksum[:12]}  {out}/{name}" in capsys.readouterr().out or name == "items.parquet"
    run = m3dist.load(str(finished_run))
    assert card["metrics"] == {"validation": result["validation"], "test": result["test"]}
    assert card["data"]["fingerprint"] == run.dataset.fingerprint
    assert m3dist.Config(**card["config"]) == run.config
    assert card["versions"]["trained"]["torch"] == card["versions"]["exported"]["torch"]
    said = (out / "README.md").read_text()
    assert f"| ndcg@10 | {result['test']['ndcg@10']:.4f} |" in said
    assert "120 users, 90 items" in said


def test_what_cannot_be_exported(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert call("export", finished_run, tmp_path / "file" / "out") == 2
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(ValueError, match="format 'csv': no such format; expected one of vectors, faiss, onnx, onnx-h"):
        m3dist.load(str(finished_run)).export(tmp_path, "csv")
    trained(tmp_path / "run", "model=macridvae", "baseline.epochs=1")
    with pytest.raises(ValueError, match="scores of model=macridvae are no inner products"):
        m3dist.load(str(tmp_path / "run")).export(tmp_path / "out")
    with pytest.raises(ValueError, match="scores of model=macridvae are no inner products"):
        m3dist.load(str(tmp_path / "run")).embeddings()
    with pytest.raises(ValueError, match="scores of model=macridvae are no inner products"):
        m3dist.load(str(tmp_path / "run")).export(tmp_path / "out", "onnx-histories")
    with pytest.raises(ValueError, match="histories: model=macridvae ranks no new users"):
        m3dist.load(str(tmp_path / "run")).recommend(histories={"a": [1]})
