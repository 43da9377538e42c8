"""Items that a run was not trained on, against the same items inside its data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli_helpers import call
from small_runs import trained

import m3dist
from m3dist.config import Synthetic
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.data.importers.newitems import NewItems
from m3dist.data.writer import Writer

I, COLD = 90, range(80, 90)  # without training interactions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted data whose last items are in no split but test, and which lack a modality in part."""
    root = tmp_path_factory.mktemp("cold")
    synthetic.write(root / "whole", Synthetic(users=120, items=I, interactions=20), seed=0)
    whole = Dataset(root / "whole")
    with Writer(root / "data") as out:
        for name in whole.modalities:
            out.features(name, np.array(whole.features(name)), np.arange(I) != 85 if name == "modality1" else None)
        splits = {split: whole.interactions(split) for split in ("train", "val", "test")}
        kept = {s: (u[i < 80], i[i < 80]) if s != "test" else (u, i) for s, (u, i) in splits.items()}
        out.interactions(120, I, kept)
        out.finish(provenance={})
    return root / "data"


def cold(run: m3dist.Run, name: str = "new") -> NewItems:
    """The cold items once more, under other ids."""
    dataset = run.dataset
    return NewItems(
        pa.array([1000 + item for item in COLD]),
        {m: np.array(dataset.features(m))[80:] for m in dataset.modalities},
        {m: dataset.present(m)[80:] for m in dataset.modalities},
    )


@pytest.fixture(scope="module", params=["m3-invrl", "invrl", "ultragcn", "ensemble", "ultragcn's loss"])
def run(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> m3dist.Run:
    out = tmp_path_factory.mktemp("run")
    model = {"ultragcn's loss": "m3-invrl"}.get(request.param, request.param)
    loss = "ultragcn" if request.param == "ultragcn's loss" else "softmax"
    trained(out, f"data={data}", f"model={model}", f"backbone.loss={loss}")
    return m3dist.load(str(out), "cpu")


def test_new_items_have_the_rows_of_cold_ones(run: m3dist.Run) -> None:
    more = run.add_items(cold(run))
    for item_Ik in more.score.members.item:
        assert len(item_Ik) == I + 10
        assert torch.allclose(item_Ik[I:], item_Ik[80:I], atol=1e-6)
        assert item_Ik[I:].std(0).max() > 0.01  # they differ from each other
    content_Iw = more.catalogue.content_Iw
    assert content_Iw is not None
    assert torch.allclose(content_Iw[I:], content_Iw[80:I], atol=1e-6)


def test_they_rank_with_the_catalogue_and_alone(run: m3dist.Run) -> None:
    more, users = run.add_items(cold(run)), [3, 7]
    table = more.recommend(users, 100, rules=m3dist.Rules(include_seen=True))
    score = {(row["user"], row["item"]): row["score"] for row in table.to_pylist()}
    assert len(score) == 2 * (I + 10)
    twice = [(score[u, 1000 + item], score[u, item]) for u in users for item in COLD]
    assert [new for new, _ in twice] == pytest.approx([old for _, old in twice], abs=1e-5)
    only = more.recommend(users, 100, rules=m3dist.Rules(only_new=True, include_seen=True))
    assert set(only["item"].to_pylist()) == {*COLD, *(1000 + item for item in COLD)}
    alone = more.recommend(users, 4, rules=m3dist.Rules(candidates=[1080, 1081]))
    assert sorted(alone["item"].to_pylist()) == [1080, 1080, 1081, 1081]
    known = more.recommend(k=5, histories={"a": [1, 2, 1080], "b": []}, reasons=True)
    assert known.num_rows == 10
    assert 1080 not in known.slice(0, 5)["item"].to_pylist()
    assert more.evaluate() == run.evaluate()
    assert run.recommend([3], 100).num_rows < more.recommend([3], 100).num_rows  # the run itself is as it was


def test_a_folder_of_new_items(run: m3dist.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, given = tmp_path / "new", cold(run)
    folder.mkdir()
    (folder / "items.tsv").write_text("item_id\n" + "\n".join(str(x) for x in given.ids.to_pylist()) + "\n")
    for name, x in given.features.items():
        np.save(folder / f"{name}.npy", x)
    np.save(folder / "has_modality1.npy", given.present["modality1"])
    assert (
        call("recommend", run.config.out, "--new-items", folder, "--only-new", "--k", 30, "--out", tmp_path / "t") == 0
    )
    ours = run.add_items(given).recommend(k=30, rules=m3dist.Rules(only_new=True))
    assert pq.read_table(tmp_path / "t").equals(ours)
    (folder / "modality2.npy").unlink()  # now all items lack it
    lacking = run.add_items(folder)
    assert {1080, 1089} <= set(lacking.recommend([3], 200)["item"].to_pylist())
    (folder / "items.tsv").unlink()
    assert call("recommend", run.config.out, "--new-items", folder, "--out", tmp_path / "t") == 2
    assert "list the ids in the same order in an items table" in capsys.readouterr().err
    assert call("recommend", run.config.out, "--new-items", tmp_path / "none", "--out", tmp_path / "t") == 2
    assert "no such folder" in capsys.readouterr().err


def test_bad_new_items(run: m3dist.Run) -> None:
    def changed(**values: Any) -> NewItems:
        return NewItems(**{**vars(cold(run)), **values})

    for bad, said in (
        (changed(ids=pa.array([5, *range(2000, 2009)])), "item 5 is not new"),
        (changed(ids=pa.array(["x", *"123456789"])), "id 'x' cannot be one of this run's items"),
        (changed(ids=pa.array([2000] * 10)), "an id stands there twice"),
        (
            changed(features={"modality0": np.zeros((10, 3), np.float32)}),
            "modality0 of 3 columns; the run has modality0 of 8",
        ),
        (changed(features={"smell": np.zeros((10, 8), np.float32)}), "smell of 8 columns"),
    ):
        with pytest.raises(ValueError, match=said):
            run.add_items(bad)
