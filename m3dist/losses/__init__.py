"""Losses as pure functions of tensors. Every one is a sum over the samples given divided by the count of the
global batch, so that workers' shares add up to the loss of the whole.

Shapes: b positives (this worker's), N negatives that a group of them shares, J those of all its groups, n per-positive
negatives, d width, C items under contrast, c this worker's share of them, E environments. Where a frozen backbone's
projection is fitted: d id width, c content width, k = d + c, D width of a representation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 512  # rows whose [512, N] temporaries stay in cache


def _softplus(score_bN: Tensor) -> tuple[Tensor, Tensor]:
    """(sigmoid, softplus), the latter at half its price; overwrites the scores."""
    score_bN.clamp_(min=-80)  # below it sigmoid is 0 and its logarithm infinite
    slope_bN = torch.sigmoid(score_bN)
    return slope_bN, score_bN.sub_(torch.log(slope_bN))


def _total(sums_b2: Tensor, base: float, scale_b: Tensor) -> Tensor:
    """float64 sum of the weighted losses whose sums over N are given."""
    sums_b2 = sums_b2.double()
    return base * sums_b2[:, 0].sum() + scale_b.double() @ sums_b2[:, 1]


def _shared_negatives(
    user_bd: Tensor, item_Nd: Tensor, base: float, scale_b: Tensor, weight_N2: Tensor, sums_b2: Tensor,
    user_grad: Tensor, item_grad: Tensor,
) -> None:  # fmt: skip
    """Weighted BCE of b users against N negatives they share: -log(1 - sigmoid(u . v)), of each user summed over N.

    The weight of (u, j) is base + scale_u weight_j: UltraGCN's w3 + w4 kappa beta_uj (Mao et al. 2021, eq. 10-11). It
    is of rank one beside a constant, so neither weights nor probabilities are kept. weight_N2 holds (1, weight_j).
    Writes the two sums that `_total` joins, [b, 2], and the gradients of users [b, d] and of items [N, d].
    """
    item_dN = item_Nd.T.contiguous()
    for at in range(0, max(1, len(user_bd)), _BLOCK):  # of no users a product of no rows, which makes zeros
        of_b = slice(at, at + _BLOCK)
        slope_bN, soft_bN = _softplus(torch.mm(user_bd[of_b], item_dN))
        torch.mm(soft_bN, weight_N2, out=sums_b2[of_b])
        slope_bN *= torch.outer(scale_b[of_b], weight_N2[:, 1], out=soft_bN).add_(base)
        torch.mm(slope_bN, item_Nd, out=user_grad[of_b])
        item_grad.addmm_(slope_bN.T, user_bd[of_b], beta=int(at > 0))


class Sampled(NamedTuple):
    """What a step's samples are: places of rows, weights, and coefficients of the terms."""

    user_at_b: Tensor
    item_at_b: Tensor
    negative_at_J: Tensor  # N for each group
    weight_b: Tensor  # of positives
    base: float  # of negatives: base + scale_b weight_J
    scale_b: Tensor
    weight_J: Tensor
    neighbour_at_bs: Tensor | None
    omega_bs: Tensor | None
    nu: float
    negative_weight: float
    l2_d: Tensor  # of every column
    size: int  # B of the global batch
    parts: Sequence[int]  # b, by groups in order


