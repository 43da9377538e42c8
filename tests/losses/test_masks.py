"""The loss of masks against autograd on the same formula, and environments' effects against their definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_projection import Case, randn

from m3dist.losses.masks import Columns, Everyone, Moments, Penalties, Sums, Terms, environment_effect, mask_loss

WIDTHS = (4, 3)
GAMMA, RHO, L2 = 0.7, 0.3, 0.2
EFFECT_V = torch.tensor([0.0, 0.9, 0.1, 0.5, 0.7, 0.0, 0.3], dtype=torch.float64)
MASK_V = torch.tensor([0.9, 0.5, 0.1, 0.6, 1.0, 0.0, 0.4], dtype=torch.float64)
Content = list[torch.Tensor]


def columns(widths: tuple[int, ...] = WIDTHS, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Columns:
    out = Columns(widths, torch.device(device))
    out.member_RV, out.width_V = out.member_RV.to(dtype), out.width_V.to(dtype)
    return out


def sums_of(case: Case, mask_V: torch.Tensor, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Sums:
    """Of fits with each representation's W times its mask."""
    whole = case.W
    case.W = [W * part for W, part in zip(whole, mask_V.split(WIDTHS), strict=True)]
    fits, case.W = case.fits(device, dtype), whole
    return Sums.of(fits)


def loss(case: Case, mask_V: torch.Tensor, share: float, count_RE: torch.Tensor | None = None) -> Terms:
    """count_RE: of all workers' samples, when this one has not all of them."""
    sums = sums_of(case, mask_V)
    everyone = Everyone(sums.count_RE if count_RE is None else count_RE, EFFECT_V)
    penalties = Penalties(GAMMA, RHO, L2, torch.tensor(share, dtype=torch.float64))
    return mask_loss(sums, (torch.cat(case.W, dim=2)[0], mask_V), penalties, columns(), everyone)


@pytest.mark.parametrize("tau", [None, 0.25], ids=["ultragcn", "softmax"])
@pytest.mark.parametrize(("b", "E"), [(60, 3), (9, 6)])
def test_against_autograd(b: int, E: int, tau: float | None) -> None:
    """Also where some environments have one sample or none, and one sample has no environment."""
    case = Case(b, E, True, WIDTHS, tau)
    if b == 9:
        case.environment[:] = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 6])
    got = loss(case, MASK_V, 0.75)
    start = 0
    for r, D in enumerate(WIDTHS):
        mine = slice(start, start + D)
        W, bias = case.W[r].clone().requires_grad_(), case.bias[r].clone().requires_grad_()
        mask_D, effect_D = MASK_V[mine].clone().requires_grad_(), EFFECT_V[mine]
        each_b = case.losses(r, W * mask_D, bias)
        rows = [case.environment[r] == e for e in range(E)]
        means = torch.stack([each_b[row].mean() for row in rows if row.any()])
        terms = (
            means.mean() + 0.75 * L2 * W.square().sum(),
            0.75 * GAMMA * (effect_D * mask_D).square().mean(),
            0.75 * RHO * (mask_D - 0.5).square().mean(),
        )
        for ours, want in zip((got.fit_R[r], got.variance_R[r], got.size_R[r]), terms, strict=True):
            torch.testing.assert_close(ours, want.detach(), rtol=1e-9, atol=1e-12)
        gradients = torch.autograd.grad(sum(terms), [W, bias, mask_D])
        found = (got.W_grad_cV[:, mine], got.bias_grad_Rc[r], got.mask_grad_V[mine])
        for ours, want in zip(found, gradients, strict=True):
            torch.testing.assert_close(ours, want.view_as(ours), rtol=1e-9, atol=1e-10)
        start += D


