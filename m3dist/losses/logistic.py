"""UltraGCN's loss (Mao et al., CIKM 2021) and its gradients in closed form, for members that train on the same samples.

Rows are float32 and autocast is off: products go into the float32 gradients directly.

Shapes: M members; X = P b positives in P groups of b; N negatives that a group shares; s neighbours of each positive's
item; T = s + 1 items that meet one user alone; L = T X + P N rows of items; k width of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_IN_CACHE = 1 << 18  # scores of a block on a CPU


@dataclass(frozen=True)
class Constants:
    """What UltraGCN precomputes: beta_ui = a_u c_i (eq. 9), and each item's neighbours j with omega_ij (eq. 12-14).

    One user and one item more than there are stand for positives that are not there: their weights are 0, and the
    item's neighbours are itself. a_U, float32 [U + 1]; c_I, float32 [I + 1]; neighbour_IK, int64 [I + 1, K]; omega_IK,
    float32 [I + 1, K].
    """

    a_U: Tensor
    c_I: Tensor
    neighbour_IK: Tensor | None = None
    omega_IK: Tensor | None = None

    @staticmethod
    def of(user_degree_U: Tensor, item_degree_I: Tensor, graph: tuple[Tensor, Tensor] | None = None) -> Constants:
        """From training interactions of each user and item, and `data.graphs.item_neighbours`."""
        user, item = (F.pad(x.double(), (0, 1)) for x in (user_degree_U, item_degree_I))
        a_U = (user + 1).sqrt() / user.clamp(min=1)
        c_I = 1 / (item + 1).sqrt()
        a_U[-1] = c_I[-1] = 0
        if graph is None:
            return Constants(a_U.float(), c_I.float())
        neighbour, omega = (
            F.pad(x, (0, 0, 0, 1), value=value) for x, value in zip(graph, (len(item) - 1, 0), strict=True)
        )
        return Constants(a_U.float(), c_I.float(), neighbour.long(), omega.float())


@dataclass(frozen=True)
class Samples:
    """What the samples of a step weigh, whichever member they train.

    share_Pb: a positive's share of the global batch, 1 / B, and 0 where there is none. positive_Pb: weights of the
    positives. The weight of user u and negative j is base + scale_u weight_j. omega_sX: weights of neighbours. filled:
    the first so many positions of each group are all that can have a positive; None: all b can.
    """

    share_Pb: Tensor
    positive_Pb: Tensor
    base: float
    scale_Pb: Tensor
    weight_PN: Tensor
    omega_sX: Tensor | None = None
    filled: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Coefficients:
    """Of the terms: nu of neighbours, negative_weight of the mean over negatives."""

    nu: float
    negative_weight: float


@dataclass(frozen=True)
class Found:
    """Terms of the loss, [M] each, whose sum is the loss, and its gradients of the rows given."""

    terms: dict[str, Tensor]
    user_grad_MPbk: Tensor
    item_grad_MLk: Tensor


@torch.no_grad()
def ultragcn(user_MPbk: Tensor, item_MLk: Tensor, samples: Samples, coefficients: Coefficients) -> Found:
    """L_O + kappa L_C + nu L_I (eq. 8, 10, 15): means over the global batch of which these samples are a part.

    item_MLk: rows of the s neighbours of every positive, [s, X], then of the positives [X], then of the negatives
    [P, N].
    """
    out = Found({}, torch.zeros_like(user_MPbk), torch.empty_like(item_MLk))
    out.item_grad_MLk[:, -samples.weight_PN.numel() :].zero_()  # those of the others are written, not added to
    add_logistic(user_MPbk, item_MLk, samples, coefficients, out)
    return out


def add_logistic(user_MPbk: Tensor, item_MLk: Tensor, samples: Samples, coefficients: Coefficients, out: Found) -> None:
    """Add UltraGCN's terms of positives, negatives and neighbours, and their gradients."""
    P, N = samples.weight_PN.shape
    share_X = samples.share_Pb.view(-1)
    weight_TX = (samples.positive_Pb.view(-1) * share_X).unsqueeze(0)
    if samples.omega_sX is not None:
        weight_TX = torch.cat([samples.omega_sX * (coefficients.nu * share_X), weight_TX])
    value_MT = add_pairs(user_MPbk, item_MLk, weight_TX, out)
    if samples.omega_sX is not None:
        out.terms["neighbours"] = value_MT[:, :-1].sum(1)
    out.terms["positive"] = value_MT[:, -1]
    each_Pb = samples.share_Pb * (coefficients.negative_weight / N)
    weights = (each_Pb * samples.base, each_Pb * samples.scale_Pb, samples.weight_PN)
    item_MPNk = item_MLk[:, -P * N :].unflatten(1, (P, N))
    out.terms["negative"] = _add_negatives(user_MPbk, item_MPNk, weights, samples.filled, out)