@torch.no_grad()
def ultragcn(user_Rd: Tensor, item_Sd: Tensor, at: Sampled) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """UltraGCN's loss with shared negatives, term by term, and its gradients [R, d] and [S, d]; S distinct items.

    L_O + kappa L_C + nu L_I (Mao et al. 2021, eq. 8, 10, 15) + L2, in one pass without autograd: rows are gathered
    once, and their gradients added up once.
    """
    b, J = len(at.user_at_b), len(at.negative_at_J)
    places = [at.item_at_b, at.negative_at_J]
    if at.neighbour_at_bs is not None:
        places.append(at.neighbour_at_bs.flatten())
    place_n = torch.cat(places)
    user_bd, item_nd = user_Rd.index_select(0, at.user_at_b), item_Sd.index_select(0, place_n)
    own_bd, near_bsd = item_nd[:b], item_nd[b + J :].view(b, -1, item_nd.shape[1])

    score_b = torch.linalg.vecdot(user_bd, own_bd)
    slope_b = torch.sigmoid(-score_b).mul_(at.weight_b).mul_(-1 / at.size)
    terms = {"positive": (at.weight_b @ F.softplus(-score_b)) / at.size}
    item_grad = torch.empty_like(item_nd)
    torch.mul(user_bd, slope_b[:, None], out=item_grad[:b])
    terms["negative"], user_grad, square_d = _group_by_group(user_bd, item_nd[b : b + J], at, item_grad[b : b + J])
    user_grad.addcmul_(own_bd, slope_b[:, None])
    if at.omega_bs is not None:
        score_bs = torch.bmm(near_bsd, user_bd.unsqueeze(2)).squeeze(2)
        terms["neighbours"] = (at.omega_bs * F.softplus(-score_bs)).sum() * (at.nu / at.size)
        slope_bs = torch.sigmoid(-score_bs).mul_(at.omega_bs).mul_(-at.nu / at.size)
        for near_bd, slope_b in zip(near_bsd.unbind(1), slope_bs.T, strict=True):  # bmm is five times as slow
            user_grad.addcmul_(near_bd, slope_b[:, None])
        torch.mul(user_bd.unsqueeze(1), slope_bs.unsqueeze(2), out=item_grad[b + J :].view(near_bsd.shape))
    for rows, gradient in ((user_bd, user_grad), (own_bd, item_grad[:b])):
        square_d.add_(torch.linalg.vecdot(rows, rows, dim=0), alpha=1 / at.size)
        gradient.addcmul_(rows, at.l2_d, value=2 / at.size)
    terms["l2"] = at.l2_d @ square_d
    return (
        terms,
        torch.zeros_like(user_Rd).index_add_(0, at.user_at_b, user_grad),
        torch.zeros_like(item_Sd).index_add_(0, place_n, item_grad),
    )


