"""From data to recommendations through the command line, on small planted data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import m3dist
from m3dist import config as configs
from m3dist import pipeline
from m3dist.cli.main import main
from m3dist.data.writer import Writer

SMALL = [
    "synthetic.users=120", "synthetic.items=90", "synthetic.interactions=20", "backbone.dim=8",
    "backbone.content_dim=8", "backbone.negatives=32", "align.epochs=2", "align.batch_size=512", "align.dim=16",
    "invariance.rounds=2", "invariance.environments=3", "invariance.batch_size=512", "invariance.negatives=32",
    "merge.epochs=2", "merge.batch_size=512", "evaluation.k=[5,10]",
]  # fmt: skip


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert call("train", *SMALL, f"out={out}") == 0
    return out


def test_run_folder(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert set(result["stages"]) == {"align", "invariance", "merge"}
    assert set(result["mask_auc"]) == set(result["mask_mean"]) == {"modality0", "modality1", "modality2"}
    masks = pq.read_table(run / "masks.parquet").to_pylist()
    assert [row["representation"] for row in masks[7:9]] == ["modality0", "modality1"]
    planted = [row["mask"] for row in masks[:8] if row["planted"]]
    assert sum(planted) / len(planted) == pytest.approx(result["mask_mean"]["modality0"]["planted"], rel=1e-5)
    assert 0 < result["test"]["recall@10"] <= 1
    users = pq.read_table(run / "test_users.parquet")
    assert sum(users["ndcg@10"].to_pylist()) / users.num_rows == pytest.approx(result["test"]["ndcg@10"], rel=1e-9)
    stages = {json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"align", "invariance", "merge", "test"}


def test_the_same_seed_gives_the_same_numbers(run: Path, tmp_path: Path) -> None:
    again = pipeline.run(configs.load(None, [*SMALL, f"out={tmp_path}"]), quiet=True)
    assert again["test"] == json.loads((run / "result.json").read_text())["test"]


def test_a_changed_value_reruns_from_its_stage(tmp_path: Path) -> None:
    def trained(*extra: str) -> set[str]:
        before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "artifacts").glob("*")}
        pipeline.run(configs.load(None, [*SMALL, f"out={tmp_path}", *extra]), quiet=True)
        now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "artifacts").glob("*")}
        return {name.split("-")[0] for name, when in now.items() if before.get(name) != when}

    assert trained() == {"align", "invariance", "merge", "test"}
    assert trained() == set()
    assert trained("workers=2", "strategy=deepspeed", "max_failures=1") == set()
    assert trained("merge.fusion=equal") == {"merge", "test"}
    assert trained("invariance.gamma=0.5") == {"invariance", "merge", "test"}


@pytest.mark.parametrize(
    "extra",
    [
        ["merge.fusion=attention", "invariance.gate=softmax"],
        ["merge.fusion=loss", "invariance.gate=hard_sigmoid", "merge.init=align"],
        ["backbone.sampling=per_positive", "backbone.negatives=4", "optimizer=dense", "align.encoder=linear"],
        ["model=ultragcn"],
        ["model=invrl", "merge.init=align"],
        ["backbone.nu=0", "align.encoder=mlp", "invariance.empty=drop", "invariance.rounds=0"],
    ],
)
def test_every_choice_trains(extra: list[str], tmp_path: Path) -> None:
    result = pipeline.run(configs.load(None, [*SMALL, f"out={tmp_path}", *extra]), quiet=True)
    assert result["test"]["recall@10"] > 0


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


@pytest.mark.parametrize("model", ["m3-invrl", "invrl", "mmgcn"])
def test_ids_alone_are_not_enough(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Writer(tmp_path / "ids") as out:
        pair = np.zeros(1, np.int32)
        out.interactions(2, 3, {"train": (pair, pair), "val": (pair, pair + 1), "test": (pair, pair + 2)})
        out.finish()
    assert call("train", f"data={tmp_path / 'ids'}", f"out={tmp_path / 'run'}", f"model={model}") == 2
    assert "needs item features" in capsys.readouterr().err


def test_evaluate_prints_what_training_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", str(run)) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(printed["ndcg@10"]) == pytest.approx(
        json.loads((run / "result.json").read_text())["test"]["ndcg@10"], abs=1e-6
    )


def test_recommend(run: Path, tmp_path: Path) -> None:
    assert call("recommend", str(run), "--k", "3", "--out", str(tmp_path / "top.parquet")) == 0
    table = pq.read_table(tmp_path / "top.parquet")
    assert table.num_rows == 120 * 3
    row = table.to_pylist()[0]
    assert sum(row[f"weight_modality{m}"] for m in range(3)) == pytest.approx(1, rel=1e-5)
    opened = m3dist.load(str(run))
    user, item = opened.dataset.interactions("train")
    assert row["item"] not in set(item[user == 0].tolist())
    assert opened.recommend([7], 3).to_pylist()[0]["user"] == 7
    with pytest.raises(ValueError, match="user 9999"):
        opened.recommend([9999], 3)


def test_recommend_to_the_users_of_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "users.txt").write_text("7\n\n3\n")
    out = tmp_path / "top.parquet"
    assert call("recommend", str(run), "--users", str(tmp_path / "users.txt"), "--k", "2", "--out", str(out)) == 0
    assert pq.read_table(out)["user"].to_pylist() == [7, 7, 3, 3]
    (tmp_path / "users.txt").write_text("\n")
    for bad in ("users.txt", "nowhere.txt"):
        assert call("recommend", str(run), "--users", str(tmp_path / bad), "--out", str(tmp_path / "no.parquet")) == 2
        assert bad in capsys.readouterr().err
    assert not (tmp_path / "no.parquet").exists()


def test_tensorboard_shows_every_stage(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tb"))
    board.Reload()
    scalars, histograms = set(board.Tags()["scalars"]), set(board.Tags()["histograms"])
    fit = ("loss", "positive", "negative", "neighbours", "l2", "lr", "interactions/s", "ndcg@10")
    assert {f"{stage}/{name}" for stage in ("align", "merge") for name in fit} <= scalars
    assert {f"align/{name}" for name in ("loss", "recommendation", "contrastive", "club", "club_nll", "tau")} <= scalars
    rounds = ("moved", "environment 0", "environment 2", "fit", "variance", "size", "mask")
    assert {f"invariance/{r}/{name}" for r in range(4) for name in rounds} <= scalars
    assert "invariance/interactions/s" in scalars
    assert {f"merge/fusion weight {m}" for m in range(3)} <= scalars & histograms
    assert {f"invariance/mask {r}" for r in range(4)} <= histograms


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("align.lrr=1", "did you mean align.lr"),
        ("merge.epochs=-1", "merge.epochs"),
        ("evaluation.metric=ndcg@7", "evaluation.k"),
        ("data=/nowhere", "not a prepared data set"),
        ("nonsense", "no such file"),
    ],
)
def test_bad_input_is_one_clear_error(
    argument: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", argument, f"out={tmp_path / 'run'}") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_dry_run_and_print_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--dry-run", *SMALL, f"out={tmp_path}") == 0
    assert "total" in capsys.readouterr().out
    assert call("train", "--print-config", "seed=3") == 0
    assert "seed: 3" in capsys.readouterr().out
