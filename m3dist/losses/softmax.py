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
    out = Found({}, torch.zeros_like(user_MPbk), torch.zeros_like(item_MLk))
    if samples.omega_sX is not None:
        weight_sX = samples.omega_sX * (coefficients.nu * samples.share_Pb.view(-1))
        out.terms["neighbours"] = add_pairs(user_MPbk, item_MLk, weight_sX, out).sum(1)
    out.terms["softmax"] = add_softmax(user_MPbk, item_MLk, samples, tau, out)
    return out


def add_softmax(user_MPbk: Tensor, item_MLk: Tensor, samples: Samples, tau: float, out: Found) -> Tensor:
    """Add the gradients of the weighted softmax; its sum over positives, [M].

    With a = u / (|u| tau) and w = v / |v|, all scores are a . w, and what a or w gain along themselves is taken away on
    the way back to u and v: their lengths do not matter.
    """
    M, P, b, k = user_MPbk.shape
    X, N = P * b, samples.weight_PN.shape[1]
    user_MXk, user_grad = user_MPbk.flatten(1, 2), out.user_grad_MPbk.flatten(1, 2)
    item_MJk, item_grad = (x[:, -(X + P * N) :] for x in (item_MLk, out.item_grad_MLk))
    own_MXk, own_grad, far_grad = item_MJk[:, :X], item_grad[:, :X], item_grad[:, X:]
    user_length_MX1, item_length_MJ1 = _inverse_length(user_MXk).div_(tau), _inverse_length(item_MJk)
    own_length_MX1, far_length_MJ1 = item_length_MJ1[:, :X], item_length_MJ1[:, X:]
    a_MXk, far_MJk = user_MXk * user_length_MX1, item_MJk[:, X:] * far_length_MJ1
    score_MX1 = torch.linalg.vecdot(a_MXk, own_MXk).unsqueeze(2).mul_(own_length_MX1)
    weight_Pb = samples.share_Pb * samples.positive_Pb
    found = _among(a_MXk.view(M, P, b, k), far_MJk.view(M, P, N, k), score_MX1.view(M, P, b), weight_Pb, samples.filled)
    slope_MX1 = found.slope_MPb.view(M, X, 1) * own_length_MX1
    pull_MXk = found.pull_MPbk.view(M, X, k).addcmul_(own_MXk, slope_MX1, value=-1)  # the gradient of a
    along_MX1 = torch.linalg.vecdot(pull_MXk, a_MXk).unsqueeze(2)
    user_grad.addcmul_(pull_MXk, user_length_MX1)
    user_grad.addcmul_(a_MXk, along_MX1.mul_(user_length_MX1).mul_(tau**2), value=-1)
    own_grad.addcmul_(a_MXk, slope_MX1, value=-1)
    own_grad.addcmul_(own_MXk, score_MX1.mul_(slope_MX1).mul_(own_length_MX1))
    push_MJk = found.push_MPNk.view(M, P * N, k)
    along_MJ1 = torch.linalg.vecdot(push_MJk, far_MJk).unsqueeze(2)
    far_grad.addcmul_(push_MJk, far_length_MJ1)
    far_grad.addcmul_(far_MJk, along_MJ1.mul_(far_length_MJ1), value=-1)
    return found.value_MPb.sum((1, 2))


def _inverse_length(x_MXk: Tensor) -> Tensor:
    """[M, X, 1]"""
    return torch.linalg.vector_norm(x_MXk, dim=2, keepdim=True).square_().add_(_EPSILON).rsqrt_()


@dataclass(frozen=True)
class _Among:
    """Of every positive its weighted loss, the slope of that, and the gradient that its negatives give it (pull); of
    every negative its gradient (push)."""

    value_MPb: Tensor
    slope_MPb: Tensor
    pull_MPbk: Tensor
    push_MPNk: Tensor


def _among(
    a_MPbk: Tensor, far_MPNk: Tensor, score_MPb: Tensor, weight_Pb: Tensor, filled: tuple[int, ...] | None
) -> _Among:
    """Positives of given scores among their groups' negatives. Scores are at most 1 / tau, so exp needs no maximum."""
    M, _, N, _ = far_MPNk.shape
    out = _Among(
        torch.empty_like(score_MPb), torch.empty_like(score_MPb), torch.empty_like(a_MPbk), torch.zeros_like(far_MPNk)
    )
    for group, rows_there in short(filled, a_MPbk.shape[2], a_MPbk.device):
        for x in (out.value_MPb, out.slope_MPb, out.pull_MPbk):
            x[:, group, rows_there:] = 0
    for groups, rows, of in blocks((M, *a_MPbk.shape[1:3], N), a_MPbk.device, filled):
        weight_pb = weight_Pb[groups, rows]
        for members in of:
            at = (members, groups, rows)
            a, far, pull = a_MPbk[at].flatten(0, 1), far_MPNk[members, groups].flatten(0, 1), out.pull_MPbk[at]
            each = torch.bmm(a, far.mT).exp_()
            total = each.sum(2)
            gap = total.log().view_as(score_MPb[at]) - score_MPb[at]
            slope = torch.mul(torch.sigmoid(gap), weight_pb, out=out.slope_MPb[at])
            torch.mul(F.softplus(gap), weight_pb, out=out.value_MPb[at])
            share = (slope.flatten(0, 1) / total).unsqueeze(2)
            pull = torch.bmm(each, far, out=pull.flatten(0, 1)).mul_(share)
            out.push_MPNk[members, groups].flatten(0, 1).baddbmm_(each.mT, a * share)
    return out
