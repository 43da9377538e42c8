"""Runs that start from an earlier one, on data that have grown."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import call
from small_runs import small, trained

import m3dist
from m3dist.config import Synthetic
from m3dist.data import synthetic
from m3dist.data.dataset import SPLITS, Dataset
from m3dist.training.callbacks import Callback, Stopped

U, I = 120, 90
KEPT = ("merge.epochs=0", "merge.fusion=equal")  # nothing is trained on, so that what was taken over can be seen


def written(root: Path, users: int, items: int, width: int | None = None) -> Path:
    """The first users and items of planted data under ids of their own, the later ones' before the earlier ones'.

    width: of features, which are cut to so many columns."""
    synthetic.write(root / "whole", Synthetic(users=U, items=I, interactions=20), seed=0)
    whole = Dataset(root / "whole")
    parts = {split: whole.interactions(split) for split in SPLITS}
    kept = {split: (user < users) & (item < items) for split, (user, item) in parts.items()}
    columns = {
        "user": np.concatenate([parts[split][0][kept[split]] for split in SPLITS]),
        "item": np.concatenate([parts[split][1][kept[split]] for split in SPLITS]),
    }
    named = {name: [f"{name[0]}{999 - x}" for x in column.tolist()] for name, column in columns.items()}
    named["split"] = [split for split in SPLITS for _ in range(kept[split].sum())]
    ids = [f"i{999 - x}" for x in range(items)]
    features = {m: np.array(whole.features(m))[:items, :width] for m in whole.modalities}
    Dataset.from_arrays(named, features, root / "data", m3dist.Options.of(split_column="split"), ids)
    return root / "data"


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("later"), U, I)


@pytest.fixture(scope="module", params=["m3-invrl", "invrl", "ultragcn", "ultragcn's loss"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run on 100 users with all items, and values that a run on from it needs."""
    model = {"ultragcn's loss": "ultragcn"}.get(request.param, request.param)
    loss = "ultragcn" if request.param == "ultragcn's loss" else "softmax"
    given = [f"model={model}", f"backbone.loss={loss}", "merge.fusion=equal"]
    data = written(tmp_path_factory.mktemp("earlier"), 100, I)
    trained(data.parent / "run", f"data={data}", *given)
    return data.parent / "run", [*given, f"warm_from={data.parent / 'run'}"]


def test_known_users_are_as_they_were_and_new_ones_are_folded_in(
    start: tuple[Path, list[str]], later: Path, tmp_path: Path
) -> None:
    result = trained(tmp_path / "next", f"data={later}", *start[1], *KEPT)
    assert "pretrain" not in result["stages"]
    before, run = m3dist.load(start[0], "cpu"), m3dist.load(tmp_path / "next", "cpu")
    everything = m3dist.Rules(include_seen=True)
    users = before.dataset.user_ids.to_pylist()

    def scores(run: m3dist.Run, **given: Any) -> dict[tuple[str, str], float]:
        rows = run.recommend(k=I, rules=everything, **given).to_pylist()
        return {(row["user"], row["item"]): row["score"] for row in rows}

    was = scores(before, user_ids=users)
    assert len(was) == 100 * I
    assert scores(run, user_ids=users) == pytest.approx(was, abs=1e-5)
    new = sorted(set(run.dataset.user_ids.to_pylist()) - set(users))
    assert len(new) == 20
    user, item = run.dataset.interactions("train")
    names, items = run.dataset.user_ids.to_pylist(), run.dataset.item_ids.to_pylist()
    histories = {x: [items[i] for i in item[user == names.index(x)].tolist()] for x in new}
    folded = scores(before, histories=histories)
    # UltraGCN's loss weighs items by how many users they have, which are more now
    near = 1e-5 if before.config.backbone.loss == "softmax" else 0.02
    assert scores(run, user_ids=new) == pytest.approx(folded, abs=near)


def test_new_items_start_by_their_content(tmp_path: Path, later: Path) -> None:
    data = written(tmp_path / "earlier", U, 70)
    trained(tmp_path / "run", f"data={data}", "model=ultragcn")
    trained(tmp_path / "next", f"data={later}", "model=ultragcn", f"warm_from={tmp_path / 'run'}", *KEPT)
    run = m3dist.load(tmp_path / "next", "cpu")
    known = [name in set(Dataset(data).item_ids.to_pylist()) for name in run.dataset.item_ids.to_pylist()]
    new_I = ~torch.tensor(known)
    assert int(new_I.sum()) == 20
    assert run.tensors["0.item"][new_I].abs().max() == 0
    assert run.tensors["0.item"][~new_I].norm(dim=1).min() > 0.01
    assert torch.allclose(run.tensors["0.matrix"][new_I].norm(dim=1), torch.ones(20))
    assert run.tensors["0.matrix"][new_I].std(0).max() > 0.01


