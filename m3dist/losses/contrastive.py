"""Stage 1's contrast between modalities (eq. 2-4). Items without a modality are masked, so that no shape depends on the
data.

Shapes: M modalities; C items under contrast, of which c are this worker's anchors; D width of z; N = M + 1, with
z_{M+1} behind; K = 2 C rows of [z; z_{M+1}].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.losses.known import known


class Anchors(NamedTuple):
    """Which of the C items under contrast are this worker's anchors: those from low on, before high."""

    low: int
    high: int


def contrastive(z_MCD: Tensor, common_CD: Tensor, valid_MC: Tensor, tau: Tensor, anchors: Anchors) -> Tensor:
    """Eq. 2-4 of the paper: the sum over modalities of means over their items, this worker's share.

    z, common: z_m and z_{M+1}. valid: 1 where an item has the modality, else 0. The sum of eq. 3 leaves out j = i, as
    printed. A modality with fewer than two items has no negative and a loss of 0.
    """
    unit_NCD = F.normalize(torch.cat([z_MCD, common_CD.unsqueeze(0)]), dim=2)
    with torch.autocast(z_MCD.device.type, enabled=False), torch.no_grad():
        value, *gradients = _contrastive(unit_NCD.float(), valid_MC, tau.float(), anchors)
    inputs = [unit_NCD, tau]
    return known(value, inputs, [x.to(y.dtype) for x, y in zip(gradients, inputs, strict=True)])


def _contrastive(unit_NCD: Tensor, valid_MC: Tensor, tau: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor, Tensor]:
    """Value of `contrastive` of rows of length 1, those of z and behind them common's, and its gradients of them and
    of tau.

    Eq. 3 sums over pairs of z with z, z with common and common with common; the last are the same whatever the
    modality, which says only who counts. Which items count is asked after the exponentials, of their sums and of the
    rows that they weigh. Cosines are at most 1 and tau is held at 0.1 at least, so that no exponential needs a maximum.
    """
    (low, high), (M, C), D = anchors, valid_MC.shape, unit_NCD.shape[2]
    z_MCD, common_CD = unit_NCD[:M], unit_NCD[M]
    some_McD, own_cD = unit_NCD[:M, low:high], common_CD[low:high]
    count_M = valid_MC.sum(1, dtype=torch.float32)
    weight_Mc = valid_MC[:, low:high] * ((count_M > 1) / count_M.clamp(min=1)).unsqueeze(1)
    valid_MK1 = valid_MC.repeat(1, 2).unsqueeze(2)
    both_MKD = torch.cat([z_MCD, common_CD.expand(M, C, D)], dim=1).mul_(valid_MK1)
    cold_NcD = unit_NCD[:, low:high] / tau
    each_McK = torch.bmm(cold_NcD[:M], both_MKD.mT).exp_()
    each_McK.unflatten(2, (2, C)).diagonal(low, 1, 3).zero_()  # no item with itself
    common_cC = torch.mm(cold_NcD[M], common_CD.T).exp_()
    common_cC.diagonal(low).zero_()
    total_Mc = torch.bmm(each_McK, valid_MK1).squeeze(2).addmm_(valid_MC, common_cC.T)
    rate_Mc = weight_Mc / total_Mc.clamp_(min=torch.finfo(torch.float32).tiny)  # of an exponential: its weighted share
    value = (weight_Mc * total_Mc.log_().sub_(torch.linalg.vecdot(cold_NcD[:M], own_cD))).sum()
    pull_McD = torch.bmm(each_McK, both_MKD).mul_(rate_Mc.unsqueeze(2))
    pull_McD.addcmul_(weight_Mc.unsqueeze(2), own_cD, value=-1)
    push_MKD = torch.bmm(each_McK.mT, some_McD * rate_Mc.unsqueeze(2)).mul_(valid_MK1)
    share_cC = common_cC.mul_(rate_Mc.T @ valid_MC)
    pull_cD, push_CD = share_cC @ common_CD, share_cC.T @ own_cD
    along = (pull_McD * some_McD).sum() + (pull_cD * own_cD).sum()
    grad_NCD = torch.cat([push_MKD[:, :C], push_CD.add_(push_MKD[:, C:].sum(0)).unsqueeze(0)])
    grad_NCD[:M, low:high].add_(pull_McD)
    grad_NCD[M, low:high].add_(pull_cD).sub_((weight_Mc.unsqueeze(2) * some_McD).sum(0))
    return value, grad_NCD.div_(tau), along / -(tau * tau)
