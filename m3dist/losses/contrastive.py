"""Stage 1's losses: contrast between modalities, and bounds on mutual information.

Items without a modality are masked, so that no shape depends on the data.

Shapes: M modalities; C items under contrast, of which c are this worker's anchors; D width of z, d of one modality's v.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.losses.known import known


def contrastive(z_MCD: Tensor, common_CD: Tensor, valid_MC: Tensor, tau: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Eq. 2-4 of the paper: the sum over modalities of means over their items, this worker's share.

    z, common: z_m and z_{M+1}. valid, bool: which items have the modality. bounds: of this worker's anchors among the C
    items. The sum of eq. 3 leaves out j = i, as printed. A modality with fewer than two items has no negative and a loss
    of 0.
    """
    z_MCD, common_CD = F.normalize(z_MCD, dim=2), F.normalize(common_CD, dim=1)
    with torch.autocast(z_MCD.device.type, enabled=False), torch.no_grad():
        value, *gradients = _contrastive(z_MCD.float(), common_CD.float(), valid_MC, tau.float(), bounds)
    gradients = [x.to(y.dtype) for x, y in zip(gradients, (z_MCD, common_CD, tau), strict=True)]
    return known(value, [z_MCD, common_CD, tau], gradients)


def _contrastive(
    z_MCD: Tensor, common_CD: Tensor, valid_MC: Tensor, tau: Tensor, bounds: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value of `contrastive` of rows of length 1, and its gradients of z, common and tau.

    One product has the logits of all three kinds of pairs, z with z, z with common and common with common; the fourth,
    common with z, is masked. Cosines are at most 1, so exp((s - 1) / tau) needs no maximum.
    """
    (low, high), (M, C, D) = bounds, z_MCD.shape
    c = high - low
    both_MKD = torch.cat([z_MCD, common_CD.expand(M, C, D)], dim=1)  # K = 2 C
    anchors_MkD = both_MKD.view(M, 2, C, D)[:, :, low:high].reshape(M, 2 * c, D)
    count_M = valid_MC.sum(1, dtype=torch.float32)
    weight_Mc = valid_MC[:, low:high] * ((count_M > 1) / count_M.clamp(min=1)).unsqueeze(1)
    paired = torch.ones(2, c, 2, C, dtype=torch.bool, device=z_MCD.device)
    paired[1, :, 0] = False
    itself = torch.eye(C, dtype=torch.bool, device=z_MCD.device)[low:high]
    paired &= ~itself[None, :, None, :]
    there_MkK = paired.view(2 * c, 2 * C) & valid_MC.repeat(1, 2).unsqueeze(1)
    score_MkK = torch.bmm(anchors_MkD, both_MKD.mT)
    each_MkK = torch.sub(score_MkK, 1).div_(tau).exp_().mul_(there_MkK)
    total_Mc = each_MkK.view(M, 2, c, 2 * C).sum((1, 3)).clamp(min=1e-30)
    positive_Mc = score_MkK.view(M, 2, c, 2, C)[:, 0, :, 1].diagonal(low, 1, 2)
    value = (weight_Mc * (total_Mc.log() + (1 - positive_Mc) / tau)).sum()
    share_MkK = each_MkK.mul_((weight_Mc / total_Mc).repeat(1, 2).unsqueeze(2))  # the softmax, weighted
    grad_tau = ((weight_Mc * positive_Mc).sum() - (share_MkK * score_MkK).sum()) / tau**2
    grad_MKD = torch.bmm(share_MkK.mT, anchors_MkD).view(M, 2, C, D)
    of_anchors = torch.bmm(share_MkK, both_MKD).view(M, 2, c, D)
    anchors = anchors_MkD.view(M, 2, c, D)
    of_anchors.sub_(anchors.flip(1) * weight_Mc[:, None, :, None])  # each of a positive pair pulls the other
    grad_MKD[:, :, low:high] += of_anchors
    grad_MKD.div_(tau)
    return value, grad_MKD[:, 0], grad_MKD[:, 1].sum(0), grad_tau


def gaussian_nll(v_cd: Tensor, mean_cd: Tensor, logvar_cd: Tensor, weight_c: Tensor) -> Tensor:
    """-log q(v|z) of a diagonal Gaussian, a weighted sum over samples; constants included."""
    square = (v_cd - mean_cd).square() * torch.exp(-logvar_cd)
    return 0.5 * weight_c @ (square + logvar_cd + math.log(2 * math.pi)).sum(1)


def club(v_Cd: Tensor, mean_cd: Tensor, logvar_cd: Tensor, valid_C: Tensor, bounds: tuple[int, int]) -> Tensor:
    """CLUB's bound on I(v; z) (Cheng et al. 2020, eq. 6 of the paper), this worker's share of the mean over valid items.

    Mean over pairs of log q(v_i|z_i) minus log q(v_j|z_i) over all j of the valid items. The average over j of a squared
    distance needs only the first two moments of v, so the cost is linear in C. mean, logvar: q of the c anchors, which
    stand within `bounds`.
    """
    weight_C = valid_C / valid_C.sum().clamp(min=1)
    first_d, second_d = weight_C @ v_Cd, weight_C @ v_Cd.square()
    v_cd = v_Cd[bounds[0] : bounds[1]]
    own = (v_cd - mean_cd).square()
    others = second_d - 2 * mean_cd * first_d + mean_cd.square()
    return 0.5 * weight_C[bounds[0] : bounds[1]] @ ((others - own) * torch.exp(-logvar_cd)).sum(1)
