"""Stage 1's losses: contrast between modalities, and bounds on mutual information.

Items without a modality are masked, so that no shape depends on the data.

Shapes: M modalities; C items under contrast, of which c are this worker's anchors; D width of z, d of one modality's v.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.losses.known import known


class Anchors:
    """Which of C items are this worker's anchors, and which pairs of rows of [z; z_{M+1}] eq. 3 sums over: pair_kK, of
    2 c rows of anchors and 2 C of all items, 1 for z with z, z with z_{M+1} and z_{M+1} with itself, but not of an item
    with itself."""

    def __init__(self, C: int, bounds: tuple[int, int], device: torch.device):
        self.low, self.high = bounds
        other_cC = ~torch.eye(C, dtype=torch.bool)[self.low : self.high]
        pair = torch.cat([other_cC.repeat(1, 2), torch.cat([torch.zeros_like(other_cC), other_cC], dim=1)])
        self.pair_kK = pair.float().to(device)


def contrastive(z_MCD: Tensor, common_CD: Tensor, valid_MC: Tensor, tau: Tensor, anchors: Anchors) -> Tensor:
    """Eq. 2-4 of the paper: the sum over modalities of means over their items, this worker's share.

    z, common: z_m and z_{M+1}. valid: 1 where an item has the modality, else 0. The sum of eq. 3 leaves out j = i, as
    printed. A modality with fewer than two items has no negative and a loss of 0.
    """
    z_MCD, common_CD = F.normalize(z_MCD, dim=2), F.normalize(common_CD, dim=1)
    with torch.autocast(z_MCD.device.type, enabled=False), torch.no_grad():
        value, *gradients = _contrastive(z_MCD.float(), common_CD.float(), valid_MC, tau.float(), anchors)
    gradients = [x.to(y.dtype) for x, y in zip(gradients, (z_MCD, common_CD, tau), strict=True)]
    return known(value, [z_MCD, common_CD, tau], gradients)


def _contrastive(
    z_MCD: Tensor, common_CD: Tensor, valid_MC: Tensor, tau: Tensor, anchors: Anchors
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value of `contrastive` of rows of length 1, and its gradients of z, common and tau.

    One product has the logits of all three kinds of pairs, z with z, z with common and common with common; the fourth,
    common with z, is masked. Cosines are at most 1, so exp((s - 1) / tau) needs no maximum.
    """
    low, high, (M, C, D) = anchors.low, anchors.high, z_MCD.shape
    c = high - low
    both_MKD = torch.cat([z_MCD, common_CD.expand(M, C, D)], dim=1)  # K = 2 C
    some_MkD = both_MKD.view(M, 2, C, D)[:, :, low:high].reshape(M, 2 * c, D)
    count_M = valid_MC.sum(1, dtype=torch.float32)
    weight_Mc = valid_MC[:, low:high] * ((count_M > 1) / count_M.clamp(min=1)).unsqueeze(1)
    there_MkK = anchors.pair_kK * valid_MC.repeat(1, 2).unsqueeze(1)
    score_MkK = torch.bmm(some_MkD, both_MKD.mT)
    each_MkK = torch.sub(score_MkK, 1).div_(tau).exp_().mul_(there_MkK)
    total_Mc = each_MkK.view(M, 2, c, 2 * C).sum((1, 3)).clamp(min=1e-30)
    positive_Mc = score_MkK.view(M, 2, c, 2, C)[:, 0, :, 1].diagonal(low, 1, 2)
    value = (weight_Mc * (total_Mc.log() + (1 - positive_Mc) / tau)).sum()
    share_MkK = each_MkK.mul_((weight_Mc / total_Mc).repeat(1, 2).unsqueeze(2))  # the softmax, weighted
    grad_tau = ((weight_Mc * positive_Mc).sum() - (share_MkK * score_MkK).sum()) / tau**2
    grad_MKD = torch.bmm(share_MkK.mT, some_MkD).view(M, 2, C, D)
    of_anchors = torch.bmm(share_MkK, both_MKD).view(M, 2, c, D)
    of_anchors.sub_(
        some_MkD.view(M, 2, c, D).flip(1) * weight_Mc[:, None, :, None]
    )  # each of a positive pair pulls the other
    grad_MKD[:, :, low:high] += of_anchors
    grad_MKD.div_(tau)
    return value, grad_MKD[:, 0], grad_MKD[:, 1].sum(0), grad_tau


class ClubSamples(NamedTuple):
    """v_m [M, C, w] and z_m [M, C, D] of the items under contrast, which of them have the modality, the columns of v
    that each modality has, and which items are this worker's anchors (low, high)."""

    v_MCw: Tensor
    z_MCD: Tensor
    valid_MC: Tensor
    wide_Mw: Tensor
    bounds: tuple[int, int]


QParameters = tuple[Tensor, Tensor, Tensor, Tensor]  # hidden [M, D, H] and bias [M, 1, H]; out [M, H, 2 w] and bias


