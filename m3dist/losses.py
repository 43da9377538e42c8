"""Losses as pure functions of tensors. Every one is a sum over the samples given divided by the count of the
global batch, so that workers' shares add up to the loss of the whole.

Shapes: b positives (this worker's), N shared negatives, n per-positive negatives, d width, C items under
contrast, c this worker's share of them, E environments.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class _SharedNegatives(torch.autograd.Function):
    """sum_bj (base + scale_b weight_j) softplus(u_b . v_j), with its gradient found in the same pass.

    The weights of UltraGCN are of rank one beside a constant, so neither they nor the probabilities are kept:
    forward leaves only the gradients of its two [b, d] and [N, d] factors.
    """

    @staticmethod
    def forward(ctx, user_bd: Tensor, item_Nd: Tensor, base: float, scale_b: Tensor, weight_N: Tensor) -> Tensor:  # type: ignore[override]
        score_bN = user_bd @ item_Nd.T
        soft_bN = F.softplus(score_bN)
        total = base * soft_bN.sum(dtype=torch.float64) + (scale_b @ (soft_bN @ weight_N)).double()
        slope_bN = torch.sigmoid(score_bN, out=score_bN)
        slope_bN *= torch.outer(scale_b, weight_N, out=soft_bN).add_(base)
        ctx.save_for_backward(slope_bN @ item_Nd, slope_bN.T @ user_bd)
        return total.to(user_bd.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        user_grad, item_grad = ctx.saved_tensors
        return user_grad * grad, item_grad * grad, None, None, None


def shared_negatives(user_bd: Tensor, item_Nd: Tensor, base: float, scale_b: Tensor, weight_N: Tensor) -> Tensor:
    """Weighted BCE of b users against N negatives they share: -log(1 - sigmoid(u . v)), summed over b and N.

    The weight of (u, j) is base + scale_u weight_j: UltraGCN's w3 + w4 kappa beta_uj (Mao et al. 2021, eq. 10-11).
    """
    return _SharedNegatives.apply(user_bd, item_Nd, base, scale_b, weight_N)


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


def contrastive(z_cd: Tensor, common_cd: Tensor, z_Cd: Tensor, common_Cd: Tensor, tau: Tensor, start: int) -> Tensor:
    """Eq. 2-4 of the paper, summed over this worker's c anchors; the negatives are all C items.

    z, common: z_m and z_{M+1} of the anchors (c) and of all items (C); anchor i is item start + i. The sum of
    eq. 3 leaves out j = i, as printed. With C = 1 there is no negative and the loss is 0.
    """
    if len(z_Cd) < 2:
        return z_cd.sum() * 0
    z_cd, common_cd, z_Cd, common_Cd = (F.normalize(x, dim=1) for x in (z_cd, common_cd, z_Cd, common_Cd))
    here = torch.arange(len(z_cd), device=z_cd.device)
    logits = torch.cat([z_cd @ common_Cd.T, z_cd @ z_Cd.T, common_cd @ common_Cd.T], dim=1) / tau
    C = len(z_Cd)
    own = torch.stack([here + start, here + start + C, here + start + 2 * C], dim=1)
    logits = logits.scatter(1, own, float("-inf"))
    positive_c = (z_cd * common_cd).sum(1) / tau
    return (torch.logsumexp(logits, dim=1) - positive_c).sum()


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


def environment_variance(content_Ebc: list[Tensor], pull_EbD: list[Tensor]) -> Tensor:
    """The Var-term (after InvRL, Du et al. 2022): how much environments' gradients differ, per dimension [D].

    One pair per environment: content rows u_c [b_e, c] and pulls dl/ds-weighted inputs [b_e, D], whose outer
    product is a sample's gradient with respect to the content projection. The squared deviation of the environments'
    mean gradients from their mean, summed over environments and c, less what sampling alone would give (the
    within-environment variance over b_e): a batch's noise would otherwise drown the difference. Never below 0.
    """
    gradients, noise = [], []
    for content_bc, pull_bD in zip(content_Ebc, pull_EbD, strict=True):
        n = len(pull_bD)
        gradient_cD = content_bc.T @ pull_bD / n
        second_D = content_bc.square().sum(1) @ pull_bD.square() / n
        gradients.append(gradient_cD)
        noise.append((second_D - gradient_cD.square().sum(0)) / max(n - 1, 1))
    E = len(gradients)
    gradient_EcD = torch.stack(gradients)
    deviation_D = (gradient_EcD - gradient_EcD.mean(0)).square().sum(dim=(0, 1))
    return (deviation_D - (1 - 1 / E) * torch.stack(noise).sum(0)).clamp(min=0)
