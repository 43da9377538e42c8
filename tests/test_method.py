"""The method against hand values and float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from m3dist import losses
from m3dist.data.graphs import item_neighbours
from m3dist.data.sampling import Distinct, Permutation, Sampler, share
from m3dist.distributed.engine import Engine
from m3dist.distributed.tables import RowTable, Touched, pull_rows, push_rows
from m3dist.evaluation import ranking
from m3dist.method import fusion
from m3dist.models import ultragcn


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 4097])
def test_permutation_is_a_bijection(n: int) -> None:
    assert sorted(Permutation(n, 3)(np.arange(n))) == list(range(n))


def test_permutations_of_two_seeds_differ() -> None:
    assert (Permutation(1000, 0)(np.arange(1000)) != Permutation(1000, 1)(np.arange(1000))).mean() > 0.9


@pytest.mark.parametrize("per_positive", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_workers_shares_make_the_global_batch(world: int, per_positive: bool) -> None:
    user, item = torch.arange(103), torch.arange(103) % 17
    sampler = Sampler(user, item, 17, batch_size=25, negatives=6, per_positive=per_positive, seed=0, purpose="t")
    for step in range(sampler.steps):
        whole = sampler(2, step)
        parts = [sampler(2, step, rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([p.user_b for p in parts]), whole.user_b)
        negative = torch.cat([p.negative for p in parts]) if per_positive else parts[1].negative
        assert torch.equal(negative, whole.negative)


@pytest.mark.parametrize("world", [1, 2, 3, 25])
def test_groups_share_negatives_of_their_own(world: int) -> None:
    """Whoever has an interaction has its group's negatives, one of each stretch of ids."""
    user, item = torch.arange(103), torch.arange(103) % 18
    sampler = Sampler(user, item, 18, batch_size=25, negatives=6, per_positive=False, seed=0, purpose="t", groups=4)
    for step in range(sampler.steps):
        whole = sampler(2, step)
        negative_GN = whole.negative_B.view(4, 6)
        assert torch.equal(negative_GN // 3, torch.arange(6).expand(4, 6))
        assert len({tuple(row) for row in negative_GN.tolist()}) == 4
        of_group = [g for g in range(4) for _ in range(*share(whole.size, g, 4))]
        for rank in range(world):
            part = sampler(2, step, rank, world)
            assert sum(part.parts) == len(part.user_b)
            assert torch.equal(part.negative_B, whole.negative_B)
            mine = part.negative.view(len(part.parts), 6).repeat_interleave(torch.tensor(part.parts), dim=0)
            assert torch.equal(mine, negative_GN[of_group[slice(*part.bounds)]])


def test_an_epoch_visits_every_interaction_once() -> None:
    sampler = Sampler(
        torch.arange(103), torch.zeros(103), 5, batch_size=25, negatives=2, per_positive=False, seed=0, purpose="t"
    )
    seen = torch.cat([sampler(0, s).index_b for s in range(sampler.steps)])
    assert sorted(seen.tolist()) == list(range(103))


@pytest.mark.parametrize("n", [10, 10_000])
def test_distinct(n: int) -> None:
    a, b = torch.tensor([[3, 1], [3, 9]]), torch.tensor([9, 0])
    ids, (at_a, at_b) = Distinct(n)(a, b)
    assert ids.tolist() == [0, 1, 3, 9]
    assert torch.equal(ids[at_a], a)
    assert torch.equal(ids[at_b], b)


@pytest.mark.parametrize("parts", [(4,), (700,), (3, 0, 9)])
def test_ultragcn_value_and_gradients(parts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd on a dense computation; 700 rows are more than one block, and rows repeat."""
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, torch.nan))  # nothing is left unwritten
    d, N, s, R = 3, 5, 2, 9
    b, J = sum(parts), N * len(parts)
    group = torch.arange(len(parts)).repeat_interleave(torch.tensor(parts))
    user, item = randn(R, d).requires_grad_(), randn(R, d, seed=1).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    user_at, item_at, negative_at = (torch.randint(R, (n,), generator=generator) for n in (b, b, J))
    near_at = torch.randint(R, (b, s), generator=generator)
    weight, scale, weight_J, omega = (randn(*n, seed=3).abs() for n in ((b,), (b,), (J,), (b, s)))
    l2 = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    u, v, near = user[user_at], item[item_at], item[near_at]
    far, far_weight = item[negative_at].view(-1, N, d)[group], weight_J.view(-1, N)[group]
    soft = torch.nn.functional.softplus
    squares = u.square().sum(0) / (2 * b) + v.square().sum(0) / (2 * b) + far.square().mean((0, 1)) / 2
    want = {
        "positive": (weight * soft(-(u * v).sum(1))).sum() / (2 * b),
        "negative": 4 * ((0.7 + scale[:, None] * far_weight) * soft((u[:, None] * far).sum(2))).sum() / (2 * b * N),
        "neighbours": 0.6 * (omega * soft(-(u[:, None] * near).sum(2))).sum() / (2 * b),
        "l2": (l2 * squares).sum(),
    }
    at = losses.Sampled(
        user_at, item_at, negative_at, weight, 0.7, scale, weight_J, near_at, omega, 0.6, 4.0, l2, 2 * b, parts
    )
    got, *gradients = losses.ultragcn(user.detach(), item.detach(), at)
    assert {name: float(x) for name, x in got.items()} == pytest.approx({k: float(x.detach()) for k, x in want.items()})
    for mine, theirs in zip(gradients, torch.autograd.grad(sum(want.values()), [user, item]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("all_scores", [True, False])
def test_own_negatives_value_and_gradients(all_scores: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether all items are scored and the negatives picked, or the negatives' rows are: the same as a loop."""
    monkeypatch.setattr(ultragcn, "_SPARSE", 99 if all_scores else 0)
    weights = ultragcn.Weights(torch.tensor([3, 1, 2]), torch.tensor([2, 1, 3, 0]), (1.0, 0.7, 0.9, 1.1), 0.5)
    user_id, item_id = torch.tensor([0, 2]), torch.tensor([1, 3])
    negative = torch.tensor([[0, 1, 1], [2, 0, 3]])  # one of them twice
    user, item = randn(2, 5).requires_grad_(), randn(4, 5, seed=1).requires_grad_()
    got = ultragcn.interaction_loss(
        user, item, item_id, negative, weights, user_id, item_id, negative, size=7, negative_weight=10.0
    )
    c_I, a_U = weights.c_I.double(), weights.a_U.double()
    want = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
    for b, (u, i) in enumerate(zip(user_id.tolist(), item_id.tolist(), strict=True)):
        want[0] -= (1.0 + 0.5 * 0.7 * a_U[u] * c_I[i]) * (user[b] @ item[i]).sigmoid().log() / 7
        for j in negative[b].tolist():
            weight = 0.9 + 0.5 * 1.1 * a_U[u] * c_I[j]
            want[1] -= 10 * weight * (1 - (user[b] @ item[j]).sigmoid()).log() / (7 * 3)
    for ours, value in zip(got, want, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(sum(got), [user, item]), torch.autograd.grad(sum(want), [user, item]), rtol=1e-6, atol=1e-7
    )


def test_contrastive_is_eq_2_to_4() -> None:
    z, common, tau = randn(5, 3), randn(5, 3, seed=1), torch.tensor(0.5, dtype=torch.float64)

    def s(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.exp(float(a @ b / a.norm() / b.norm()) / 0.5)

    total = 0.0
    for i in range(5):
        omega = sum(s(z[i], common[j]) + s(z[i], z[j]) + s(common[i], common[j]) for j in range(5) if j != i)
        total -= math.log(s(z[i], common[i]) / omega)
    assert float(losses.contrastive(z, common, z, common, tau, 0)) == pytest.approx(total, rel=1e-12)
    halves = [losses.contrastive(z[a:b], common[a:b], z, common, tau, a) for a, b in ((0, 2), (2, 5))]
    assert float(sum(halves)) == pytest.approx(total, rel=1e-12)


def test_club_is_the_mean_over_pairs() -> None:
    v, mean, logvar = randn(6, 2), randn(6, 2, seed=1), randn(6, 2, seed=2)

    def log_q(i: int, j: int) -> float:
        return float(-0.5 * ((v[j] - mean[i]) ** 2 * torch.exp(-logvar[i]) + logvar[i]).sum())

    want = sum(log_q(i, i) - sum(log_q(i, j) for j in range(6)) / 6 for i in range(6))
    assert float(losses.club(v, mean, logvar, v)) == pytest.approx(want, rel=1e-10)


def test_club_bounds_the_information_of_gaussians_from_above() -> None:
    rho, n = 0.7, 200_000
    z = randn(n, 1)
    v = rho * z + math.sqrt(1 - rho**2) * randn(n, 1, seed=1)
    logvar = torch.full_like(z, math.log(1 - rho**2))
    bound = float(losses.club(v, rho * z, logvar, v)) / n
    truth = -0.5 * math.log(1 - rho**2)
    assert truth < bound < 3.5 * truth


def moments(content: list[torch.Tensor], pull: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradient = torch.stack([u.T @ g for u, g in zip(content, pull, strict=True)])
    second = torch.stack([u.square().sum(1) @ g.square() for u, g in zip(content, pull, strict=True)])
    return gradient, second, torch.tensor([len(u) for u in content], dtype=torch.float64)


def test_environment_variance_is_the_deviation_less_the_sampling_noise() -> None:
    content, pull = [randn(5, 2), randn(7, 2, seed=1)], [randn(5, 3, seed=2), randn(7, 3, seed=3) + 4]
    means, noise = [], torch.zeros(3, dtype=torch.float64)
    for u, g in zip(content, pull, strict=True):
        samples = torch.stack([torch.outer(u[b], g[b]) for b in range(len(u))])
        means.append(samples.mean(0))
        noise += samples.var(0).sum(0) / len(u)
    middle = sum(means) / 2
    want = sum((m - middle).square().sum(0) for m in means) - noise / 2
    torch.testing.assert_close(losses.environment_variance(*moments(content, pull)), want.clamp(min=0))


def test_environment_variance_finds_the_dimension_that_differs() -> None:
    content = [randn(4000, 2, seed=s) + 1 for s in range(2)]
    pull = [randn(4000, 2, seed=s) for s in (5, 6)]
    pull[1][:, 1] += 1
    variance = losses.environment_variance(*moments(content, pull))
    assert variance[1] > 50 * variance[0]


@pytest.mark.parametrize("b", [3, 600])
def test_projection_fit_against_autograd(b: int) -> None:
    """Value, gradients and second moments; 600 rows are more than one block."""
    d, c, D, N = 3, 2, 4, 5
    user, own, x = randn(b, d + c) * 3, randn(b, d, seed=1), randn(b, D, seed=2)
    negative, x_N = randn(N, d, seed=3), randn(N, D, seed=4)
    weight, scale, weight_N = (randn(n, seed=5 + n).abs() for n in (b, b, N))
    W, bias = randn(c, D, seed=8).requires_grad_(), randn(c, seed=9).requires_grad_()

    def rows_loss(i: int) -> torch.Tensor:
        score = user[i, :d] @ own[i] + user[i, d:] @ (W @ x[i] + bias)
        others = negative @ user[i, :d] + (x_N @ W.T + bias) @ user[i, d:]
        negatives = ((0.7 + scale[i] * weight_N) * torch.nn.functional.softplus(others)).sum()
        return negatives + weight[i] * torch.nn.functional.softplus(-score)

    cut = b // 3  # two groups under one model, and under a model each
    rows, groups = [cut, b - cut], [slice(0, cut), slice(cut, b)]
    score, own_score = user[:, :d] @ negative.T, (user[:, :d] * own).sum(1)
    args = (own_score, user[:, d:].contiguous(), x, weight, x_N, 0.7, scale, weight_N)
    first_W, first_bias = W.detach()[None], bias.detach()[None]
    one = losses.projection_fits(score.clone(), *args, rows, first_W, first_bias, True)
    both_W, both_bias = torch.cat([2 * first_W, first_W]), first_bias.expand(2, -1)
    two = losses.projection_fits(score, *args, rows, both_W, both_bias, True)
    wants = [rows_loss(i) for i in range(b)]
    for g, fits in ((0, one), (1, one), (1, two)):
        mine = wants[groups[g]]
        assert fits.rows[g] == len(mine)
        assert float(fits.loss_G[g]) == pytest.approx(float(sum(mine).detach()), rel=1e-9)
        gradients = torch.autograd.grad(sum(mine), [W, bias], retain_graph=True)
        for got, want in zip((fits.gradient_GcD[g], fits.bias_Gc[g]), gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        second = sum(torch.autograd.grad(part, W, retain_graph=True)[0].square().sum(0) for part in mine)
        torch.testing.assert_close(fits.second_GD[g], second, rtol=1e-9, atol=1e-9)
    assert float((two.gradient_GcD[0] - one.gradient_GcD[0]).abs().max()) > 1e-3


def test_projection_fit_of_no_rows_is_zero() -> None:
    args = (torch.zeros(2), torch.ones(2, 1), torch.ones(2, 1), torch.ones(2), torch.ones(1, 1), 1.0, torch.ones(2))
    W, bias = torch.full((3, 1, 1), torch.nan), torch.full((3, 1), torch.nan)
    W[1], bias[1] = 1, 1
    fits = losses.projection_fits(torch.zeros(2, 1), *args, torch.ones(1), [0, 2, 0], W, bias, True)
    for part in (fits.loss_G, fits.gradient_GcD, fits.bias_Gc, fits.second_GD):
        assert part is not None
        assert part[[0, 2]].count_nonzero() == 0
        assert part[1].isfinite().all()


def test_projection_fit_of_extreme_scores_is_finite() -> None:
    user = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]])
    one, two = torch.ones(2, 1), torch.ones(2)
    score = user[:, :1] @ torch.ones(1, 1)
    args = (user[:, 0], user[:, 1:].contiguous(), one, two, torch.ones(1, 1), 1.0, two, torch.ones(1))
    fits = losses.projection_fits(score, *args, [2], torch.ones(1, 1, 1), torch.zeros(1, 1), True)
    assert float(fits.loss_G) == pytest.approx(2 * 1000 + 1000, rel=1e-6)
    assert all(part is not None and part.isfinite().all() for part in fits[1:])


def test_known_gradients_reach_their_inputs() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    (2 * losses.known(torch.tensor(5.0), [a, b], [torch.arange(2.0), torch.arange(3.0)])).backward()
    assert a.grad.tolist() == [0, 2]
    assert b.grad.tolist() == [0, 2, 4]


def test_entropy_weights_are_eq_13_and_14() -> None:
    assert float(fusion.entropy(torch.zeros(1, 8))) == pytest.approx(math.log(8), rel=1e-6)
    weights = fusion.entropy_weights(torch.tensor([[1.0, 2.0, 3.0]]))
    shifted = torch.exp(3.0 - torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(weights[0], shifted / shifted.sum())
    assert float(weights.sum()) == pytest.approx(1.0)


def test_fuse_of_one_model_is_its_score() -> None:
    score = torch.arange(6.0).view(2, 3)
    torch.testing.assert_close(fusion.fuse(fusion.entropy_weights(torch.ones(2, 1)), [score.clone()]), score)


@pytest.mark.parametrize(("items", "k"), [(5, 10), (40, 3), (1003, 10), (1003, 40)])
def test_top_k_with_ties_by_id(items: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(-3, 3, (50, items), generator=generator).float()
    score[:, ::7] = float("-inf")
    item, value = ranking.top_k(score, k)
    for row in range(50):
        want = sorted(range(items), key=lambda i: (-float(score[row, i]), i))[:k]
        assert item[row].tolist() == want
        assert value[row].tolist() == [float(score[row, i]) for i in want]


def test_metrics_by_hand() -> None:
    hit = torch.tensor([[True, False, True, False]])
    got = {k: float(v) for k, v in ranking.per_user(hit, torch.tensor([3]), (2, 4)).items()}
    third = 1 / math.log2(4)
    assert got["precision@4"] == pytest.approx(0.5)
    assert got["recall@2"] == pytest.approx(1 / 3)
    assert got["mrr@4"] == 1.0
    assert got["ndcg@4"] == pytest.approx((1 + third) / (1 + 1 / math.log2(3) + third))
    assert got["ndcg_hits@4"] == pytest.approx((1 + third) / (1 + 1 / math.log2(3)))


def test_evaluate_masks_seen_and_adds_up_over_users() -> None:
    score = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    seen = ranking.Seen.of([(np.array([0]), np.array([0]))], 3)
    relevant = ranking.Seen.of([(np.array([0, 1]), np.array([1, 0]))], 3)

    def run(users: list[int]) -> ranking.Metrics:
        args = (seen, relevant, 3, (1,), 2)
        return ranking.evaluate(lambda u: score[u].clone(), torch.tensor(users), *args)[0]

    whole, parts = run([0, 1, 2]), [run([0]), run([1, 2])]
    assert whole.users == 2
    assert whole.means()["precision@1"] == 0.5
    assert sum(p.sums["ndcg@1"] for p in parts) == whole.sums["ndcg@1"]


def test_cold_metrics_count_cold_items_alone_in_the_same_ranking() -> None:
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).repeat(3, 1)
    seen = ranking.Seen.of([], 3)
    held = [(0, 1), (0, 2), (1, 0), (2, 3)]  # user 1 holds no cold item, user 2 one that is not listed
    pair = tuple(np.array(x) for x in zip(*held, strict=True))
    relevant = ranking.Seen.of([pair], 3)
    cold = torch.tensor([False, False, True, True])
    assert relevant.only(cold).item.tolist() == [2, 3]
    assert relevant.only(cold).bounds.tolist() == [0, 1, 1, 2]

    def run(users: list[int]) -> ranking.Metrics:
        return ranking.evaluate(
            lambda u: score[u].clone(), torch.tensor(users), seen, relevant, 4, (3,), 2, cold_I=cold
        )[0]

    got = run([0, 1, 2]).means()
    assert got["recall@3/cold"] == pytest.approx(1 / 2)
    assert got["mrr@3/cold"] == pytest.approx((1 / 3) / 2)
    assert got["ndcg@3/cold"] == pytest.approx((1 / 2) / 2)  # third place, ideal first
    assert got["coverage@3/cold"] == 0.5
    assert got["recall@3"] == pytest.approx(2 / 3)
    assert not any(name.endswith("/cold") for name in run([1]).means())


def test_item_neighbours_against_a_dense_computation() -> None:
    rng = np.random.default_rng(0)
    dense = rng.random((30, 12)) < 0.3
    user, item = np.nonzero(dense)
    neighbour, omega = item_neighbours(user, item, 30, 12, 4, block=40)
    G = dense.T.astype(float) @ dense
    g = G.sum(1)
    full = G / (g - np.diag(G))[:, None] * np.sqrt(g[:, None] / g[None, :])
    np.fill_diagonal(full, -1)
    for i in range(12):
        best = np.lexsort((np.arange(12), -full[i]))[:4]
        np.testing.assert_allclose(omega[i], full[i, best], rtol=1e-6)
        np.testing.assert_allclose(full[i, neighbour[i]], full[i, best], rtol=1e-12)


@pytest.mark.parametrize("dense", [True, False])
def test_row_table_is_adam(dense: bool) -> None:
    start = randn(6, 3)
    table, plain = RowTable(start.clone(), dense), start.clone().requires_grad_()
    adam = torch.optim.Adam([plain], lr=0.1)
    for step in range(3):
        ids = torch.arange(6) if not dense else torch.tensor([0, 2, 5 - step])
        (rows,) = pull_rows(Engine(), [(table, Touched(ids))])
        (rows * randn(len(ids), 3, seed=step)).sum().backward()
        push_rows(Engine(), [(table, Touched(ids), rows)], 0.1)
        adam.zero_grad()
        (plain[ids] * randn(len(ids), 3, seed=step)).sum().backward()
        adam.step()
    torch.testing.assert_close(table.weight, plain.detach(), rtol=1e-9, atol=1e-9)
