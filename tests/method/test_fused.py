"""Members of stage 3 under a fusion: what is masked, which users a fusion learns of, and which judge it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import entr, softmax
from small_runs import small, trained

import m3dist
from m3dist import config as configs
from m3dist import pipeline
from m3dist.data.dataset import Dataset
from m3dist.evaluation.ranking import Mask, Seen, Users
from m3dist.method import fused
from m3dist.method.fused import Fused, Members, judge, learn
from m3dist.training.context import Context

STRATEGIES = ["entropy", "equal", "loss", "attention"]
M = 3


@pytest.fixture
def context(planted_root: Path, tmp_path: Path) -> Context:
    return Context(Dataset(planted_root), small(tmp_path, f"data={planted_root}"))


def members(context: Context, models: int = M) -> Members:
    """Members at random, the last of which knows half of what is held out."""
    dataset = context.dataset
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for m in range(models):
        tensors[f"{m}.user"] = torch.randn(dataset.n_users, 4 + 150, generator=generator)
        tensors[f"{m}.user"][:, 4:] = 0
        tensors[f"{m}.matrix"] = torch.cat([torch.randn(150, 4, generator=generator), torch.eye(150)], dim=1)
    user, item = (x[::2].copy() for x in dataset.interactions("val"))
    tensors[f"{models - 1}.user"][torch.from_numpy(user).long(), 4 + torch.from_numpy(item).long()] = 8.0
    return Members(tensors)


def relevant(context: Context, users: np.ndarray) -> Seen:
    user, item = context.dataset.interactions("val")
    mine = np.isin(user, users)
    return Seen.of((user[mine], item[mine]), context.dataset.n_users)


def metric(context: Context, score: Fused, users: np.ndarray) -> float:
    found, _ = context.evaluator.evaluate(score, "val", relevant=relevant(context, users))
    return found[context.config.evaluation.metric]


def test_halves_share_out_the_users_who_hold_something_out(context: Context) -> None:
    both = [half.user_h for half in fused.halves(context, members(context))]
    again = [half.user_h for half in fused.halves(context, members(context))]
    users = np.unique(context.dataset.interactions("val")[0])
    assert np.array_equal(np.sort(np.concatenate(both)), users)
    assert not np.intersect1d(*both).size
    assert [len(x) for x in both] == [150, 150]
    assert all(np.array_equal(a, b) for a, b in zip(both, again, strict=True))
    other = context.under(context.config.model_copy(update={"seed": 1}))
    assert not np.array_equal(fused.halves(other, members(context))[0].user_h, both[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_fusion_learns_of_one_half_and_is_judged_by_the_other(strategy: str, context: Context) -> None:
    """Rows of users of the one half do not matter to the other."""
    whole = members(context)
    learning, judging = (half.user_h for half in fused.halves(context, whole))
    learned = learn(context, whole, strategy)
    found = judge(context, whole, learned, strategy)
    assert set(found) == {strategy, "equal"}
    assert found[strategy] == metric(context, Fused.of(whole, strategy, learned), judging)
    assert found["equal"] == metric(context, Fused.of(whole, "equal", {}), judging)

    def without(users: np.ndarray) -> Members:
        here = members(context)
        for x in here.user:
            x[torch.from_numpy(users)] = 0.01
        return here

    same = learn(context, without(judging), strategy)
    assert same.keys() == learned.keys()
    assert all(torch.equal(same[name], learned[name]) for name in learned)
    assert judge(context, without(learning), learned, strategy) == found
    assert judge(context, without(judging), learned, strategy) != found
    if strategy in ("loss", "attention"):
        other = learn(context, without(learning), strategy)
        assert any(not torch.equal(other[name], learned[name]) for name in learned)


def test_who_knows_more_gets_more(context: Context) -> None:
    """The last member knows what is held out; every strategy but equal weights sees that, and ranks better for it."""
    whole = members(context)
    judging = fused.halves(context, whole)[1].user_h
    plain = metric(context, Fused.of(whole, "equal", {}), judging)
    for strategy in STRATEGIES:
        score = Fused.of(whole, strategy, learn(context, whole, strategy))
        found, table = context.evaluator.evaluate(score, "val", keep=True)
        weights = [found[f"fusion weight {m}"] for m in range(M)]
        assert sum(weights) == pytest.approx(1, abs=1e-5)
        each = np.stack([table[f"fusion weight {m}"] for m in range(M)])
        np.testing.assert_allclose(each.sum(0), 1, atol=1e-5)
        if strategy == "equal":
            assert weights == pytest.approx([1 / M] * M)
        else:
            assert weights[2] > 1.1 / M
            assert metric(context, score, judging) > plain


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_entropies_are_of_items_that_a_user_has_not_seen(temperature: float, context: Context) -> None:
    """Eq. 13-15 in float64: the softmax is over the catalogue without what training has."""
    whole, seen = members(context), context.evaluator.seen("val")
    learned = {"entropy_temperature": torch.tensor(temperature), "entropy_strength": torch.tensor(1.0)}
    users = Users.of(np.array([3, 7, 200]), "cpu")
    score = Fused.of(whole, "entropy", learned)
    fused_uI, weight_uM = score(users.there_u, Mask(seen, users, 150))
    assert weight_uM is not None
    train_user, train_item = context.dataset.interactions("train")
    for u, found, weight_M in zip(users.here, fused_uI.clone(), weight_uM, strict=True):
        each = [(user[u].double() @ item.T.double()).numpy() for user, item in zip(whole.user, whole.item, strict=True)]
        unseen = ~np.isin(np.arange(150), train_item[train_user == u])
        assert not unseen.all()
        entropies = np.array([entr(softmax(x[unseen] / temperature)).sum() for x in each])
        want = softmax(-entropies)
        np.testing.assert_allclose(weight_M, want, rtol=1e-4)
        total = sum(w * x for w, x in zip(want, each, strict=True))
        np.testing.assert_allclose(found[torch.from_numpy(unseen)], total[unseen], rtol=1e-4, atol=1e-4)
        everything = softmax(-np.array([entr(softmax(x / temperature)).sum() for x in each]))
        assert abs(everything - want).max() > 1e-3  # what the entropy of all items would give


def test_pairs_are_those_that_the_half_holds_out(context: Context) -> None:
    whole = members(context)
    half = fused.halves(context, whole)[0]
    at_n, positive_nM, negative_nM = half.pairs()
    user, item = context.dataset.interactions("val")
    mine = np.isin(user, half.user_h)
    assert np.array_equal(half.user_h[at_n], user[mine])
    for m in range(M):
        want = (whole.user[m][user[mine]] * whole.item[m][item[mine]]).sum(1)
        torch.testing.assert_close(positive_nM[:, m], want)
    assert negative_nM.shape == positive_nM.shape
    assert (positive_nM[:, 2] > 4).double().mean() == pytest.approx(0.5, abs=0.1)
    assert (negative_nM[:, 2] > 4).double().mean() < 0.1  # drawn from all items
    assert half.confidence().shape == (len(half.user_h), 3 * M)


def test_one_member_alone_needs_no_fusion(context: Context) -> None:
    alone = members(context, 1)
    assert learn(context, alone, "attention") == {}
    users = Users.of(np.arange(5), "cpu")
    found, weight = Fused.of(alone, "attention", {})(users.there_u, Mask([], users, 150))
    assert weight is None
    torch.testing.assert_close(found, alone.user[0][:5] @ alone.item[0].T)


PACKAGE = '''
import torch
from m3dist.method.fusions.base import Fusion

class Last(Fusion):
    """All weight on the member that ranks the half best."""

    def __init__(self, models, learned):
        super().__init__(models, learned)
        self.best = learned["best"]

    @classmethod
    def learn(cls, held):
        each = [{"best": torch.tensor(m)} for m in range(held.models)]
        return max(each, key=lambda learned: held.metric("last", learned))

    def weights(self, scores):
        return torch.eye(self.models)[self.best].expand(len(scores[0]), -1)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package, as pip leaves it, that offers a fusion named `last`."""
    root = tmp_path / "site"
    (root / "lasting").mkdir(parents=True)
    (root / "lasting" / "__init__.py").write_text(PACKAGE)
    (root / "lasting-1.0.dist-info").mkdir()
    (root / "lasting-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lasting\nVersion: 1.0\n")
    (root / "lasting-1.0.dist-info" / "entry_points.txt").write_text("[m3dist.fusions]\nlast = lasting:Last\n")
    monkeypatch.syspath_prepend(str(root))
    yield "last"
    sys.modules.pop("lasting", None)


def test_a_fusion_of_an_installed_package_is_found_by_its_name(package: str, tmp_path: Path) -> None:
    """It learns, ranks and is judged like the library's, and a run that is opened has it."""
    with pytest.raises(ValueError, match=r"no such fusion; .*did you mean last\?"):
        configs.load(None, ["merge.fusion=lsat"])
    assert "lasting" not in sys.modules  # a name alone imports nothing
    out = tmp_path / "run"
    result = trained(out, f"merge.fusion={package}")
    merge = result["stages"]["merge"]
    assert sorted(merge["fusion_weight"]) == [0, 0, 1]
    assert merge["fusion_weight_spread"] == [0, 0, 0]
    assert set(merge["judged"]) == {"last", "equal"}
    opened = m3dist.load(str(out))
    assert int(opened.tensors["best"]) == merge["fusion_weight"].index(1)
    assert opened.evaluate("test") == pytest.approx(result["test"])
    skipped = pipeline.run(small(out, "merge.fusion=equal"), quiet=True)["skipped"]
    assert "invariance" in skipped
    assert "merge" not in skipped
