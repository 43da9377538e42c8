"""Whole runs: what a run folder holds, what is trained again, and every choice that a config offers."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import SMALL, popularity, small, trained

import m3dist
from m3dist import config as configs
from m3dist import pipeline
from m3dist.data import draws
from m3dist.data.dataset import Dataset
from m3dist.data.writer import Writer
from m3dist.storage.folders import Folder
from m3dist.training.callbacks import Callback, Stopped


def test_run_folder(finished_run: Path) -> None:
    result = json.loads((finished_run / "result.json").read_text())
    assert set(result["stages"]) == {"align", "invariance", "merge"}
    assert set(result["mask_auc"]) == set(result["mask_mean"]) == {"modality0", "modality1", "modality2"}
    masks = pq.read_table(finished_run / "masks.parquet").to_pylist()
    assert [row["representation"] for row in masks[7:9]] == ["modality0", "modality1"]
    planted = [row["mask"] for row in masks[:8] if row["planted"]]
    assert sum(planted) / len(planted) == pytest.approx(result["mask_mean"]["modality0"]["planted"], rel=1e-5)
    users = pq.read_table(finished_run / "test_users.parquet")
    assert users["user"].to_pylist() == list(range(120))
    assert sum(users["ndcg@10"].to_pylist()) / users.num_rows == pytest.approx(result["test"]["ndcg@10"], rel=1e-9)
    stages = {json.loads(line)["stage"] for line in (finished_run / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"align", "invariance", "merge", "test"}


def test_the_same_seed_gives_the_same_numbers(finished_run: Path, tmp_path: Path) -> None:
    again = trained(tmp_path)
    assert again["test"] == json.loads((finished_run / "result.json").read_text())["test"]
    assert trained(tmp_path / "other", "seed=1")["test"] != again["test"]


def test_a_run_finds_its_data_from_any_folder(
    planted_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config has the paths that it was given, which are relative to a folder above its own."""
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "data" / "mine").symlink_to(planted_root)
    monkeypatch.chdir(project)
    config = small(Path("runs/mine"), "data=data/mine", "artifacts=store", "model=ultragcn")
    tested = pipeline.run(config, quiet=True)["test"]
    monkeypatch.chdir(tmp_path)
    assert m3dist.load(project / "runs" / "mine").evaluate("test") == pytest.approx(tested)
    assert pipeline.run(pipeline.resumed("project/runs/mine", ()), quiet=True)["skipped"] == ["merge", "test"]


def test_a_changed_value_reruns_from_its_stage(tmp_path: Path) -> None:
    def renewed(*extra: str) -> set[str]:
        before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "artifacts").glob("*")}
        trained(tmp_path, *extra)
        now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "artifacts").glob("*")}
        return {name.split("-")[0] for name, when in now.items() if before.get(name) != when}

    assert renewed() == {"align", "invariance", "merge", "test"}
    assert renewed() == set()
    assert renewed("workers=2", "strategy=deepspeed", "max_failures=1") == set()
    assert renewed("merge.fusion=equal") == {"merge", "test"}
    assert renewed("invariance.gamma=0.5") == {"invariance", "merge", "test"}


