"""Studies on small planted data: tables, figures, resuming, statistics, shifted splits."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from m3dist.cli.main import main
from m3dist.config import Synthetic
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.data.writer import Writer
from m3dist.study import methods, shift, statistics, studies
from m3dist.study.runs import Scores, Study, against

SMALL = (
    "backbone.loss=softmax", "backbone.dim=8", "backbone.negatives=32", "merge.masks=learned",
    "align.batch_size=1024", "align.dim=8",
    "invariance.rounds=1", "invariance.environments=2", "invariance.batch_size=1024", "invariance.negatives=32",
    "merge.batch_size=1024", "baseline.dim=8", "baseline.negatives=32", "merge.epochs=2", "align.epochs=2",
    "baseline.epochs=2", "invariance.environment_steps=4", "invariance.mask_steps=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study") / "movielens-planted"
    synthetic.write(root, Synthetic(users=90, items=80, interactions=20), 0)
    return root


@pytest.fixture(scope="module")
def study(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(str(data), tmp_path_factory.mktemp("out"), seeds=2, budget=0.5, trials=2, overrides=SMALL, quiet=True)


def rows(path: Path) -> list[dict[str, str]]:
    with path.with_suffix(".csv").open() as lines:
        return list(csv.DictReader(lines))


def test_table3(study: Study) -> None:
    path = studies.table3(study)
    table = rows(path)
    assert [row["method"] for row in table] == ["Popularity", *(m.name for m in methods.TABLE3)]
    ours = study.scores(methods.OURS)
    last = table[-1]
    assert last["N@10"].strip("*").startswith(f"{ours.values['ndcg@10'].mean():.4f} ±")
    assert last["published N@10"] == "0.284"
    naive = study.scores(methods.NAIVE)
    want = ours.mean("ndcg@10") - naive.mean("ndcg@10")
    row = next(row for row in table if row["method"] == "Naive-UltraGCN")
    assert float(row["M3-InvRL minus it, N@10"]) == pytest.approx(want)
    low, high = (float(x) for x in row["95 % interval"].strip("[]").split(","))
    assert low <= want <= high
    text = path.read_text()
    assert "scaled by 0.5" in text
    assert "not comparable" in text
    assert "2 learning rates per method" in text


def test_finished_runs_are_skipped(study: Study) -> None:
    config = study.configs(methods.NAIVE)[1]
    assert study.run(config)["skipped"] == ["merge", "test"]
    assert config.merge.epochs == 1  # 2 epochs at half the budget


def test_tables_4_and_5_and_figures(study: Study) -> None:
    four = rows(studies.table4(study))
    assert [row["method"] for row in four] == ["M3-InvRL w/o L_com", "M3-InvRL w/o L_MI", "M3-InvRL"]
    five = {row["method"]: row for row in rows(studies.table5(study))}
    assert list(five) == ["E-weight", "L-weight", "A-weight", "M3-InvRL"]
    three = {row["method"]: row for row in rows(study.out / "table3")}
    assert five["M3-InvRL"]["R@10"].strip("*") == three["M3-InvRL"]["R@10"].strip("*")
    merges = list((study.out / "artifacts").glob("merge-*"))
    studies.figure3(study)
    assert (study.out / "figure3.png").stat().st_size > 5000
    assert len(merges) == len(list((study.out / "artifacts").glob("merge-*")))  # nothing was trained for it
    curves = {(row["metric"], row["method"]): row for row in rows(study.out / "figure3")}
    assert float(curves["Recall", "M3-InvRL"]["K=50"]) >= float(curves["Recall", "M3-InvRL"]["K=5"])
    studies.figure4(study, (2, 3))
    assert [row["environments"] for row in rows(study.out / "figure4")] == ["2", "3", "2", "3"]
    assert (study.out / "figure4.png").is_file()


def test_shift_by_popularity(study: Study) -> None:
    table = rows(studies.shifted(study, "popularity"))
    root = study.out / "data" / "popularity"
    source, made = study.dataset, Dataset(root)
    pairs = [made.interactions(split) for split in ("train", "val", "test")] + [shift.inside(root)]
    key = np.sort(np.concatenate([user.astype(np.int64) * made.n_items + item for user, item in pairs]))
    splits = [source.interactions(split) for split in ("train", "val", "test")]
    every = np.sort(np.concatenate([user.astype(np.int64) * source.n_items + item for user, item in splits]))
    assert (key == every).all()  # every interaction in one set
    popularity = np.bincount(every % source.n_items, minlength=source.n_items)
    assert popularity[made.interactions("test")[1]].mean() < 0.95 * popularity[pairs[3][1]].mean()
    row = next(row for row in table if row["method"] == "Naive-UltraGCN")
    means = []
    for config in study.configs(methods.NAIVE, data=str(root)):
        inside, shifted = against(made, study.scorer(config), *shift.inside(root)), study.users(config)
        both = np.intersect1d(inside["user"], shifted["user"])
        assert len(both) == int(row["users"]) < 90
        means.append([part["ndcg@10"][np.isin(part["user"], both)].mean() for part in (inside, shifted)])
    before, after = np.mean(means, axis=0)
    assert float(row["drop of N@10"]) == pytest.approx(1 - after / before)
    low, high = (float(x) for x in row["95 %"].strip("[]").split(","))
    assert low < 1 - after / before < high


def test_shift_in_time_pairs_users_by_their_original_ids(data: Path, study: Study, tmp_path: Path) -> None:
    source = Dataset(data)
    later = tmp_path / "later"
    reverse = np.arange(90)[::-1]  # other dense ids, the same users
    with Writer(later) as out:
        for name in source.modalities:
            out.features(name, source.features(name))
        pairs = {split: source.interactions(split) for split in ("train", "val", "test")}
        out.interactions(
            90, 80, {split: (reverse[user].astype(np.int32), item) for split, (user, item) in pairs.items()}
        )
        out.finish(user_ids=reverse)
    some = dataclasses.replace(study, only=("VBPR", "M3-InvRL"))
    table = rows(studies.shifted(some, "time", str(later)))
    assert [row["method"] for row in table] == ["VBPR", "M3-InvRL"]
    assert [row["users"] for row in table] == ["90", "90"]


def test_planted_flip_keeps_every_interaction(tmp_path: Path) -> None:
    config = Synthetic(users=40, items=60, interactions=20)
    root = shift.planted_flip(tmp_path / "flip", config)
    made, planted = Dataset(root), Dataset(tmp_path / "flip-planted")
    user, item = planted.interactions("val")
    held = np.concatenate([np.stack(made.interactions("val")), np.stack(shift.inside(root))], axis=1)
    assert {*zip(*held.tolist(), strict=True)} == {*zip(user.tolist(), item.tolist(), strict=True)}
    assert (np.bincount(shift.inside(root)[0], minlength=40) == 1).all()
    assert made.truth("modality0") is not None
    assert (made.interactions("test")[1] == planted.interactions("test")[1]).all()


def test_statistics_against_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, (3, 400)), rng.normal(0.0, 1, (2, 400))
    found = statistics.compare(a, b)
    d = a.mean(0) - b.mean(0)
    assert found.difference == pytest.approx(d.mean())
    assert found.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    half = 1.96 * d.std(ddof=1) / 20
    assert found.low == pytest.approx(d.mean() - half, abs=0.02)
    assert found.high == pytest.approx(d.mean() + half, abs=0.02)
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.compare(a, a).p == 1
    lost, low, high = statistics.drop(np.full((1, 50), 0.4), np.full((1, 50), 0.3))
    assert (lost, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_spread_is_over_seeds() -> None:
    table = [{"user": np.array([1, 0]), "m": np.array(x)} for x in ([0.0, 1.0], [0.5, 1.5])]
    row = Scores.of("a", "b", table, [])
    assert row.values["m"].tolist() == [[1.0, 0.0], [1.5, 0.5]]  # ordered by user
    assert row.mean("m") == 0.75
    assert row.spread("m") == pytest.approx(np.std([0.5, 1.0], ddof=1))


def test_published_figures_only_where_they_belong() -> None:
    assert methods.published_for("anything", 55485, 5986)[0] == "movielens"
    assert methods.published_for("ml1m", 6036, 3081)[0] == "movielens"
    assert methods.published_for("amazon-baby", 10, 10) == (None, "")
    for paper in methods.PUBLISHED.values():
        assert {m.name for m in (*methods.TABLE3, *methods.TABLE4)} <= set(paper)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["table3", "--data", "/nowhere"], "not a prepared data set"),
        (["table9", "--data", "/nowhere"], "table9"),
        (["table3", "--data", "/nowhere", "--method", "VBRP"], "no such row"),
        (["figure4", "--data", "/nowhere", "--environments", "a"], "--environments"),
    ],
)
def test_bad_input(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", *arguments, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
