"""Stage 2's loss of masks (eq. 9-10) and its gradients, of all representations at once: their columns side by side.

Shapes: R representations; E environments; c width of users' content; V columns of all representations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m3dist.losses.projection import Fit


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


@dataclass(frozen=True)
class Penalties:
    """gamma of the Var-term, rho of the mask's size, and this worker's share of the global batch, a scalar tensor."""

    gamma: float
    rho: float
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


def _alone(tensors: list[Tensor]) -> None:
    """One worker's sums are those of all."""


@torch.no_grad()
def mask_loss(
    fits: Sequence[Fit], parameters: tuple[Tensor, Tensor], penalties: Penalties, columns: Columns,
    over_workers: Callable[[list[Tensor]], None] = _alone,
) -> Terms:  # fmt: skip
    """mean_e L_e(Phi) + gamma Var-term + rho mean(m^2), this worker's part.

    fits: of W times the mask, with moments. parameters: W [c, V] and the mask [V]. Var is measured on the whole
    representation and held constant: a mask entry pays for how unlike the environments are in its dimension, and cannot
    lower the price by shrinking. It is relative to its mean over dimensions, and both penalties are means over D, so
    gamma and rho depend neither on widths nor on the scale of gradients. over_workers: adds tensors up, in place.
    """
    W_cV, mask_V = parameters
    gradient_EcV = torch.cat([fit.gradient_EcD for fit in fits], dim=2)
    second_EV = torch.cat([fit.second_ED for fit in fits if fit.second_ED is not None], dim=1)
    count_RE, loss_RE = torch.stack([fit.count_E for fit in fits]), torch.stack([fit.loss_E for fit in fits])
    everyone = [count_RE, second_EV, gradient_EcV.clone()]
    over_workers(everyone)
    there_RE = count_RE > 0
    weight_RE = there_RE / (count_RE.clamp(min=1) * there_RE.sum(1, keepdim=True).clamp(min=1))
    mean_cV = (gradient_EcV * columns.of(weight_RE.T).unsqueeze(1)).sum(0)  # over environments of their means
    variance_V = environment_variance(everyone[2], second_EV, columns.of(count_RE.T))
    relative_V = variance_V / columns.of(columns.mean(variance_V)).clamp(min=1e-30)
    priced_V = relative_V.square_().mul_(mask_V)
    gamma, rho = penalties.gamma * penalties.share, penalties.rho * penalties.share
    penalty_V = (priced_V * gamma).add_(mask_V * rho).mul_(2 / columns.width_V)
    bias_Rc = torch.bmm(weight_RE.unsqueeze(1), torch.stack([fit.bias_Ec for fit in fits])).squeeze(1)
    return Terms(
        torch.linalg.vecdot(weight_RE, loss_RE), columns.mean(priced_V.mul_(mask_V)) * gamma,
        columns.mean(mask_V.square()) * rho, mean_cV * mask_V, bias_Rc, penalty_V.add_((W_cV * mean_cV).sum(0)),
    )  # fmt: skip


def environment_variance(gradient_EcV: Tensor, second_EV: Tensor, count_EV: Tensor) -> Tensor:
    """The Var-term (after InvRL, Du et al. 2022): how much environments' gradients differ, per dimension [V].

    gradient: sums over each environment's samples of their gradients with respect to W; second: sums of their squares
    over c; count: samples. The squared deviation of the environments' mean gradients from their mean, summed over
    environments and c, less what sampling alone would give (the within-environment variance over count): a batch's
    noise would otherwise drown the difference. Environments with fewer than two samples of the batch have no variance
    and are left out. Never below 0.
    """
    there_EV = (count_EV >= 2).to(second_EV.dtype)
    number_V, count_EV = there_EV.sum(0).clamp(min=1), count_EV.clamp(min=2)
    each_EV = there_EV / count_EV
    mean_EcV = gradient_EcV * each_EV.unsqueeze(1)
    noise_EV = (second_EV * each_EV - mean_EcV.square().sum(1)) / (count_EV - 1)
    away_EcV = (mean_EcV - mean_EcV.sum(0) / number_V).mul_(there_EV.unsqueeze(1))
    return (away_EcV.square_().sum((0, 1)) - (1 - 1 / number_V) * noise_EV.sum(0)).clamp(min=0)
