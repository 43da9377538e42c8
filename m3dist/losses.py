"""Losses as pure functions of tensors. Every one is a sum over the samples given divided by the count of the
global batch, so that workers' shares add up to the loss of the whole.

Shapes: b positives (this worker's), N shared negatives, n per-positive negatives, d width, C items under
contrast, c this worker's share of them, E environments. Where a frozen backbone's projection is fitted: d id width,
c content width, k = d + c, D width of a representation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

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


class Fit(NamedTuple):
    """What `projection_fit` finds over its rows: sums of losses, gradients and, on demand, second moments."""

    loss: Tensor  # float64
    gradient_cD: Tensor  # of W
    bias_c: Tensor
    second_D: Tensor | None  # sum over rows of |u_c|^2 pull_D^2


_BLOCK = 512  # rows whose [512, N] temporaries stay in cache


@torch.no_grad()
def projection_fit(
    user_bk: Tensor, id_bd: Tensor, x_bD: Tensor, weight_b: Tensor, id_Nd: Tensor, x_ND: Tensor, base: float,
    scale_b: Tensor, weight_N: Tensor, W_cD: Tensor, bias_c: Tensor, moments: bool = False,
) -> Fit:  # fmt: skip
    """The backbone loss of b positives and N shared negatives where only the content projection (W, bias) is free.

    score(u, i) = u_id . v_id + u_c . (W x_i + bias). A sample's gradient with respect to W is the outer product of u_c
    and `pull` = sum_i dl/ds_i x_i, so everything is found in one pass without autograd; negatives' gradients are
    collected per item, [N, c], before they meet x. A row's numbers do not depend on the rows of other models.
    """
    d, c = id_Nd.shape[1], len(W_cD)
    with torch.autocast(user_bk.device.type, enabled=False):
        item_kN = torch.cat([id_Nd, torch.addmm(bias_c, x_ND, W_cD.T)], dim=1).T.contiguous()
        loss = torch.zeros((), dtype=torch.float64, device=user_bk.device)
        pull_Nc = torch.zeros(len(x_ND), c, dtype=x_ND.dtype, device=x_ND.device)
        gradient_cD, bias_grad_c = torch.zeros_like(W_cD), torch.zeros_like(bias_c)
        second_D = torch.zeros_like(W_cD[0]) if moments else None
        for at in range(0, len(user_bk), _BLOCK):
            user, x, scale, weight = (part[at : at + _BLOCK] for part in (user_bk, x_bD, scale_b, weight_b))
            content = user[:, d:]
            own_b = (user[:, :d] * id_bd[at : at + _BLOCK]).sum(1)
            own_b += (content * torch.addmm(bias_c, x, W_cD.T)).sum(1)
            score = torch.mm(user, item_kN).clamp_(min=-80)  # below it sigmoid is 0 and its logarithm infinite
            slope = torch.sigmoid(score)
            soft = score.sub_(torch.log(slope))  # softplus, at half its price
            loss += base * soft.sum(dtype=torch.float64) + (scale @ (soft @ weight_N)).double()
            loss += (weight * F.softplus(-own_b)).sum(dtype=torch.float64)
            slope *= torch.outer(scale, weight_N, out=soft).add_(base)
            own_slope = (weight * torch.sigmoid(-own_b)).neg_()
            own_pull = content * own_slope[:, None]
            pull_Nc.addmm_(slope.T, content)
            gradient_cD.addmm_(own_pull.T, x)
            bias_grad_c += own_pull.sum(0)
            if second_D is not None:
                pull = torch.mm(slope, x_ND).addcmul_(own_slope[:, None], x)
                second_D += content.square().sum(1) @ pull.square_()
        gradient_cD.addmm_(pull_Nc.T, x_ND)
        bias_grad_c += pull_Nc.sum(0)
    return Fit(loss, gradient_cD, bias_grad_c, second_D)


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
