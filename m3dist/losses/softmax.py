"""A sampled softmax of cosines and its gradients in closed form, for the samples that UltraGCN's loss takes too.

-log(exp(s_ui / tau) / (exp(s_ui / tau) + sum_j exp(s_uj / tau))), where s is the cosine of two rows and j the negatives
of the positive's group (Wu et al., On the Effectiveness of Sampled Softmax Loss for Item Recommendation, TOIS 2024).
Lengths are sqrt(|x|^2 + 1e-8), so that a row of zeros has a finite gradient.

Shapes: M members; X = P b positives in P groups of b; N negatives that a group shares; s neighbours of each positive's
item; L = (s + 1) X + P N rows of items; k width of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.losses.logistic import Coefficients, Found, Samples, add_pairs, blocks, short

_EPSILON = 1e-8  # of squared lengths
COLDEST = 1 / 80  # the lowest temperature: exp of the largest score is a float32 number


@torch.no_grad()
def softmax(user_MPbk: Tensor, item_MLk: Tensor, samples: Samples, coefficients: Coefficients, tau: float) -> Found:
    """The softmax of every positive among its group's negatives, weighted by positive_Pb, + nu L_I.

    tau: the temperature, no less than `COLDEST`. Rows of items stand as in `logistic.ultragcn`. Weights of negatives
    play no part. L_I is UltraGCN's.
    """
    out = Found({}, torch.empty_like(user_MPbk), torch.empty_like(item_MLk))
    value_M = _put_softmax(user_MPbk, item_MLk, samples, tau, out)
    if samples.omega_sX is not None:
        weight_sX = samples.omega_sX * (coefficients.nu * samples.share_Pb.view(-1))
        out.terms["neighbours"] = add_pairs(user_MPbk, item_MLk, weight_sX, out).sum(1)
    out.terms["softmax"] = value_M
    return out


def _put_softmax(user_MPbk: Tensor, item_MLk: Tensor, samples: Samples, tau: float, out: Found) -> Tensor:
    """Write the gradients of the weighted softmax, of neighbours none; its sum over positives, [M].

    On a CPU a block of positives goes through all of it while its rows are in cache.
    """
    M, P, b, _ = user_MPbk.shape
    X, N = P * b, samples.weight_PN.shape[1]
    own_MPbk, own_grad = (x[:, -(X + P * N) : -P * N].unflatten(1, (P, b)) for x in (item_MLk, out.item_grad_MLk))
    far_MPNk, far_grad = (x[:, -P * N :].unflatten(1, (P, N)) for x in (item_MLk, out.item_grad_MLk))
    weight_Pb, value_MPb = samples.share_Pb * samples.positive_Pb, user_MPbk.new_empty(M, P, b)
    for group, there in short(samples.filled, b, user_MPbk.device):
        for x in (out.user_grad_MPbk, own_grad, value_MPb):
            x[:, group, there:] = 0
        if not there:
            far_grad[:, group] = 0
    for groups, rows, of in blocks((M, P, b, N), user_MPbk.device, samples.filled):
        for members in of:
            at, away = (members, groups, rows), (members, groups)
            block = _Rows(user_MPbk[at], own_MPbk[at], far_MPNk[away])
            far = torch.empty_like(block.far_MPNk) if rows.start else far_grad[away]
            grads = _Rows(out.user_grad_MPbk[at], own_grad[at], far)
            _put_block(block, weight_Pb[groups, rows], tau, grads, value_MPb[at])
            if rows.start:  # further rows of a group whose negatives have gradients from those before
                far_grad[away].add_(far)
    return value_MPb.sum((1, 2))


@dataclass(frozen=True)
class _Rows:
    """Of a block, or their gradients: users, their positives' items, and the negatives of their groups."""

    user_MPbk: Tensor
    own_MPbk: Tensor
    far_MPNk: Tensor


def _put_block(rows: _Rows, weight_Pb: Tensor, tau: float, grads: _Rows, value_MPb: Tensor) -> None:
    """Write a block's weighted losses and gradients.

    With a = u / (|u| tau) and w = v / |v|, all scores are a . w, and what a or w gain along themselves is taken away on
    the way back to u and v: their lengths do not matter. Scores are at most 1 / tau, so exp needs no maximum.
    """
    own_MPbk = rows.own_MPbk
    user_length, own_length, far_length = map(_inverse_length, (rows.user_MPbk, own_MPbk, rows.far_MPNk))
    user_length.div_(tau)
    a_MPbk, w_MPNk = rows.user_MPbk * user_length, rows.far_MPNk * far_length
    score_MPb1 = torch.linalg.vecdot(a_MPbk, own_MPbk).unsqueeze(3).mul_(own_length)
    a, w = a_MPbk.flatten(0, 1), w_MPNk.flatten(0, 1)
    each = torch.bmm(a, w.mT).exp_()
    total_MPb = each.sum(2).view_as(value_MPb)
    gap_MPb = total_MPb.log().sub_(score_MPb1.squeeze(3))
    slope_MPb = torch.sigmoid(gap_MPb).mul_(weight_Pb)
    torch.mul(F.softplus(gap_MPb), weight_Pb, out=value_MPb)
    share = (slope_MPb / total_MPb).flatten(0, 1).unsqueeze(2)
    push_MPNk = torch.bmm(each.mT, a * share).view_as(w_MPNk)  # the gradient of w
    pull_MPbk = torch.bmm(each, w).mul_(share).view_as(a_MPbk)  # of a
    slope_MPb1 = slope_MPb.unsqueeze(3).mul_(own_length)
    pull_MPbk.addcmul_(own_MPbk, slope_MPb1, value=-1)
    along_MPb1 = torch.linalg.vecdot(pull_MPbk, a_MPbk).unsqueeze(3)
    torch.mul(pull_MPbk, user_length, out=grads.user_MPbk)
    grads.user_MPbk.addcmul_(a_MPbk, along_MPb1.mul_(user_length).mul_(tau**2), value=-1)
    torch.mul(own_MPbk, score_MPb1.mul_(slope_MPb1).mul_(own_length), out=grads.own_MPbk)
    grads.own_MPbk.addcmul_(a_MPbk, slope_MPb1, value=-1)
    along_MPN1 = torch.linalg.vecdot(push_MPNk, w_MPNk).unsqueeze(3)
    torch.mul(push_MPNk, far_length, out=grads.far_MPNk)
    grads.far_MPNk.addcmul_(w_MPNk, along_MPN1.mul_(far_length), value=-1)


def _inverse_length(x: Tensor) -> Tensor:
    """Of rows [..., k]: [..., 1]."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().add_(_EPSILON).rsqrt_()