def test_a_run_that_races_goes_on_without_racing_again(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
            if (stage, epoch) == ("align", 0):
                raise Stopped

    values = ("backbone.loss=auto", "race.steps=4")
    straight = trained(tmp_path / "straight", *values)
    with pytest.raises(Stopped):
        trained(tmp_path / "run", *values, callbacks=[Stop()])
    (raced,) = (tmp_path / "run" / "artifacts").glob("race-*")
    before = raced.stat().st_mtime_ns
    again = trained(tmp_path / "run", *values)
    assert again["skipped"] == ["graph", "race"]
    assert raced.stat().st_mtime_ns == before
    assert again["test"] == straight["test"]
    race = again["stages"]["race"]
    assert 5 <= len(race["tried"]) <= 7  # a weight of content at the best temperature, of rows where it can matter
    assert race["backbone"]["loss"] == max(race["tried"], key=race["tried"].get).partition(" ")[0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line["stage"] in ("race", "align")] == ["race", "align", "align"]


LEARN = (
    "backbone.dim=16", "backbone.negatives=64", "backbone.l2=1e-3", "backbone.content_l2=1e-3", "align.epochs=1",
    "invariance.rounds=1", "merge.epochs=6", "merge.lr=0.05",
)  # fmt: skip


@pytest.fixture(scope="module")
def learned(planted_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the defaults."""
    return trained(tmp_path_factory.mktemp("learned"), *LEARN, f"data={planted_root}")


@pytest.mark.parametrize(
    "extra",
    [
        ["merge.fusion=attention", "invariance.gate=softmax"],
        ["merge.fusion=loss", "invariance.gate=hard_sigmoid", "merge.init=align", "merge.epochs=10"],
        [
            "backbone.loss=ultragcn", "backbone.sampling=per_positive", "backbone.negatives=4", "optimizer=dense",
            "align.encoder=linear",
        ],
        ["model=ultragcn"],
        ["model=invrl", "merge.init=align"],
        ["backbone.nu=0", "align.encoder=mlp", "invariance.empty=drop", "invariance.rounds=0"],
    ],
)  # fmt: skip
def test_every_choice_learns_something_of_its_own(
    extra: list[str], learned: dict[str, Any], planted_root: Path, tmp_path: Path
) -> None:
    """Far more than popularity (1.8 times), which is twice as much as chance; and not what the defaults learn."""
    values = (*LEARN, f"data={planted_root}", *extra)
    result = trained(tmp_path, *values)
    popular = popularity(Dataset(planted_root), small(tmp_path, *values))["ndcg@10"]
    assert min(result["validation"]["ndcg@10"], learned["validation"]["ndcg@10"]) > 1.4 * popular
    assert result["validation"] != learned["validation"]
    assert result["test"] != learned["test"]


@pytest.mark.parametrize("model", ["ultragcn", "vbpr", "ngcf", "disengcn", "macridvae"])
def test_ids_alone(model: str, tmp_path: Path) -> None:
    user, item = np.divmod(np.random.default_rng(0).permutation(40 * 30)[:400].astype(np.int32), 30)
    with Writer(tmp_path / "ids") as out:
        cuts = {"train": slice(300), "val": slice(300, 350), "test": slice(350, 400)}
        out.interactions(40, 30, {split: (user[cut], item[cut]) for split, cut in cuts.items()})
        out.finish()
    values = [*SMALL, "baseline.epochs=2", f"data={tmp_path / 'ids'}", f"out={tmp_path / 'run'}", f"model={model}"]
    result = pipeline.run(configs.load(None, values), quiet=True)
    assert m3dist.load(str(tmp_path / "run")).evaluate("test") == pytest.approx(result["test"])


def test_a_run_in_a_store_stops_goes_on_and_equals_a_local_one(bucket: str, finished_run: Path, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
            if (stage, epoch) == ("merge", 0):
                raise Stopped

    out = bucket.replace("NAME", "run")
    remote = configs.load(None, SMALL).model_copy(update={"out": out})
    with pytest.raises(Stopped):
        pipeline.run(remote, [Stop()], quiet=True)
    assert Folder(out).exists("checkpoints")
    again = pipeline.run(remote, quiet=True)
    assert again["test"] == json.loads((finished_run / "result.json").read_text())["test"]
    lines = [json.loads(line) for line in Folder(out).read_text("metrics.jsonl").splitlines()]
    assert [x["step"] for x in lines if x["stage"] == "merge"] == [0, 1]
    assert any("events" in name for name in (Folder(out) / "tb").names())


@pytest.mark.parametrize("model", ["m3-invrl", "invrl", "vbpr"])
def test_a_run_reads_every_split_once_and_sorts_it_once(
    model: str, planted_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test split included; sorts that no call of numpy or torch shows are not seen.

    An epoch's order is a sort of hashes, not of the split, and is made once; of InvRL, whose pretraining and third
    stage go through the data in the same order, once in each of the two.
    """
    n = Dataset(planted_root).size("train")
    reads: list[str] = []
    sorts: list[str] = []
    orders: list[int] = []
    real, real_order = pq.ParquetFile.iter_batches, draws.order

    def order(shards: Sequence[int], key: int, device: torch.device) -> list[torch.Tensor]:
        before = [*sorts]
        made = [*real_order(shards, key, device)]
        sorts[:] = before
        orders.append(key)
        return made

    def read(file: pq.ParquetFile, *arguments: Any, **options: Any) -> Iterator[Any]:
        for batch in real(file, *arguments, **options):
            if "split" in batch.schema.names:
                reads.extend(batch["split"].unique().to_pylist())
            yield batch

    def watched(owner: Any, name: str) -> None:
        sort = getattr(owner, name)

        def call(x: Any, *arguments: Any, **options: Any) -> Any:
            arrays = x if isinstance(x, tuple | list) else [x]
            if any(isinstance(part, np.ndarray | torch.Tensor) and len(part) == n for part in arrays):
                sorts.append(f"{name} of {[type(part).__name__ for part in arrays]}")
            return sort(x, *arguments, **options)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", read)
    monkeypatch.setattr(draws, "order", order)
    for owner in (np, torch, torch.Tensor):
        for name in ("lexsort", "argsort", "sort", "unique", "msort"):
            if hasattr(owner, name):
                watched(owner, name)
    trained(tmp_path, f"model={model}", f"data={planted_root}", "baseline.epochs=2")
    assert sorted(reads) == ["test", "train", "val"]
    assert len(sorts) <= 1, sorts
    assert len(set(orders)) > 1
    assert max(collections.Counter(orders).values()) == (2 if model == "invrl" else 1)
