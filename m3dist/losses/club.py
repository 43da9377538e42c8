"""Stage 1's bounds on the mutual information of v and z: CLUB (Cheng et al., ICML 2020; eq. 6 of the paper).

The columns of all modalities' v stand side by side, so that widths that differ cost nothing. Items without a modality
are masked, so that no shape depends on the data.

Shapes: M modalities; C items under contrast, of which c are this worker's anchors; D width of z, H of q's hidden layer;
W columns of all modalities.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from m3dist.losses.known import known
from m3dist.losses.masks import Columns


class Samples(NamedTuple):
    """v [C, W] and z_m [M, C, D] of the items under contrast; 1 where an item has the modality, else 0; whose columns
    of v are whose; and which items are this worker's anchors (low, high)."""

    v_CW: Tensor
    z_MCD: Tensor
    valid_MC: Tensor
    columns: Columns
    bounds: tuple[int, int]


QParameters = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # hidden [M, D, H], its bias [M, 1, H]; out [2, H, W], bias [2, 1, W]


def club(samples: Samples, q: QParameters) -> tuple[Tensor, Tensor]:
    """CLUB's bounds on I(v; z), [M], and the mean of -log q(v|z), over all M.

    q is a diagonal Gaussian whose mean and log variance come from one hidden layer; the latter is kept within +-5 by
    tanh, since a vanishing variance would make the bound explode. The bound is the mean over pairs of log q(v_i|z_i)
    minus log q(v_j|z_i) over all j; the average over j of a squared distance needs only the first two moments of v, so
    its cost is linear in C. The bounds' gradients are those of v and z, with q held fixed; the likelihood's are those
    of q, with v and z held fixed. Both are this worker's shares.
    """
    with torch.no_grad():
        found = _found(samples, [x.float() for x in q])
    bounds_M = _Bounds.apply(found, samples.columns, samples.v_CW, samples.z_MCD)
    return bounds_M, known(found.nll, q, found.q_grads)


class _Bounds(torch.autograd.Function):
    """Bounds whose gradients are known: the m-th depends on the m-th modality's v and z alone."""

    @staticmethod
    def forward(ctx, found: _Found, columns: Columns, v: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        ctx.columns, ctx.dtypes = columns, (v.dtype, z.dtype)
        ctx.save_for_backward(found.v_grad, found.z_grad)
        return found.bounds_M.clone()

    @staticmethod
    def backward(ctx, grad_M: Tensor):  # type: ignore[override]
        (v_grad, z_grad), (v_dtype, z_dtype) = ctx.saved_tensors, ctx.dtypes
        of_v = None if v_grad is None else (v_grad * ctx.columns.of(grad_M)).to(v_dtype)
        return None, None, of_v, (z_grad * grad_M.view(-1, 1, 1)).to(z_dtype)


class _Found(NamedTuple):
    """Values of `club` and gradients: of the bounds by v, where it has one, and z; of the likelihood by q."""

    bounds_M: Tensor
    nll: Tensor
    v_grad: Tensor | None
    z_grad: Tensor
    q_grads: list[Tensor]


def _found(samples: Samples, q: list[Tensor]) -> _Found:
    v_CW, z_MCD, valid_MC, columns, (low, high) = samples
    (hidden_MDH, hidden_bias, out_2HW, out_bias), v_CW = q, v_CW.float()
    v_cW, z_McD, widths, c = v_CW[low:high], z_MCD[:, low:high].float(), columns.widths, high - low
    weight_MC = valid_MC / valid_MC.sum(1, keepdim=True).clamp(min=1)
    weight_CW = columns.of(weight_MC.T)
    weight_cW, weighted_CW = weight_CW[low:high], weight_CW * v_CW
    first_W = weighted_CW.sum(0)
    variance_W = weighted_CW.mul_(v_CW).sum(0).addcmul_(first_W, first_W, value=-1)
    h_McH = torch.baddbmm(hidden_bias, z_McD, hidden_MDH).relu_()
    both_2cW = v_CW.new_empty(2, *v_cW.shape)
    for h, out, both in zip(h_McH, out_2HW.split(widths, dim=2), both_2cW.split(widths, dim=2), strict=True):
        torch.bmm(h.expand(2, -1, -1), out, out=both)
    mean_cW, bent_cW = both_2cW.add_(out_bias)
    bent_cW.tanh_()
    logvar_cW = bent_cW * 5
    precision_cW = torch.exp(-logvar_cW)
    by_raw_cW = bent_cW.square_().sub_(1).mul_(weight_cW).mul_(2.5)  # -weight / 2 d logvar / d raw
    off_cW, away_cW = mean_cW - v_cW, mean_cW - first_W
    square_cW = off_cW.square().mul_(precision_cW)
    further_cW = away_cW.square().add_(variance_W).mul_(precision_cW).sub_(square_cW)  # than this sample others are
    bounds_M = columns.member_RV @ (further_cW * weight_cW).sum(0).mul_(0.5)
    nll = (square_cW + logvar_cW).add_(math.log(2 * math.pi)).mul_(weight_cW).sum().mul_(0.5)

    # by mean and raw, of the bounds, whose gradient goes through q to z, and of the likelihood, whose goes to q
    precision_cW.mul_(weight_cW)
    slope_22cW = v_CW.new_empty(2, 2, *v_cW.shape)
    torch.mul(torch.sub(v_cW, first_W, out=away_cW), precision_cW, out=slope_22cW[0, 0])
    torch.mul(further_cW, by_raw_cW, out=slope_22cW[1, 0])
    torch.mul(off_cW, precision_cW, out=slope_22cW[0, 1])
    torch.mul(square_cW.sub_(1), by_raw_cW, out=slope_22cW[1, 1])
    by_h_M2kH = v_CW.new_empty(len(h_McH), 2, 2 * c, h_McH.shape[2])  # k = 2 c rows: the bounds', the likelihood's
    out_grad = torch.empty_like(out_2HW)
    parts = (slope_22cW.split(widths, dim=3), out_2HW.split(widths, dim=2), out_grad.split(widths, dim=2))
    for h, by_h, slope, out, into in zip(h_McH, by_h_M2kH, *parts, strict=True):
        torch.bmm(slope.flatten(1, 2), out.mT, out=by_h)
        torch.bmm(h.T.expand(2, -1, -1), slope[:, 1], out=into)
    by_h_M2cH = by_h_M2kH.sum(1).unflatten(1, (2, c)).mul_((h_McH > 0).unsqueeze(1))
    by_hidden = by_h_M2cH[:, 1]
    q_grads = [
        torch.bmm(z_McD.mT, by_hidden), by_hidden.sum(1, keepdim=True), out_grad, slope_22cW[:, 1].sum(1, keepdim=True)
    ]  # fmt: skip
    z_grad = torch.bmm(by_h_M2cH[:, 0], hidden_MDH.mT)
    if c < len(v_CW):
        z_grad = torch.zeros_like(z_MCD, dtype=torch.float32).index_copy_(
            1, torch.arange(low, high, device=z_grad.device), z_grad
        )
    v_grad = None
    if samples.v_CW.requires_grad:  # as a sample, and as one of the others
        v_grad = (v_CW * precision_cW.sum(0)).sub_((precision_cW * mean_cW).sum(0)).mul_(weight_CW)
        v_grad[low:high] += slope_22cW[0, 1]
    return _Found(bounds_M, nll, v_grad, z_grad, q_grads)