def add_pairs(user_MPbk: Tensor, item_MLk: Tensor, weight_TX: Tensor, out: Found) -> Tensor:
    """Weighted -log sigmoid(u . v) of every user and T items of its own: adds the gradients of users, writes those of
    the items, which are the first T X of the rows, and returns the sums [M, T]."""
    T, X = weight_TX.shape
    user_MXk, user_grad = user_MPbk.flatten(1, 2), out.user_grad_MPbk.flatten(1, 2)
    item_MTXk, item_grad = (x[:, : T * X].unflatten(1, (T, X)) for x in (item_MLk, out.item_grad_MLk))
    score_MTX = torch.linalg.vecdot(item_MTXk, user_MXk.unsqueeze(1))
    logarithm_MTX = F.logsigmoid(score_MTX)
    slope_MTX1 = torch.expm1(logarithm_MTX).mul_(weight_TX).unsqueeze(3)  # sigmoid(s) - 1
    for at in range(T):
        torch.mul(user_MXk, slope_MTX1[:, at], out=item_grad[:, at])
        user_grad.addcmul_(item_MTXk[:, at], slope_MTX1[:, at])
    return logarithm_MTX.mul_(weight_TX).sum(2).neg_()


def softplus(score: Tensor) -> tuple[Tensor, Tensor]:
    """(sigmoid, softplus), the latter at half its price; overwrites the scores."""
    score.clamp_(min=-80)  # below it sigmoid is 0 and its logarithm infinite
    slope = torch.sigmoid(score)
    return slope, score.sub_(torch.log(slope))


def blocks(
    shape: tuple[int, int, int, int], device: torch.device, filled: tuple[int, ...] | None = None
) -> Iterator[tuple[slice, slice, list[slice]]]:
    """Groups, rows and members whose scores [M, P, b, N] are held at once.

    All on a GPU; on a CPU no more than stay in cache, of one member, where a group is split only if it must be, and of
    `short` groups the filled rows alone.
    """
    M, P, b, N = shape
    if device.type != "cpu":
        yield slice(0, P), slice(0, b), [slice(0, M)]
        return
    groups, rows = max(1, _IN_CACHE // (b * N)), min(b, max(1, _IN_CACHE // N))
    heights = dict(short(filled, b, device))
    group = 0
    while group < P:
        last, height = group + 1, heights.get(group, b)
        while height == b and last < min(P, group + groups) and last not in heights:
            last += 1
        for row in range(0, height, rows):
            yield slice(group, last), slice(row, min(row + rows, height)), [slice(m, m + 1) for m in range(M)]
        group = last


def short(filled: tuple[int, ...] | None, b: int, device: torch.device) -> list[tuple[int, int]]:
    """(group, rows) of the groups that a worker shares with others, in which most of b positions may have no positive;
    none on a GPU, which takes all positions at once.

    Groups of a batch differ by a few positions, which makes none of them short: taken together they cost less.
    """
    if device.type != "cpu":
        return []
    return [(group, rows) for group, rows in enumerate(filled or ()) if rows < b - max(1, b // 16)]


def _add_negatives(
    user_MPbk: Tensor,
    item_MPNk: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    filled: tuple[int, ...] | None,
    out: Found,
) -> Tensor:
    """Add the gradients of weighted -log(1 - sigmoid(u . v)) of every user and its group's negatives; the sum [M].

    weights: base_Pb, scale_Pb and weight_PN, of which the weight of user u and negative j is base_u + scale_u weight_j
    (w3 + w4 kappa beta_uj of eq. 10-11).
    """
    base_Pb, scale_Pb, weight_PN = weights
    M, P, N, k = item_MPNk.shape
    user_grad, item_grad = out.user_grad_MPbk, out.item_grad_MLk[:, -P * N :].view(M, P, N, k)
    total_M = user_MPbk.new_zeros(M)
    for at, rows, of in blocks((M, *user_MPbk.shape[1:3], N), user_MPbk.device, filled):
        weight_pbN = torch.mul(scale_Pb[at, rows, None], weight_PN[at, None]).add_(base_Pb[at, rows, None])
        for members in of:
            user, item = user_MPbk[members, at, rows], item_MPNk[members, at]
            score = user.new_empty(*user.shape[:3], N)
            for u, v, into in zip(user, item, score, strict=True):
                torch.bmm(u, v.mT, out=into)
            slope, soft = softplus(score)
            total_M[members].add_(soft.mul_(weight_pbN).sum((1, 2, 3)))
            slope.mul_(weight_pbN)
            for u, v, dl, du, dv in zip(
                user, item, slope, user_grad[members, at, rows], item_grad[members, at], strict=True
            ):
                du.baddbmm_(dl, v)
                dv.baddbmm_(dl.mT, u)
    return total_M