def test_masks_and_choices_are_taken_over(tmp_path: Path, later: Path) -> None:
    auto = ["backbone.loss=auto", "merge.masks=auto", "race.steps=3"]
    trained(tmp_path / "run", f"data={written(tmp_path / 'earlier', 100, 80)}", *auto)
    result = trained(tmp_path / "next", f"data={later}", *auto, f"warm_from={tmp_path / 'run'}")
    before, run = (m3dist.load(tmp_path / name, "cpu").context for name in ("run", "next"))
    assert run.config.backbone == before.config.backbone
    assert run.masks == before.masks
    for r in range(4):
        assert torch.equal(run.read("invariance")[f"mask.{r}"], before.read("invariance")[f"mask.{r}"])
    assert len(run.read("align")["representation.0"]) == I
    assert set(result["stages"]) == {"graph", "race", "align", "invariance", "selection", "second", "merge"}
    third = trained(tmp_path / "third", f"data={later}", *auto, f"warm_from={tmp_path / 'next'}")
    assert third["test"].keys() == result["test"].keys()


class End(Callback):
    """Ends a run after its first epoch of stage 3."""

    def on_epoch(self, stage: str, epoch: int, metrics: dict[str, float]) -> None:
        if stage == "merge":
            raise Stopped("enough")


@pytest.mark.parametrize("start", ["m3-invrl"], indirect=True)
def test_it_goes_on_bit_for_bit(start: tuple[Path, list[str]], later: Path, tmp_path: Path) -> None:
    values = [f"data={later}", *start[1], "merge.epochs=6", "warm.share=0.5", "merge.evaluate_every=1"]
    whole = trained(tmp_path / "whole", *values)
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", *values, callbacks=[End()])
    again = trained(tmp_path / "cut", *values)
    assert again["stages"]["merge"] == whole["stages"]["merge"]
    assert again["stages"]["merge"]["epoch"] <= 2  # of half the epochs
    one, other = (m3dist.load(tmp_path / name, "cpu").tensors for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_is_whole_without_the_one_before(tmp_path: Path, later: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values, before = ["model=ultragcn", f"data={later}"], tmp_path / "run"
    trained(before, f"data={written(tmp_path / 'earlier', 100, 80)}", "model=ultragcn")
    result = trained(tmp_path / "next", *values, f"warm_from={before}")
    trained(before, f"data={tmp_path / 'earlier' / 'data'}", "model=ultragcn", "seed=1")
    own = small(tmp_path / "next")
    assert call("train", "--resume", tmp_path / "next") == 0  # nothing is left to do
    shutil.rmtree(tmp_path / "next" / "artifacts")
    capsys.readouterr()
    assert call("train", "--resume", tmp_path / "next") == 2
    assert f"warm_from={before}: has been trained anew since; choose another out" in capsys.readouterr().err
    shutil.rmtree(before)
    assert call("train", f"out={own.out}", *values, f"warm_from={before}") == 2
    assert f"warm_from={before}: not a finished run (no result.json)" in capsys.readouterr().err
    assert result["validation"]["ndcg@10"] > 0.01


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model=vbpr"], "warm_from: vbpr starts from nothing; of m3-invrl, ultragcn, ensemble, invrl a run can start"),
        (["model=ultragcn"], "is a run of model=m3-invrl; give model=m3-invrl, or leave warm_from out"),
        (["backbone.dim=4"], "has backbone.dim=8 and this run 4; give backbone.dim=8, or train it anew"),
        (["backbone.loss=ultragcn"], "has backbone.loss=softmax and this run ultragcn"),
        (["align.encoder=linear"], "has align.encoder=identity and this run linear"),
    ],
)
def test_what_cannot_start_from_a_run(
    finished_run: Path, tmp_path: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [f"{key}={value}" for key, value in (("out", tmp_path / "next"), ("warm_from", finished_run))]
    with pytest.raises(ValueError, match=said):
        trained(tmp_path / "next", *values, *given)
    assert not (tmp_path / "next" / "config.yaml").exists()


def test_other_features_are_refused(finished_run: Path, tmp_path: Path) -> None:
    data = written(tmp_path, U, I, width=5)
    with pytest.raises(ValueError, match=r"modality0 of 8.*; data=.* has modality0 of 5.*; prepare the same features"):
        trained(tmp_path / "next", f"data={data}", f"warm_from={finished_run}")
