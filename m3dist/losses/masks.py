"""Stage 2's loss of masks (eq. 9-10) and its gradients, of all representations at once: their columns side by side.

Shapes: R representations; E environments; c width of users' content; V columns of all representations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.losses.projection import Fit

_SURE = 3.0  # standard errors of chance beyond which environments differ
_VECTORS = 64  # columns that a CPU's widest instructions add up at once


def _sum(x: Tensor, dim: int | tuple[int, ...] = 0) -> Tensor:
    """Sum of [..., V] over other dimensions than the last, of each column by itself.

    What vector instructions leave over a CPU adds up in another order: bits would depend on how many other columns
    there are.
    """
    left = -x.shape[-1] % _VECTORS
    if x.device.type != "cpu" or not left:
        return x.sum(dim)
    return F.pad(x, (0, left)).sum(dim)[..., :-left]


class Columns:
    """Which columns are whose, as numbers on their device. widths: of the representations, in order."""

    def __init__(self, widths: Sequence[int], device: torch.device):
        self.widths = list(widths)
        of_V = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(self.widths))
        member_RV = (of_V == torch.arange(len(widths)).unsqueeze(1)).float()
        self.member_RV = member_RV.to(device)
        self.width_R = torch.tensor(self.widths).to(device)
        self.width_V = torch.tensor(self.widths).float()[of_V].to(device)

    def of(self, x_R: Tensor) -> Tensor:
        """A representation's number for each of its columns: [..., R] -> [..., V]."""
        return x_R.to(self.member_RV.dtype) @ self.member_RV

    def mean(self, x_V: Tensor) -> Tensor:
        """[V] -> [R]; of each representation by itself: its bits do not depend on which others there are."""
        return torch.segment_reduce(x_V, "mean", lengths=self.width_R, unsafe=True)  # unchecked, which would wait


class Moments(nn.Module):
    """Running sums over the samples of a fit: of their gradients with respect to W, the squares of these, and counts.

    A step's sums are added and what was there is worth less by `keep`, so that about 1 / (1 - keep) steps speak: a
    single batch has a few samples of an environment. `steps` counts them.
    """

    gradient_EcV: Tensor
    second_EV: Tensor
    count_RE: Tensor
    steps: Tensor

    def __init__(self, environments: int, c: int, columns: Columns, window: int):
        super().__init__()
        E, (R, V), device = environments, columns.member_RV.shape, columns.member_RV.device
        self.keep, self.window = 1 - 1 / window, window
        self.register_buffer("gradient_EcV", torch.zeros(E, c, V, device=device), persistent=False)
        self.register_buffer("second_EV", torch.zeros(E, V, device=device), persistent=False)
        self.register_buffer("count_RE", torch.zeros(R, E, device=device), persistent=False)
        self.register_buffer("steps", torch.zeros((), device=device), persistent=False)

    def add(self, gradient_EcV: Tensor, second_EV: Tensor, count_RE: Tensor) -> None:
        """A step's sums over all workers."""
        kept_sums = (self.gradient_EcV, self.second_EV, self.count_RE)
        for kept, new in zip(kept_sums, (gradient_EcV, second_EV, count_RE), strict=True):
            kept.mul_(self.keep).add_(new)
        self.steps.add_(1)

    def effect(self, columns: Columns, small: float) -> Tensor:
        """`environment_effect` of what was seen so far, [V]; 0 before there is a window of steps."""
        count_EV = columns.of(self.count_RE.T)
        effect_V = environment_effect(self.gradient_EcV, self.second_EV, count_EV, small)
        return effect_V * (self.steps >= self.window)


@dataclass(frozen=True)
class Penalties:
    """gamma of the environments' effects, rho of the mask's distance from its middle, l2 of W, and this worker's share
    of the global batch, a scalar tensor."""

    gamma: float
    rho: float
    l2: float
    share: Tensor


@dataclass(frozen=True)
class Terms:
    """Parts of the loss of every representation [R], and gradients of their sum."""

    fit_R: Tensor
    variance_R: Tensor
    size_R: Tensor
    W_grad_cV: Tensor
    bias_grad_Rc: Tensor
    mask_grad_V: Tensor


