"""Every fusion's weights by hand and against float64, and what each learns of users who hold items out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.special import entr, softmax
from torch import Tensor

from m3dist.method.fusions import FUSIONS
from m3dist.method.fusions.attention import Attention, confidence
from m3dist.method.fusions.base import Fusion, fuse
from m3dist.method.fusions.entropy import TEMPERATURES, Entropy, entropy
from m3dist.method.fusions.equal import Equal
from m3dist.method.fusions.loss import Loss

SEEN = -1e30


@dataclass
class Held:
    """A half that is made up: metrics by temperature, 0 being that of equal weights, and pairs' scores."""

    metrics: dict[float, float] = field(default_factory=dict)
    given: tuple[Tensor, Tensor, Tensor] | None = None
    confidence_hF: Tensor | None = None
    seed: int = 0
    models: int = 2

    def metric(self, strategy: str, learned: dict[str, Tensor]) -> float:
        assert strategy == "entropy"
        strength = float(learned["entropy_strength"])
        assert strength in (0, 1)
        return self.metrics.get(float(learned["entropy_temperature"]) if strength else 0.0, 0.1)

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.given is not None
        return self.given

    def confidence(self) -> Tensor:
        assert self.confidence_hF is not None
        return self.confidence_hF


def scores(members: int = 3, users: int = 4, items: int = 9) -> list[Tensor]:
    """Some users' scores, in which each has seen some items."""
    generator = torch.Generator().manual_seed(1)
    out = [torch.randn(users, items, generator=generator) * (m + 1) for m in range(members)]
    for score_uI in out:
        for u in range(users):
            score_uI[u, u : 2 * u] = SEEN
    return out


def test_the_entropy_is_that_of_a_softmax_over_unseen_items() -> None:
    assert float(entropy(torch.zeros(1, 8))) == pytest.approx(math.log(8), rel=1e-6)
    for score_uI in scores():
        for score_I, found in zip(score_uI.double().numpy(), entropy(score_uI), strict=True):
            p = softmax(score_I[score_I > SEEN])
            assert float(found) == pytest.approx(entr(p).sum(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_entropy_weights_are_eq_13_and_14(temperature: float) -> None:
    learned = {"entropy_temperature": torch.tensor(temperature), "entropy_strength": torch.tensor(1.0)}
    found = Entropy(3, learned).weights([x.clone() for x in scores()])
    for u in range(4):
        each = [x[u].double().numpy() / temperature for x in scores()]
        entropies = np.array([entr(softmax(x[x > SEEN / 2])).sum() for x in each])
        np.testing.assert_allclose(found[u], softmax(-entropies), rtol=1e-4)


def test_without_strength_weights_are_equal() -> None:
    learned = {"entropy_temperature": torch.tensor(0.25), "entropy_strength": torch.tensor(0.0)}
    assert torch.equal(Entropy(4, learned).weights(scores(4)), torch.full((4, 4), 0.25))


@pytest.mark.parametrize(
    ("metrics", "temperature", "strength"),
    [
        ({0.0: 0.3, 1.0: 0.2}, 1.0, 0.0),
        ({0.25: 0.4, 0.5: 0.3}, 0.25, 1.0),
        ({0.0: 0.3, 0.5: 0.3}, 1.0, 0.0),  # level: equal weights need nothing
    ],
)
def test_entropies_count_where_they_rank_better_than_equal_weights(
    metrics: dict[float, float], temperature: float, strength: float
) -> None:
    assert 0.25 in TEMPERATURES
    learned = Entropy.learn(Held(metrics))
    assert {name: float(x) for name, x in learned.items()} == {
        "entropy_temperature": temperature, "entropy_strength": strength,
    }  # fmt: skip


def test_equal_weights_read_no_scores() -> None:
    assert not Equal.reads_scores
    assert torch.equal(Equal(4, Equal.learn(Held())).weights(scores(4)), torch.full((4, 4), 0.25))


def test_loss_weights_are_the_shares_of_inverse_losses() -> None:
    """BPR's of what is held out and of an item drawn at random: ln 2 without any margin."""
    positive = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    negative = torch.tensor([[0.0, 1.0], [3.0, 1.0]])
    learned = Loss.learn(Held(given=(torch.tensor([0, 1]), positive, negative)))
    first = (math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 2
    want = np.array([1 / first, 1 / math.log(2)])
    found = Loss(2, learned).weights([torch.zeros(3, 5)] * 2)
    np.testing.assert_allclose(found, np.tile(want / want.sum(), (3, 1)), rtol=1e-6)
    assert not Loss.reads_scores


def test_confidence_is_of_items_that_are_not_seen() -> None:
    (score_uI,) = scores(1)
    for row, found in zip(score_uI.double().numpy(), confidence(score_uI), strict=True):
        unseen = row[row > SEEN]
        want = [entr(softmax(unseen)).sum(), unseen.max(), unseen.mean()]
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_attention_learns_whom_to_follow() -> None:
    """Of users whose confidence says which member ranks them well; and it starts, for all, at equal weights."""
    generator = torch.Generator().manual_seed(0)
    h = 200
    good_h = torch.randint(2, (h,), generator=generator)
    confidence_hF = torch.randn(h, 6, generator=generator)
    confidence_hF[:, 1] = 5 + good_h + 0.1 * confidence_hF[:, 1]  # the first member's maximum
    at_n = torch.arange(h).repeat(3)
    margin_nM = torch.where(torch.stack([good_h == 1, good_h == 0], 1)[at_n], 3.0, -3.0)
    held = Held(given=(at_n, margin_nM, torch.zeros_like(margin_nM)), confidence_hF=confidence_hF)
    learned = Attention.learn(held)
    gate = Attention(2, learned).gate
    weight_hM = gate(confidence_hF).detach()
    torch.testing.assert_close(weight_hM.sum(1), torch.ones(h))
    mean = [float(weight_hM[good_h == good, 0].mean()) for good in (1, 0)]
    assert mean[0] > mean[1] + 0.1
    again = Attention.learn(held)
    assert all(torch.equal(learned[name], again[name]) for name in learned)
    flat = Attention.learn(Held(given=(at_n, 0 * margin_nM, 0 * margin_nM), confidence_hF=confidence_hF))
    torch.testing.assert_close(Attention(2, flat).gate(confidence_hF).detach(), torch.full((h, 2), 0.5))
    # weights of scores are the gate's of their confidence
    some = scores(2)
    want = gate(torch.cat([confidence(x) for x in some], dim=1)).detach()
    torch.testing.assert_close(Attention(2, learned).weights(some), want)


@pytest.mark.parametrize("name", ["entropy", "equal", "loss", "attention"])
def test_all_are_found_by_name(name: str) -> None:
    assert issubclass(FUSIONS[name], Fusion)
    assert FUSIONS[name].__name__.lower() == name


def test_scores_add_up_by_weight() -> None:
    """Eq. 15."""
    some, weight_uM = scores(), torch.rand(4, 3)
    want = sum(weight_uM[:, m : m + 1] * x for m, x in enumerate(some))
    torch.testing.assert_close(fuse(weight_uM, [x.clone() for x in some]), want)
    (one,) = scores(1)
    assert torch.equal(fuse(torch.ones(4, 1), [one.clone()]), one)
