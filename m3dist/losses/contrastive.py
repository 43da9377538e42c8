"""Stage 1's contrast between modalities (eq. 2-4). Items without a modality are masked, so that no shape depends on the
data.

Shapes: M modalities; C items under contrast, of which c are this worker's anchors; D width of z.
"""

from __future__ import annotations

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