@dataclass(frozen=True)
class Sums:
    """A step's sums over this worker's samples of every environment, all representations side by side."""

    gradient_EcV: Tensor
    second_EV: Tensor
    bias_REc: Tensor
    loss_RE: Tensor
    count_RE: Tensor

    @staticmethod
    def of(fits: Sequence[Fit]) -> Sums:
        """fits: with moments."""
        return Sums(
            torch.cat([fit.gradient_EcD for fit in fits], dim=2),
            torch.cat([fit.second_ED for fit in fits if fit.second_ED is not None], dim=1),
            torch.stack([fit.bias_Ec for fit in fits]),
            torch.stack([fit.loss_E for fit in fits]),
            torch.stack([fit.count_E for fit in fits]),
        )


@dataclass(frozen=True)
class Everyone:
    """Of the samples of all workers: the step's counts, and v, the environments' effect in every dimension."""

    count_RE: Tensor
    effect_V: Tensor


@torch.no_grad()
def mask_loss(
    sums: Sums, parameters: tuple[Tensor, Tensor], penalties: Penalties, columns: Columns, everyone: Everyone
) -> Terms:
    """mean_e L_e(Phi) + gamma mean((v m)^2) + rho mean((m - 1/2)^2) + l2 |W|^2, this worker's part.

    sums: of fits of W times the mask. parameters: W [c, V] and the mask [V]. v is held constant: a mask entry pays for
    it and cannot lower the price by shrinking. Both penalties are means over dimensions, so that gamma and rho do not
    depend on widths.
    """
    (W_cV, mask_V), count_RE = parameters, everyone.count_RE
    there_RE = count_RE > 0
    weight_RE = there_RE / (count_RE.clamp(min=1) * there_RE.sum(1, keepdim=True).clamp(min=1))
    mean_cV = _sum(sums.gradient_EcV * columns.of(weight_RE.T).unsqueeze(1))  # over environments of their means
    gamma, rho, l2 = (x * penalties.share for x in (penalties.gamma, penalties.rho, penalties.l2))
    priced_V, away_V = everyone.effect_V.square() * mask_V, mask_V - 0.5
    penalty_V = (priced_V * gamma + away_V * rho) * (2 / columns.width_V)
    bias_Rc = torch.bmm(weight_RE.unsqueeze(1), sums.bias_REc).squeeze(1)
    norm_R = columns.mean(_sum(W_cV.square())) * columns.width_R
    fit_R = torch.linalg.vecdot(weight_RE, sums.loss_RE) + norm_R * l2
    return Terms(
        fit_R, columns.mean(priced_V * mask_V) * gamma, columns.mean(away_V.square()) * rho,
        (mean_cV * mask_V).add_(W_cV * (2 * l2)), bias_Rc, penalty_V.add_(_sum(W_cV * mean_cV)),
    )  # fmt: skip


def environment_effect(gradient_EcV: Tensor, second_EV: Tensor, count_EV: Tensor, small: float) -> Tensor:
    """The Var-term (after InvRL, Du et al. 2022) as a size of effect in [0, 1), per dimension [V].

    gradient: sums over each environment's samples of their gradients with respect to W; second: sums of their squares
    over c; count: samples. Between environments lies the squared deviation of their mean gradients from the mean of
    these, summed over c, beyond what sampling alone would give with `_SURE` standard errors; within lies the variance
    of one sample. Their ratio f^2 (Cohen 1988) depends neither on the scale of gradients nor on the number of samples,
    and it is 0 where environments do not differ. The effect is f^2 / (f^2 + small). Environments with fewer than two
    samples have no variance and are left out.
    """
    c = gradient_EcV.shape[1]
    there_EV = (count_EV >= 2).to(second_EV.dtype)
    number_V, count_EV = there_EV.sum(0).clamp(min=1), count_EV.clamp(min=2)
    freedom_V = (number_V - 1).clamp(min=1)
    each_EV = there_EV / count_EV
    mean_EcV = gradient_EcV * each_EV.unsqueeze(1)
    within_EV = (second_EV * each_EV - _sum(mean_EcV.square(), 1)).clamp(min=0) * (count_EV / (count_EV - 1))
    noise_V = _sum(within_EV / count_EV) / number_V * freedom_V
    away_EcV = (mean_EcV - _sum(mean_EcV) / number_V).mul_(there_EV.unsqueeze(1))
    sure_V = 1 + _SURE * math.sqrt(2 / c) * freedom_V.rsqrt()
    excess_V = (_sum(away_EcV.square_(), (0, 1)) - noise_V * sure_V).clamp(min=0) / freedom_V
    ratio_V = excess_V / (_sum(within_EV) / number_V).clamp(min=1e-30)
    return torch.where(number_V > 1, ratio_V / (ratio_V + small), 0.0)