def test_rho_pulls_towards_one_half() -> None:
    """From both sides alike, and not at all from there: of W = 0 nothing else moves a mask without effects."""
    sums, column = sums_of(Case(60, 3, True, WIDTHS), MASK_V), columns()
    penalties = Penalties(GAMMA, RHO, L2, torch.ones((), dtype=torch.float64))
    none_cV, none_V = torch.zeros(2, sum(WIDTHS)).double(), torch.zeros(sum(WIDTHS)).double()
    got = mask_loss(sums, (none_cV, MASK_V), penalties, column, Everyone(sums.count_RE, none_V)).mask_grad_V
    torch.testing.assert_close(got, 2 * RHO * (MASK_V - 0.5) / torch.tensor([4.0] * 4 + [3.0] * 3).double())
    assert got[MASK_V == 0.5].tolist() == [0]


def test_nobody_in_an_environment() -> None:
    """What is left are the penalties and L2."""
    case = Case(6, 2, True, WIDTHS)
    case.environment[:] = 2
    got = loss(case, MASK_V, 1.0)
    torch.testing.assert_close(got.fit_R, torch.stack([L2 * W.square().sum() for W in case.W]))
    torch.testing.assert_close(got.W_grad_cV, 2 * L2 * torch.cat(case.W, dim=2)[0])
    assert got.bias_grad_Rc.count_nonzero() == 0
    assert torch.isfinite(got.mask_grad_V).all()


def test_workers_parts_add_up() -> None:
    """Two workers with a third and two thirds of the samples find together what one with all does."""
    whole = Case(60, 3, True, WIDTHS)
    want = loss(whole, MASK_V, 1.0)
    first, parts = torch.arange(60) % 3 == 0, []
    count_RE = sums_of(whole, MASK_V).count_RE
    for mine in (first, ~first):
        part = Case(60, 3, True, WIDTHS)
        part.environment = torch.where(mine, part.environment, 3)  # the others' samples are in none of its environments
        parts.append(loss(part, MASK_V, float(mine.double().mean()), count_RE))
    for name, value in vars(want).items():
        torch.testing.assert_close(getattr(parts[0], name) + getattr(parts[1], name), value)


def test_on_a_device_the_same_numbers_without_waiting(counted: Any) -> None:
    case = Case(60, 3, True, WIDTHS)
    found = []
    for device in ("cpu", "standin"):
        sums, column = sums_of(case, MASK_V, torch.float32, device), columns(dtype=torch.float32, device=device)
        moments = Moments(3, 2, column, 1)
        parameters = (torch.cat(case.W, dim=2)[0].float().to(device), MASK_V.float().to(device))
        penalties = Penalties(GAMMA, RHO, L2, torch.full((), 0.75, device=device))
        counted.clear()
        moments.add(sums.gradient_EcV, sums.second_EV, sums.count_RE)
        effect_V = moments.effect(column, 0.02)
        terms = mask_loss(sums, parameters, penalties, column, Everyone(sums.count_RE, effect_V))
        assert (counted.waits, counted.copies) == (0, 0)
        found.append([effect_V, *vars(terms).values()])
    assert 0 < counted.launches <= 100
    assert found[0][0].count_nonzero() > 0
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-5)


def test_columns_belong_to_their_representation() -> None:
    column, x_V = columns((2, 3)), torch.tensor([1.0, 3.0, 5.0, 7.0, 12.0], dtype=torch.float64)
    assert column.of(torch.tensor([7.0, 9.0])).tolist() == [7, 7, 9, 9, 9]
    assert column.of(torch.tensor([[7.0, 9.0], [1.0, 2.0]])).tolist() == [[7, 7, 9, 9, 9], [1, 1, 2, 2, 2]]
    assert column.mean(x_V).tolist() == [2, 8]


def moments_of(content: Content, pull: Content) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over each environment's samples, whose gradients are outer products [c, V], and counts [E, V]."""
    gradient = torch.stack([u.T @ g for u, g in zip(content, pull, strict=True)])
    second = torch.stack([u.square().sum(1) @ g.square() for u, g in zip(content, pull, strict=True)])
    count = torch.tensor([len(u) for u in content], dtype=gradient.dtype)
    return gradient, second, count[:, None].expand_as(second)


def effect_of(content: Content, pull: Content, small: float = 0.02) -> torch.Tensor:
    return environment_effect(*moments_of(content, pull), small)