def club(samples: ClubSamples, q: QParameters) -> tuple[Tensor, Tensor]:
    """CLUB's bounds on I(v; z) (Cheng et al. 2020, eq. 6 of the paper), [M], and the mean of -log q(v|z), over all M.

    q is a diagonal Gaussian whose mean and log variance come from one hidden layer; the latter is kept within +-5 by
    tanh, since a vanishing variance would make the bound explode. The bound is the mean over pairs of log q(v_i|z_i)
    minus log q(v_j|z_i) over all j; the average over j of a squared distance needs only the first two moments of v, so
    its cost is linear in C. The bounds' gradients are those of v and z, with q held fixed; the likelihood's are those
    of q, with v and z held fixed. Both are this worker's shares.
    """
    with torch.no_grad():
        bounds_M, nll, of_samples, of_q = _club(samples, [x.float() for x in q])
    inputs = [samples.v_MCw, samples.z_MCD]
    of_samples = [x.to(y.dtype) for x, y in zip(of_samples, inputs, strict=True)]
    return _each(bounds_M, inputs, of_samples), known(nll, q, of_q)


def _each(value_M: Tensor, inputs: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """Values of which the m-th depends on the m-th part of every input."""
    return _Each.apply(value_M, *inputs, *gradients)


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value_M: Tensor, *both: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(*both[len(both) // 2 :])
        return value_M.clone()

    @staticmethod
    def backward(ctx, grad_M: Tensor):  # type: ignore[override]
        parts = [grad_M.view(-1, *[1] * (x.ndim - 1)) * x for x in ctx.saved_tensors]
        return None, *parts, *[None] * len(parts)


def _club(samples: ClubSamples, q: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Values of `club`, and its gradients: of the bounds by v and z, and of the likelihood by q's parameters."""
    v_MCw, z_MCD, valid_MC, wide_Mw, (low, high) = samples
    (hidden_MDH, hidden_bias, out_MHk, out_bias), w = q, v_MCw.shape[2]
    v_MCw = v_MCw.float()
    v_Mcw, z_McD = v_MCw[:, low:high], z_MCD[:, low:high].float()
    weight_MC = valid_MC / valid_MC.sum(1, keepdim=True).clamp(min=1)
    weight_Mcw = weight_MC[:, low:high, None] * wide_Mw[:, None]
    h_McH = torch.baddbmm(hidden_bias, z_McD, hidden_MDH).relu_()
    mean_Mcw, raw_Mcw = torch.baddbmm(out_bias, h_McH, out_MHk).split(w, dim=2)
    bent_Mcw = raw_Mcw.tanh()
    logvar_Mcw = bent_Mcw * 5
    precision_Mcw = logvar_Mcw.neg().exp_()
    bend_Mcw = bent_Mcw.square().mul_(-5).add_(5)  # d logvar / d raw
    first_M1w = torch.bmm(weight_MC.unsqueeze(1), v_MCw)
    second_M1w = torch.bmm(weight_MC.unsqueeze(1), v_MCw.square())
    own_Mcw = v_Mcw - mean_Mcw
    square_Mcw = own_Mcw.square().mul_(precision_Mcw)
    others_Mcw = (second_M1w + mean_Mcw * (mean_Mcw - 2 * first_M1w)).mul_(precision_Mcw)
    bounds_M = 0.5 * (weight_Mcw * (others_Mcw - square_Mcw)).sum((1, 2))
    nll = 0.5 * (weight_Mcw * (square_Mcw + logvar_Mcw + math.log(2 * math.pi))).sum()

    weighted_Mcw = weight_Mcw * precision_Mcw
    # the bound by mean and logvar, through q to z; by v, as a sample and as one of the others
    by_mean = weighted_Mcw * (v_Mcw - first_M1w)
    by_raw = 0.5 * weight_Mcw * (square_Mcw - others_Mcw) * bend_Mcw
    passes_McH = h_McH > 0
    z_grad, v_grad = torch.zeros_like(z_MCD, dtype=torch.float32), torch.empty_like(v_MCw)
    by_h = torch.bmm(torch.cat([by_mean, by_raw], dim=2), out_MHk.mT).mul_(passes_McH)
    z_grad[:, low:high] = torch.bmm(by_h, hidden_MDH.mT)
    total_M1w, at_mean_M1w = weighted_Mcw.sum(1, keepdim=True), (weighted_Mcw * mean_Mcw).sum(1, keepdim=True)
    torch.mul(weight_MC.unsqueeze(2), v_MCw * total_M1w - at_mean_M1w, out=v_grad)
    v_grad[:, low:high] -= weighted_Mcw * own_Mcw
    # the likelihood by q's parameters
    by_out = torch.cat([weighted_Mcw * -own_Mcw, 0.5 * weight_Mcw * (1 - square_Mcw) * bend_Mcw], dim=2)
    by_hidden = torch.bmm(by_out, out_MHk.mT).mul_(passes_McH)
    of_q = [
        torch.bmm(z_McD.mT, by_hidden), by_hidden.sum(1, keepdim=True), torch.bmm(h_McH.mT, by_out),
        by_out.sum(1, keepdim=True),
    ]  # fmt: skip
    return bounds_M, nll, [v_grad, z_grad], of_q