def _group_by_group(user_bd: Tensor, item_Jd: Tensor, at: Sampled, grad_Jd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The negatives' loss, its gradient of users [b, d], and squares of the negatives' columns under L2, [d].

    Writes the items' gradient, of both, into grad_Jd. A mean over negatives is the batch's: each worker takes its part.
    """
    N = len(item_Jd) // len(at.parts)
    weight_J2 = torch.stack([torch.ones_like(at.weight_J), at.weight_J], dim=1)
    user_grad, sums_b2 = torch.empty_like(user_bd), user_bd.new_empty(len(user_bd), 2)
    first = 0
    for group, b in enumerate(at.parts):
        of_J, of_b = slice(group * N, (group + 1) * N), slice(first, first + b)
        _shared_negatives(
            user_bd[of_b], item_Jd[of_J], at.base, at.scale_b[of_b], weight_J2[of_J], sums_b2[of_b], user_grad[of_b],
            grad_Jd[of_J],
        )  # fmt: skip
        first += b
    share_g = torch.tensor(at.parts, dtype=user_bd.dtype, device=user_bd.device) / (at.size * N)
    part_Jd = item_Jd * share_g.repeat_interleave(N)[:, None]
    scale = at.negative_weight / (at.size * N)
    grad_Jd.mul_(scale).addcmul_(part_Jd, at.l2_d, value=2)
    total = _total(sums_b2, at.base, at.scale_b) * scale
    return total.to(user_bd.dtype), user_grad.mul_(scale), torch.linalg.vecdot(part_Jd, item_Jd, dim=0)


def positives(score_b: Tensor, weight_b: Tensor) -> Tensor:
    """Weighted BCE of positives, summed: -log sigmoid(s)."""
    return (weight_b * F.softplus(-score_b)).sum()


def own_negatives(score_bn: Tensor, weight_bn: Tensor) -> Tensor:
    """Weighted BCE where every positive has negatives of its own, summed."""
    return (weight_bn * F.softplus(score_bn)).sum()


def neighbours(score_bk: Tensor, omega_bk: Tensor) -> Tensor:
    """UltraGCN's item-item term (Mao et al. 2021, eq. 15), summed: -omega_ij log sigmoid(e_u . e_j)."""
    return (omega_bk * F.softplus(-score_bk)).sum()


def bpr(positive_b: Tensor, negative_bn: Tensor) -> Tensor:
    """Pairwise ranking (Rendle et al., UAI 2009), summed over b: the mean over n of -log sigmoid(s_i - s_j)."""
    return F.softplus(negative_bn - positive_b[:, None]).mean(1).sum()


def contrastive(z_Cd: Tensor, common_Cd: Tensor, tau: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Eq. 2-4 of the paper, summed over this worker's anchors, which are the items within `bounds` of all C.

    z, common: z_m and z_{M+1}. The sum of eq. 3 leaves out j = i, as printed. With C = 1 there is no negative and the
    loss is 0.
    """
    low, high = bounds
    z_cd, common_cd = (x if high - low == len(x) else x[low:high] for x in (z_Cd, common_Cd))
    if len(z_Cd) < 2:
        return z_cd.sum() * 0
    z_cd, common_cd, z_Cd, common_Cd = (F.normalize(x, dim=1) for x in (z_cd, common_cd, z_Cd, common_Cd))
    with torch.autocast(z_cd.device.type, enabled=False), torch.no_grad():
        value, *gradients = _contrastive((z_cd, common_cd), (z_Cd, common_Cd), tau, low)
    return known(value, [z_cd, common_cd, z_Cd, common_Cd, tau], gradients)


def _contrastive(anchors: tuple[Tensor, Tensor], items: tuple[Tensor, Tensor], tau: Tensor, start: int) -> list[Tensor]:
    """Value of `contrastive` of rows of length 1, and its gradients of all tensors given; anchor i is item start + i.

    A row of logits meets three products; cosines are at most 1, so exp((s - 1) / tau) needs no maximum.
    """
    (z_cd, common_cd), (z_Cd, common_Cd) = anchors, items
    z_grad, common_grad = torch.zeros_like(z_cd), torch.zeros_like(common_cd)
    z_GRAD, common_GRAD = torch.zeros_like(z_Cd), torch.zeros_like(common_Cd)
    pairs = ((z_cd, common_Cd, z_grad, common_GRAD), (z_cd, z_Cd, z_grad, z_GRAD),
             (common_cd, common_Cd, common_grad, common_GRAD))  # fmt: skip
    scores = [a @ b.T for a, b, _, _ in pairs]
    each = [torch.sub(score, 1).div_(tau).exp_() for score in scores]
    for e_cC in each:
        e_cC.diagonal(start).zero_()  # j != i
    total_c = torch.stack([e_cC.sum(1) for e_cC in each]).sum(0)
    positive_c = torch.linalg.vecdot(z_cd, common_cd)
    value = (total_c.log() + (1 - positive_c) / tau).sum()
    grad_tau = positive_c.sum()
    for score_cC, e_cC, (a, b, a_grad, b_grad) in zip(scores, each, pairs, strict=True):
        e_cC.div_(total_c[:, None])  # the softmax
        grad_tau = grad_tau - torch.linalg.vecdot(e_cC, score_cC).sum()
        a_grad.addmm_(e_cC, b)
        b_grad.addmm_(e_cC.T, a)
    z_grad.sub_(common_cd)
    common_grad.sub_(z_cd)
    return [value, *(x.div_(tau) for x in (z_grad, common_grad, z_GRAD, common_GRAD)), grad_tau / tau**2]


def gaussian_nll(v_cd: Tensor, mean_cd: Tensor, logvar_cd: Tensor) -> Tensor:
    """-log q(v|z) of a diagonal Gaussian, summed over samples; constants included."""
    square = (v_cd - mean_cd).square() * torch.exp(-logvar_cd)
    return 0.5 * (square + logvar_cd + math.log(2 * math.pi)).sum()


def club(v_cd: Tensor, mean_cd: Tensor, logvar_cd: Tensor, v_Cd: Tensor) -> Tensor:
    """CLUB's bound on I(v; z) (Cheng et al. 2020, eq. 6 of the paper), summed over this worker's c samples.

    Mean over pairs of log q(v_i|z_i) minus log q(v_j|z_i) over all j of the C samples. The average over j of
    a squared distance needs only the first two moments of v, so the cost is linear in C.
    """
    first_d, second_d = v_Cd.mean(0), v_Cd.square().mean(0)
    own = (v_cd - mean_cd).square()
    others = second_d - 2 * mean_cd * first_d + mean_cd.square()
    return (0.5 * (others - own) * torch.exp(-logvar_cd)).sum()


class Positives(NamedTuple):
    """Rows b of G groups, which stand one after the other: the ids' part of their scores, contents and weights."""

    score_bN: Tensor  # with the negatives; overwritten
    own_b: Tensor
    content_bc: Tensor
    x_bD: Tensor
    weight_b: Tensor
    scale_b: Tensor  # of the negatives' weights: base + scale_b weight_N


class Negatives(NamedTuple):
    """The N negatives that all rows share."""

    x_ND: Tensor
    weight_N: Tensor
    base: float


class Projection(NamedTuple):
    """W [G, c, D] and bias [G, c] of each group, or [1, c, D] and [1, c] of all."""

    W: Tensor
    bias: Tensor


class Fits(NamedTuple):
    """What `projection_fits` finds of each of G groups of rows: sums of losses, gradients and, on demand, moments."""

    rows: list[int]
    loss_G: Tensor  # float64
    gradient_GcD: Tensor  # of W
    bias_Gc: Tensor
    second_GD: Tensor | None  # sum over rows of |u_c|^2 pull_D^2


@torch.no_grad()
def projection_fits(
    positives: Positives, negatives: Negatives, rows: list[int], projection: Projection, moments: bool = False
) -> Fits:
    """The backbone loss of b positives and N shared negatives where only content projections are free.

    score(u, i) = u_id . v_id + u_c . (W x_i + bias). rows: how many are in each group. W' u_c is taken once a row and
    meets x there, so what is left to each group are products of its own rows, and its numbers do not depend on the
    others. A sample's gradient with respect to W is the outer product of u_c and `pull` = sum_i dl/ds_i x_i: no
    autograd.
    """
    score_bN, own_b, content_bc, x_bD, weight_b, scale_b = positives
    (x_ND, weight_N, base), (W, bias) = negatives, projection
    x_DN, own = x_ND.T, rows if len(W) > 1 else [len(x_bD)]
    query_bD = pull_bD = torch.empty_like(x_bD)  # the second takes the place of the first
    of_own, content_of_own, score_of_own = (x.split(own) for x in (query_bD, content_bc, score_bN))
    for content, query, score, W_cD in zip(content_of_own, of_own, score_of_own, W.unbind(), strict=True):
        score.addmm_(torch.mm(content, W_cD, out=query), x_DN)
    of_row_b = torch.repeat_interleave(torch.tensor(own, device=bias.device))
    shift_b = torch.linalg.vecdot(content_bc, bias.index_select(0, of_row_b))
    score_bN.add_(shift_b[:, None])
    own_b = shift_b.add_(own_b).add_(torch.linalg.vecdot(query_bD, x_bD))
    slope_bN, soft_bN = _softplus(score_bN)
    loss_b = (soft_bN.sum(1) * base + scale_b * (soft_bN @ weight_N) + weight_b * F.softplus(-own_b)).double()
    slope_bN *= torch.outer(scale_b, weight_N, out=soft_bN).add_(base)
    own_slope_b = torch.sigmoid(-own_b).mul_(weight_b).neg_()
    bias_b = slope_bN.sum(1).add_(own_slope_b)
    for slope, pull in zip(slope_bN.split(own), of_own, strict=True):
        torch.mm(slope, x_ND, out=pull)
    pull_bD.addcmul_(x_bD, own_slope_b[:, None])
    grouped = own == rows
    contents, pulls = (content_of_own, of_own) if grouped else (content_bc.split(rows), pull_bD.split(rows))
    G, (c, D), count = len(rows), W.shape[1:], torch.tensor(rows, device=W.device)
    sums = [torch.segment_reduce(x, "sum", lengths=count) for x in (loss_b, content_bc * bias_b[:, None])]
    out = Fits(rows, sums[0], W.new_empty(G, c, D), sums[1], W.new_empty(G, D) if moments else None)
    for into, content, pull in zip(out.gradient_GcD.unbind(), contents, pulls, strict=True):
        torch.mm(content.T, pull, out=into)
    if out.second_GD is not None:
        length_b, squares = content_bc.square().sum(1), pull_bD.square_().split(rows)
        for into, length, square in zip(out.second_GD, length_b.split(rows), squares, strict=True):
            torch.mv(square.T, length, out=into)
    return out


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx, value: Tensor, count: int, *both: Tensor) -> Tensor:  # type: ignore[override]
        ctx.count = count
        ctx.save_for_backward(*both[count:])
        return value.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return None, None, *(grad * known for known in ctx.saved_tensors), *[None] * ctx.count


def known(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """`value` as a differentiable function of `inputs`, whose gradients were found beside it."""
    return _Known.apply(value, len(inputs), *inputs, *gradients)


def environment_variance(gradient_EcD: Tensor, second_ED: Tensor, count_E: Tensor) -> Tensor:
    """The Var-term (after InvRL, Du et al. 2022): how much environments' gradients differ, per dimension [D].

    gradient: sums over each environment's samples of their gradients with respect to the content projection; second:
    sums of their squares over c; count: samples, none 0. The squared deviation of the environments' mean gradients
    from their mean, summed over environments and c, less what sampling alone would give (the within-environment
    variance over count): a batch's noise would otherwise drown the difference. Never below 0.
    """
    E = len(count_E)
    mean_EcD = gradient_EcD / count_E[:, None, None]
    noise_ED = (second_ED / count_E[:, None] - mean_EcD.square().sum(1)) / (count_E - 1).clamp(min=1)[:, None]
    deviation_D = (mean_EcD - mean_EcD.mean(0)).square().sum(dim=(0, 1))
    return (deviation_D - (1 - 1 / E) * noise_ED.sum(0)).clamp(min=0)