def alike(sizes: list[int], c: int, V: int) -> tuple[Content, Content]:
    """Samples in random environments, whose gradients have a mean of 0."""
    content = [randn(n, c, seed=100 + e) for e, n in enumerate(sizes)]
    return content, [randn(n, V, seed=200 + e) for e, n in enumerate(sizes)]


def apart(sizes: list[int], c: int, by: list[float]) -> tuple[Content, Content]:
    """Samples whose mean gradients are e times `by`, in environment e and every dimension."""
    content, pull = alike(sizes, c, len(by))
    shift_V = torch.tensor(by, dtype=torch.float64)
    return [u + 1 for u in content], [g + e * shift_V for e, g in enumerate(pull)]


def defined(content: Content, pull: Content, small: float) -> torch.Tensor:
    """The effect of every dimension, sample by sample, of environments with two samples and more."""
    V = pull[0].shape[1]
    out = torch.zeros(V, dtype=torch.float64)
    pairs = [(u, g) for u, g in zip(content, pull, strict=True) if len(u) >= 2]
    for v in range(V):
        each = [torch.stack([u[b] * g[b, v] for b in range(len(u))]) for u, g in pairs]
        means = [x.mean(0) for x in each]
        middle = sum(means) / len(means)
        within = [float((x - m).square().sum()) / (len(x) - 1) for x, m in zip(each, means, strict=True)]
        between = float(sum((m - middle).square().sum() for m in means))
        E, c = len(pairs), each[0].shape[1]
        chance = sum(w / len(x) for w, x in zip(within, each, strict=True)) * (E - 1) / E
        beyond = chance * (1 + 3 * (2 / (c * (E - 1))) ** 0.5)  # three standard deviations of a chi-squared mean
        f2 = max(0.0, between - beyond) / (E - 1) / (sum(within) / E)
        out[v] = f2 / (f2 + small)
    return out


@pytest.mark.parametrize("c", [1, 4])
@pytest.mark.parametrize("small", [0.02, 0.5])
@pytest.mark.parametrize("sizes", [[40, 25, 1, 0], [12, 30, 2, 9]])
def test_effect_against_its_definition(c: int, small: float, sizes: list[int]) -> None:
    content, pull = apart(sizes, c, [0.0, 0.5, 1.0, 3.0, 20.0])
    want = defined(content, pull, small)
    torch.testing.assert_close(effect_of(content, pull, small), want, rtol=1e-9, atol=1e-12)
    assert want[0] == 0  # both where chance explains what is seen and where it does not
    assert want[4] > 0.3


def test_environments_of_the_same_samples_have_no_effect() -> None:
    content, pull = alike([30], 4, 6)
    assert effect_of(3 * content, 3 * [pull[0] + 1]).tolist() == [0] * 6


@pytest.mark.parametrize("c", [1, 8])
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_random_environments_have_no_effect(c: int, mean: float) -> None:
    """Exactly 0 in nearly every dimension, and next to nothing where chance goes far."""
    content, pull = alike([300, 500, 400, 800, 200], c, 400)
    effect_V = effect_of(content, [g + mean for g in pull])
    assert (effect_V == 0).double().mean() > 0.97
    assert effect_V.square().mean() < 1e-3  # what the penalty weighs masks by


def test_environments_with_fewer_than_two_samples_are_left_out() -> None:
    content, pull = apart([50, 60], 4, [1.0, 2.0, 3.0])
    want = effect_of(content, pull)
    assert (want > 0.5).all()
    more = [*content, 1e3 * randn(1, 4), randn(0, 4)], [*pull, 1e3 * randn(1, 3), randn(0, 3)]
    torch.testing.assert_close(effect_of(*more), want)


