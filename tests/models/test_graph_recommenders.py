"""Propagation on a graph of 9 nodes, worked out with dense float64 matrices and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recommender_helpers import (
    PAIRS,
    adjacency,
    batch_of,
    leaky,
    linear,
    made,
    randomise,
    scores,
    softmax,
    tiny,
    unit,
)

from m3dist.models.base import Recommender
from m3dist.models.disengcn import DisenGCN
from m3dist.models.grcn import GRCN
from m3dist.models.huign import HUIGN
from m3dist.models.lightgcn import LightGCN
from m3dist.models.macridvae import MacridVAE
from m3dist.models.mmgcn import MMGCN
from m3dist.models.ngcf import NGCF

U = 4


def close(model: Recommender, node: np.ndarray) -> None:
    np.testing.assert_allclose(scores(model), node[:U] @ node[U:].T, rtol=2e-5, atol=2e-6)


def features() -> list[np.ndarray]:
    return [x.double().numpy() for x in tiny().features]


@pytest.mark.parametrize("content", [True, False])
def test_ngcf(content: bool) -> None:
    model = made(NGCF, tiny(), dim=3, l2=0.1, layers=2, content=content)
    p = randomise(model)
    item = p["item"] + (linear(p, "project", np.concatenate(features(), 1)) if content else 0)
    e = np.concatenate([p["user"], item])
    A = adjacency()
    d = A.sum(1)
    L = A / np.sqrt(np.outer(d, d))
    kept = [e]
    for layer in range(2):
        first, second = linear(p, f"first.{layer}", L @ e + e), linear(p, f"second.{layer}", (L @ e) * e)
        e = leaky(first + second, 0.2)
        kept.append(unit(e))
    close(model, np.concatenate(kept, axis=1))


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_lightgcn(content: bool, tau: float) -> None:
    """Vectors, and where there is a temperature the loss, of shared negatives and of own ones."""
    model = made(LightGCN, tiny(), dim=3, l2=0.0, layers=2, content=content, tau=tau)
    p = randomise(model)
    item = p["item"] + (linear(p, "project", np.concatenate(features(), 1)) if content else 0)
    A = adjacency()
    L = A / np.sqrt(np.outer(A.sum(1), A.sum(1)))
    e = np.concatenate([p["user"], item])
    node = (e + L @ e + L @ L @ e) / 3
    node = unit(node) if tau else node
    close(model, node)
    for own in (False, True):
        batch = batch_of([0, 2], [1, 0], [[3, 4], [2, 3]] if own else [3, 4, 2])
        want = 0.0
        for row, (u, i) in enumerate([(0, 1), (2, 0)]):
            negatives = [[3, 4], [2, 3]][row] if own else [3, 4, 2]
            s = node[u] @ node[U:][[i, *negatives]].T
            if tau:
                want -= np.log(softmax(s / tau)[0]) / 2
            else:
                want += np.log1p(np.exp(s[1:] - s[0])).mean() / 2
        assert float(model.loss(batch)["loss"].detach()) == pytest.approx(want, rel=1e-5)


def test_disengcn() -> None:
    K, tau = 2, 0.7
    model = made(DisenGCN, tiny(), dim=4, l2=0.1, channels=K, layers=2, routing=3, tau=tau)
    p = randomise(model)
    x = np.concatenate([p["user"], p["item"] + linear(p, "project", np.concatenate(features(), 1))])
    A = adjacency()
    for layer in range(2):
        z = unit(leaky(linear(p, f"into.{layer}", x)).reshape(9, K, 2))
        c = z.copy()
        for _ in range(3):
            new = z.copy()
            for i in range(9):
                for j in np.flatnonzero(A[i]):
                    share = softmax((z[j] * c[i]).sum(1) / tau)
                    new[i] += share[:, None] * z[j]
            c = unit(new)
        x = c.reshape(9, 4)
    close(model, linear(p, "out", x))


def test_mmgcn() -> None:
    model = made(MMGCN, tiny(), dim=3, l2=0.1, layers=2)
    p = randomise(model)
    A = adjacency()
    mean = A / A.sum(1, keepdims=True)
    ids = np.concatenate([p["user"], p["item"]])
    total = 0
    for m, f in enumerate(features()):
        x = unit(np.concatenate([p[f"preference.{m}"], linear(p, f"projects.{m}", f)]))
        for at in (2 * m, 2 * m + 1):
            h = leaky(mean @ linear(p, f"layers.{at}.near", x))
            own = leaky(linear(p, f"layers.{at}.own", x)) + ids
            x = leaky(linear(p, f"layers.{at}.merge", h) + own)
        total = total + x / 2
    close(model, total)


def test_grcn() -> None:
    model = made(GRCN, tiny(), dim=3, l2=0.1, routing=2, layers=2)
    p = randomise(model)
    A = adjacency()
    contents, weights = [], []
    for m, f in enumerate(features()):
        f = unit(leaky(linear(p, f"projects.{m}", f)))
        proto = unit(p[f"prototype.{m}"])
        for _ in range(2):
            new = proto.copy()
            for u in range(U):
                mine = [i for v, i in PAIRS if v == u]
                new[u] += softmax(f[mine] @ proto[u]) @ f[mine]
            proto = unit(new)
        x = np.concatenate([proto, f])
        a = softmax(np.where(A > 0, x @ x.T, -np.inf))
        contents.append(x + a @ x)
        weights.append(a * p["confidence"][:, m])  # of the edge's source
    w = np.where(A > 0, np.maximum(np.max(weights, axis=0), 0), 0)
    assert (w[A > 0] == 0).any()  # something is pruned
    e = unit(np.concatenate([p["user"], p["item"]]))
    close(model, np.concatenate([e + w @ e + w @ w @ e, *contents], axis=1))


def test_huign() -> None:
    model = made(HUIGN, tiny(), dim=3, l2=0.0, levels=(3, 2), neighbours=4, weight=0.5)
    p = randomise(model)
    B = adjacency()[:U, U:]
    near = ((B.T @ B) > 0).astype(float)  # every co-occurring item, and each item itself
    near = near / near.sum(1, keepdims=True)
    intents, penalty = 0, 0
    for m, f in enumerate(features()):
        C1, C2 = p[f"intents.{m}.centre.0"], p[f"intents.{m}.centre.1"]
        x = leaky(linear(p, f"intents.{m}.convolve.0", near @ linear(p, f"intents.{m}.project", f)))
        S1 = softmax(x @ C1)
        A1 = S1.T @ near @ S1
        A1 = A1 / A1.sum(1, keepdims=True)
        S2 = softmax(leaky(linear(p, f"intents.{m}.convolve.1", A1 @ C1.T)) @ C2)
        intents = intents + np.concatenate([S1, S1 @ S2], axis=1) / 2
        for S, C in ((S1, C1), (S2, C2)):
            k = C.shape[1]
            penalty += -(S * np.log(S)).sum(1).mean() / 2 + np.linalg.norm(C.T @ C - np.eye(k)) / k**2 / 2
    want = p["user"] @ p["item"].T + p["preference"] @ intents.T
    np.testing.assert_allclose(scores(model), want, rtol=2e-5, atol=2e-6)
    terms = model(batch_of([0, 1], [1, 2], [3, 4]))
    assert float(terms["intents"]) == pytest.approx(0.5 * penalty, rel=1e-5)


def test_macridvae_scores_and_loss() -> None:
    K, tau = 2, 0.5
    model = made(
        MacridVAE, tiny(), dim=3, l2=0.0, concepts=K, hidden=4, tau=tau, std=0.0, dropout=0.0, beta=0.3, block=3
    )
    p = randomise(model)
    B = adjacency()[:U, U:]
    h = unit(p["item"])
    c = softmax(h @ unit(p["prototype"]).T / tau)
    x = B / np.sqrt(B.sum(1, keepdims=True))
    mix, kl = 0, np.zeros(U)
    for k in range(K):
        out = linear(p, "out", np.tanh((x * c[:, k]) @ p["table"] + p["bias"]))
        mu, lnvar = unit(out[:, :3]), -out[:, 3:]
        mix = mix + c[:, k] * np.exp(mu @ h.T / tau)
        kl += 0.5 * (np.exp(lnvar) - lnvar - 1).sum(1)
    np.testing.assert_allclose(scores(model), np.log(mix), rtol=2e-5, atol=2e-6)
    log_p = np.log(mix / mix.sum(1, keepdims=True))
    terms = model(batch_of([0, 2], [0, 0], [3, 4]))
    assert float(terms["reconstruction"]) == pytest.approx(-(B * log_p).sum(1)[[0, 2]].mean(), rel=1e-5)
    assert float(terms["kl"]) == pytest.approx(0.3 * kl[[0, 2]].mean(), rel=1e-5)


def test_macridvae_noise_and_dropout_matter_in_training_only() -> None:
    model = made(MacridVAE, tiny(), dim=3, l2=0.0, concepts=2, hidden=4, std=1.0, dropout=0.5)
    randomise(model)
    batch = batch_of([0, 2], [0, 0], [3, 4])
    once, again = (float(model(batch)["loss"].detach()) for _ in range(2))
    assert once == again  # keyed by the step
    model.std = 0.0
    assert float(model(batch)["loss"].detach()) != once
    assert torch.equal(scores(model), scores(model))
