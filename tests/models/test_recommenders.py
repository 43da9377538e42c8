"""Every recommender: scores worked out independently in float64, shares that add up, and more than popularity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recommender_helpers import batch_of, linear, made, randomise, scores, tiny, trained

from m3dist import config as configs
from m3dist import pipeline
from m3dist.config import validate
from m3dist.evaluation.ranking import Mask, Users
from m3dist.method.registry import RECOMMENDERS, recommender_class
from m3dist.models.base import Given, Recommender
from m3dist.models.cb2cf import CB2CF
from m3dist.models.duif import DUIF
from m3dist.models.vbpr import VBPR

NAMES = [*RECOMMENDERS]
EPOCHS = {"vbpr": 6, "duif": 10, "cb2cf": 10, "macridvae": 20}  # others: 8
OPTIONS: dict[str, dict] = {
    "disengcn": {"channels": 2},
    "huign": {"levels": (3, 2), "neighbours": 3},
    "macridvae": {"concepts": 2, "hidden": 32},
}


def content(given: Given) -> np.ndarray:
    return torch.cat(given.features, dim=1).double().numpy()


def close(model: Recommender, want: np.ndarray) -> None:
    np.testing.assert_allclose(scores(model), want, rtol=2e-5, atol=2e-6)


def test_duif_scores() -> None:
    given = tiny()
    model = made(DUIF, given, dim=2, l2=0.1, hidden=3)
    p = randomise(model)
    item = linear(p, "second", np.maximum(linear(p, "first", content(given)), 0))
    close(model, p["user"] @ item.T)


@pytest.mark.parametrize("warm", [False, True])
def test_cb2cf_scores_and_regression(warm: bool) -> None:
    given = tiny()
    given = Given(4, 6, [torch.cat([x, x[:1] * 2]) for x in given.features], given.user, given.item)  # item 5 is cold
    model = made(CB2CF, given, dim=2, l2=0.1, hidden=3, warm=warm)
    p = randomise(model)
    f = linear(p, "second", np.maximum(linear(p, "first", content(given)), 0))
    served = np.concatenate([p["item"][:5], f[5:]]) if warm else f
    close(model, p["user"] @ served.T)
    terms = model(batch_of([0, 1, 3], [1, 2, 4], [3, 4]))
    assert float(terms["regression"]) == pytest.approx(((p["item"] - f)[[1, 2, 4]] ** 2).sum() / 3, rel=1e-5)
    terms["regression"].backward()
    assert model.item.grad is None  # collaborative vectors do not move towards the content


def test_vbpr_scores() -> None:
    given = tiny()
    model = made(VBPR, given, dim=2, l2=0.1)
    p = randomise(model)
    f = content(given)
    gamma, theta = p["user"][:, :2], p["user"][:, 2:]
    E, beta = p["project.weight"][1:], p["project.weight"][0]
    want = gamma @ p["item"].T + theta @ (E @ f.T) + p["bias"] + beta @ f.T
    close(model, want)


@pytest.mark.parametrize("negatives", [[3, 4], [[3, 4, 0], [0, 3, 3], [1, 4, 2]]])
def test_bpr_and_l2_by_hand(negatives: list) -> None:
    model = made(VBPR, tiny(()), dim=2, l2=0.1)
    p = randomise(model)
    batch = batch_of([0, 1, 3], [1, 2, 4], negatives)
    terms = model(batch)
    s = p["user"] @ p["item"].T + p["bias"]
    loss, l2 = 0.0, 0.0
    for at, (u, i) in enumerate([(0, 1), (1, 2), (3, 4)]):
        own = negatives[at] if isinstance(negatives[0], list) else negatives
        loss += np.mean([np.log1p(np.exp(s[u, j] - s[u, i])) for j in own]) / 3
        l2 += 0.1 * ((p["user"][u] ** 2).sum() + (p["item"][i] ** 2).sum()) / 3
        l2 += 0.1 * np.mean([(p["item"][j] ** 2).sum() for j in own]) / 3
    assert float(terms["bpr"]) == pytest.approx(loss, rel=1e-5)
    assert float(terms["l2"]) == pytest.approx(l2, rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(loss + l2, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("negatives", [[3, 4], [[3, 4], [0, 3], [1, 4]]])
def test_shares_of_a_batch_add_up(name: str, negatives: list) -> None:
    kind = recommender_class(name)
    model = made(kind, tiny(), dim=4, l2=0.1, **OPTIONS.get(name, {}))
    randomise(model)
    users, items = [0, 1, 3], [1, 2, 4]
    if kind.batches == "users" and isinstance(negatives[0], list):
        pytest.skip("samples users, without negatives")
    whole = model(batch_of(users, items, negatives))
    parts = [model(batch_of(users, items, negatives, cut)) for cut in ((0, 1), (1, 3))]
    for term, value in whole.items():
        assert float(sum(part[term] for part in parts)) == pytest.approx(float(value), rel=1e-4, abs=1e-6), term


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str) -> None:
    """DDP waits for the gradient of every parameter. One that is 0 in exact arithmetic is rounding noise here."""
    model = made(recommender_class(name), tiny(), dim=4, l2=0.1, **OPTIONS.get(name, {}))
    randomise(model)
    model(batch_of([0, 1, 3], [1, 2, 4], [3, 4]))["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    most = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for parameter, p in model.named_parameters():
        assert p.grad is not None
        assert float(p.grad.abs().max()) > 1e-4 * most, parameter


@pytest.mark.parametrize("name", NAMES)
def test_learns_planted_data_better_than_popularity(name: str, planted_root: Path) -> None:
    size = 50 if recommender_class(name).batches == "users" else 512
    ours, popular = trained(planted_root, name, EPOCHS.get(name, 8), options=OPTIONS.get(name, {}), batch_size=size)
    assert ours["ndcg@10"] > 1.25 * popular["ndcg@10"]


def test_train_evaluate_recommend(planted_root: Path, tmp_path: Path) -> None:
    import m3dist

    config = validate({"model": "vbpr", "data": str(planted_root), "out": str(tmp_path), "baseline": {"epochs": 2}})
    result = pipeline.run(config, quiet=True)
    opened = m3dist.load(str(tmp_path))
    assert opened.evaluate("test") == pytest.approx(result["test"])
    top = opened.recommend([5], 3).to_pylist()
    assert [row["rank"] for row in top] == [1, 2, 3]
    assert [row["weight_model"] for row in top] == [1.0] * 3
    users = Users.of(np.array([5]), "cpu")
    s = opened.score(users.there_u, Mask([], users, opened.dataset.n_items))[0][0]
    for split in ("train", "val", "test"):
        user, item = opened.dataset.interactions(split)
        s[item[user == 5].astype(int)] = float("-inf")
    assert [row["item"] for row in top] == torch.topk(s, 3).indices.tolist()
    again = pipeline.run(config, quiet=True)
    assert again["test"] == result["test"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["model=vbrp"], "did you mean vbpr"),
    ],
)
def test_bad_values(values: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        configs.load(None, values)


def test_unknown_option_names_the_key(planted_root: Path, tmp_path: Path) -> None:
    config = configs.load(None, ["model=vbpr", f"data={planted_root}", f"out={tmp_path}", "baseline.options.depth=2"])
    with pytest.raises(ValueError, match=r"baseline.options.depth: vbpr has no such option"):
        pipeline.run(config, quiet=True)