@pytest.mark.parametrize("sizes", [[4, 1], [1, 1], [0, 0], [4, 0]])
def test_one_environment_has_no_effect(sizes: list[int]) -> None:
    content, pull = alike(sizes, 2, 3)
    assert effect_of(content, [1e6 * g for g in pull]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_gradients_does_not_matter(scale: float) -> None:
    """Not in float32 either, in which a run computes."""
    content, pull = ([x.float() for x in parts] for parts in apart([50, 60, 70], 4, [0.0, 0.5, 1.0, 2.0]))
    want = effect_of(content, pull)
    assert want[1:].min() > 0.3
    torch.testing.assert_close(effect_of(content, [scale * g for g in pull]), want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("n", [2000, 50000])
@pytest.mark.parametrize("small", [0.02, 0.1])
def test_effect_is_that_of_the_planted_difference(n: int, small: float) -> None:
    """Of environments whose means are -s, 0 and s beside noise of variance 1, f^2 is s^2, however many samples."""
    shift_V = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    content = [torch.ones(n, 1, dtype=torch.float64)] * 3
    pull = [randn(n, 4, seed=e) + (e - 1) * shift_V for e in range(3)]
    effect_V = effect_of(content, pull, small)
    want = shift_V.square() / (shift_V.square() + small)
    assert effect_V[0] == 0
    torch.testing.assert_close(effect_V[1:], want[1:], rtol=0.12, atol=0)
    assert (effect_V[1:] > effect_V[:-1]).all()


def test_gradients_that_vanish_have_no_effect() -> None:
    """Of a column of x that is 0 for all items."""
    content, pull = apart([50, 60], 4, [2.0, 0.0])
    for g in pull:
        g[:, 1] = 0
    effect_V = effect_of(content, pull)
    assert effect_V[0] > 0.5
    assert effect_V[1] == 0


def test_environments_are_each_representations_own() -> None:
    """Counts of every representation reach its columns: samples that stand elsewhere in another have their own."""
    column, moments = columns((1, 1)), Moments(2, 2, columns((1, 1)), 1).double()
    parts = [apart(sizes, 2, [2.0]) for sizes in ([40, 25], [10, 55])]
    (g0, s0, n0), (g1, s1, n1) = (moments_of(*part) for part in parts)
    moments.add(torch.cat([g0, g1], 2), torch.cat([s0, s1], 1), torch.stack([n0[:, 0], n1[:, 0]]))
    want = torch.cat([defined(*part, 0.02) for part in parts])
    assert (want > 0).all()
    torch.testing.assert_close(moments.effect(column, 0.02), want, rtol=1e-9, atol=1e-12)


def test_moments_wait_for_a_window_and_forget() -> None:
    """A step counts 1 - 1 / window times as much as the one after it, and nothing is said before a window of steps."""
    column, window = columns((6,)), 4
    moments = Moments(2, 3, column, window).double()
    sums: list[torch.Tensor] = []
    for step in range(7):
        pull = [randn(20, 6, seed=step), randn(30, 6, seed=90 + step) + 1]
        content = [randn(20, 3, seed=50 + step) + 1, randn(30, 3, seed=70 + step) + 1]
        gradient, second, count = moments_of(content, pull)
        new = [gradient, second, count[:, :1].T]
        sums = [0.75 * old + x for old, x in zip(sums, new, strict=True)] if sums else new
        moments.add(*new)
        effect_V = moments.effect(column, 0.02)
        if step + 1 < window:
            assert effect_V.tolist() == [0] * 6
        else:
            want = environment_effect(sums[0], sums[1], sums[2].T.expand(2, 6), 0.02)
            assert (want > 0.1).all()
            torch.testing.assert_close(effect_V, want)


def test_many_small_batches_show_what_one_does_not() -> None:
    def effect(window: int) -> torch.Tensor:
        column = columns((50,))
        moments = Moments(4, 1, column, window).double()
        for step in range(40):
            pull = [randn(8, 50, seed=10 * step + e) + 0.4 * e * (torch.arange(50) < 25) for e in range(4)]
            gradient, second, count = moments_of([torch.ones(8, 1).double()] * 4, pull)
            moments.add(gradient, second, count[:, :1].T)
        return moments.effect(column, 0.02)

    assert (effect(1)[:25] == 0).double().mean() > 0.5
    many = effect(40)
    assert (many[:25] > 0.5).all()
    assert (many[25:] == 0).double().mean() > 0.9
