"""Stage 1's losses beside the recommendation (section 4.1 of the paper), of all modalities at once, with their
gradients in closed form: the contrast of eq. 3-4, and CLUB's bound (Cheng et al., ICML 2020; eq. 6) with its q(v|z).

Every worker has C items under contrast, of which some are its own anchors. An item that is not there or that lacks a
modality has no weight in that modality. Losses are means over a modality's items, of all workers, summed over anchors.

Shapes: M modalities; C items, of which c are this worker's anchors; D width of z; H hidden units of q; V columns of
v_1..v_M side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_BEND = 5.0  # logvar stays within these bounds: a vanishing variance would make the bound explode


@dataclass(frozen=True)
class Anchors:
    """valid_MC: 1 where an item is there and has the modality, else 0; the anchors are items start..start+count-1."""

    valid_MC: Tensor
    start: int
    count: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.count)

    def share_MC(self, least: int) -> Tensor:
        """1 / n of a modality's n items, at those; 0 where a modality has fewer than `least`."""
        n_M1 = self.valid_MC.sum(1, keepdim=True)
        return self.valid_MC * (n_M1 >= least) / n_M1.clamp(min=1)


@dataclass(frozen=True)
class Contrast:
    """The loss of every modality [M], and gradients of the rows given and of tau, of the sum over modalities."""

    loss_M: Tensor
    x_grad_SCD: Tensor
    tau_grad: Tensor


@torch.no_grad()
def contrastive(x_SCD: Tensor, tau: Tensor, anchors: Anchors) -> Contrast:
    """Eq. 2-4. x: z_1..z_M, then z_{M+1}, S = M + 1. The sum of eq. 3 leaves out j = i, as printed.

    Cosines are at most 1 and tau is at least 0.1, so exp(s / tau) needs no maximum. A modality of fewer than two items
    has no negatives and a loss of 0.
    """
    M, rows = len(x_SCD) - 1, anchors.rows
    length_SC1 = torch.linalg.vector_norm(x_SCD, dim=2, keepdim=True).clamp_(min=1e-12).reciprocal_()
    unit_SCD = x_SCD * length_SC1
    a_ScD = unit_SCD[:, rows] / tau
    share_Mc = anchors.share_MC(2)[:, rows]
    # pairs of z and z_{M+1}, of z and z, and of z_{M+1} and itself, which all modalities share
    left = torch.cat([a_ScD[:M], a_ScD])
    right = torch.cat([unit_SCD[M:].expand(M, -1, -1), unit_SCD])
    each = torch.bmm(left, right.mT).exp_()  # [2 M + 1, c, C]
    each.diagonal(anchors.start, 1, 2).zero_()  # j != i
    total_McC = (each[:M] + each[M : 2 * M]).add_(each[2 * M])
    total_Mc = torch.bmm(total_McC, anchors.valid_MC.unsqueeze(2)).squeeze(2)
    positive_Mc = torch.linalg.vecdot(a_ScD[:M], unit_SCD[M, rows])
    total_Mc.clamp_(min=torch.finfo(total_Mc.dtype).tiny)
    loss_M = (share_Mc * (total_Mc.log() - positive_Mc)).sum(1)
    weight_McC = torch.mul((share_Mc / total_Mc).unsqueeze(2), anchors.valid_MC.unsqueeze(1), out=total_McC)
    each[:M].mul_(weight_McC)
    each[M : 2 * M].mul_(weight_McC)
    each[2 * M].mul_(weight_McC.sum(0))
    left_grad, right_grad = torch.bmm(each, right), torch.bmm(each.mT, left)
    a_grad = left_grad[M:]
    a_grad[:M].add_(left_grad[:M]).addcmul_(unit_SCD[M, rows], share_Mc.unsqueeze(2), value=-1)
    grad_SCD = right_grad[M:]
    grad_SCD[M].add_(right_grad[:M].sum(0))
    grad_SCD[M, rows].sub_((share_Mc.unsqueeze(2) * a_ScD[:M]).sum(0))
    grad_SCD[:, rows].add_(a_grad / tau)
    along_SC1 = torch.linalg.vecdot(grad_SCD, unit_SCD).unsqueeze(2)
    tau_grad = -(a_grad * a_ScD).sum() / tau
    return Contrast(loss_M, grad_SCD.addcmul_(unit_SCD, along_SC1, value=-1).mul_(length_SC1), tau_grad)


@dataclass(frozen=True)
class Gaussians:
    """Parameters of q_m(v|z) = N(mean(h), exp(5 tanh(logvar(h)))), h = relu(hidden(z)), or gradients of them.

    hidden: W [M, H, D] and b [M, H] of all modalities. mean and logvar: W_m [d_m, H] and b_m [d_m] of each.
    """

    hidden: tuple[Tensor, Tensor]
    mean: list[tuple[Tensor, Tensor]]
    logvar: list[tuple[Tensor, Tensor]]

    @property
    def widths(self) -> list[int]:
        return [len(b) for _, b in self.mean]


@dataclass(frozen=True)
class Club:
    """CLUB's bound, where positive, and the negative log likelihood of its q, summed over modalities.

    The bound holds q fixed and the likelihood holds v and z fixed, so z_grad and v_grad are of the bound, q_grad is of
    the likelihood. v_grad_CV is None unless it was asked for.
    """

    bound: Tensor
    likelihood: Tensor
    z_grad_McD: Tensor
    q_grad: Gaussians
    v_grad_CV: Tensor | None = None


def _alone(bound_M: Tensor) -> Tensor:
    return bound_M


@torch.no_grad()
def club(
    z_McD: Tensor, v_CV: Tensor, q: Gaussians, anchors: Anchors, over_workers: Callable[[Tensor], Tensor] = _alone
) -> Club:
    """CLUB's bound on I(v; z) from the anchors' z and all items' v, and the fit of q. No gradient of v.

    The mean over pairs of log q(v_i|z_i) less the mean over all j of log q(v_j|z_i); the latter needs only the first
    two moments of v, so the cost is linear in C. Mutual information is never negative: a bound below 0 says that q is
    off and would fall without end, so it has neither value nor gradient. over_workers: sums bounds over the workers.
    """
    return _club(z_McD, v_CV, q, anchors, over_workers)[0]


@torch.no_grad()
def club_with_v(
    z_McD: Tensor, v_CV: Tensor, q: Gaussians, anchors: Anchors, over_workers: Callable[[Tensor], Tensor] = _alone
) -> Club:
    """The same with the bound's gradient of v, where v is learned."""
    found, pair = _club(z_McD, v_CV, q, anchors, over_workers)
    moments = pair.precision_cV.sum(0)
    v_grad_CV = pair.share_CV * (v_CV * moments - (pair.precision_cV * pair.mean_cV).sum(0))
    v_grad_CV[anchors.rows].sub_(pair.precision_cV * pair.error_cV)
    return replace(found, v_grad_CV=v_grad_CV)


@dataclass(frozen=True)
class _Pairs:
    """What the gradient of v needs; the precision is weighted by shares, and 0 where the bound does not count."""

    share_CV: Tensor
    mean_cV: Tensor
    error_cV: Tensor
    precision_cV: Tensor


def _club(
    z_McD: Tensor, v_CV: Tensor, q: Gaussians, anchors: Anchors, over_workers: Callable[[Tensor], Tensor]
) -> tuple[Club, _Pairs]:
    h_McH, mean_cV, bent_cV = _forward(z_McD, q)
    share_CV = _columns(anchors.share_MC(1), q.widths)
    share_cV, v_cV = share_CV[anchors.rows], v_CV[anchors.rows]
    error_cV = v_cV - mean_cV
    weighted_cV = torch.exp(-_BEND * bent_cV).mul_(share_cV)
    squares_cV = error_cV.square().mul_(weighted_cV)
    likelihood = squares_cV.sum() + (share_cV * (_BEND * bent_cV + math.log(2 * math.pi))).sum()
    part_CV = share_CV * v_CV
    first_V = part_CV.sum(0)
    variance_V = part_CV.mul_(v_CV).sum(0) - first_V.square()
    each_cV = (mean_cV - first_V).square_().add_(variance_V).mul_(weighted_cV).sub_(squares_cV).mul_(0.5)
    bound_M = torch.stack([x.sum() for x in each_cV.sum(0).split(q.widths)])
    counts_M = over_workers(bound_M.clone()) > 0
    counts_V = _columns(counts_M.to(v_CV.dtype).unsqueeze(1), q.widths).squeeze(0)
    bend_cV = (1 - bent_cV.square()).mul_(_BEND)
    mean_2cV, bent_2cV = (x.new_empty(2, *x.shape) for x in (mean_cV, bent_cV))  # of the likelihood, then of the bound
    torch.mul(weighted_cV, error_cV, out=mean_2cV[0]).neg_()
    torch.sub(share_cV, squares_cV, out=bent_2cV[0]).mul_(bend_cV).mul_(0.5)
    weighted_cV.mul_(counts_V)
    torch.mul(weighted_cV, v_cV - first_V, out=mean_2cV[1])
    torch.mul(each_cV, bend_cV, out=bent_2cV[1]).mul_(counts_V).neg_()
    z_grad, q_grad = _backward(z_McD, h_McH, q, mean_2cV, bent_2cV)
    found = Club((bound_M * counts_M).sum(), likelihood * 0.5, z_grad, q_grad)
    return found, _Pairs(share_CV, mean_cV, error_cV, weighted_cV)


def _columns(x_MC: Tensor, widths: list[int]) -> Tensor:
    """A modality's numbers for each of its columns, [C, V]."""
    return torch.cat([x_C.unsqueeze(1).expand(-1, width) for x_C, width in zip(x_MC, widths, strict=True)], dim=1)


def _forward(z_McD: Tensor, q: Gaussians) -> tuple[Tensor, Tensor, Tensor]:
    """h [M, c, H], and means and tanh of logvar [c, V]."""
    W, b = q.hidden
    h_McH = torch.baddbmm(b.unsqueeze(1), z_McD, W.mT).relu_()
    mean_cV, bent_cV = (z_McD.new_empty(z_McD.shape[1], sum(q.widths)) for _ in range(2))
    for layers, out_cV in ((q.mean, mean_cV), (q.logvar, bent_cV)):
        for h_cH, (W_dH, b_d), out in zip(h_McH, layers, out_cV.split(q.widths, dim=1), strict=True):
            torch.addmm(b_d, h_cH, W_dH.T, out=out)
    return h_McH, mean_cV, bent_cV.tanh_()


def _backward(
    z_McD: Tensor, h_McH: Tensor, q: Gaussians, mean_2cV: Tensor, bent_2cV: Tensor
) -> tuple[Tensor, Gaussians]:
    """The bound's gradient of z and the likelihood's of q, from those of means and of logvar before its tanh."""
    M, c, H = h_McH.shape
    h_grad = h_McH.new_empty(M, 2, c, H)
    grads: list[list[tuple[Tensor, Tensor]]] = []
    for layers, grad_2cV in ((q.mean, mean_2cV), (q.logvar, bent_2cV)):
        parts, b_grads = grad_2cV.split(q.widths, dim=2), grad_2cV[0].sum(0).split(q.widths)
        for part, (W_dH, _), into in zip(parts, layers, h_grad, strict=True):
            into.view(2 * c, H).addmm_(part.reshape(2 * c, -1), W_dH, beta=int(layers is q.logvar))
        W_grads = [part[0].T @ h_cH for part, h_cH in zip(parts, h_McH, strict=True)]
        grads.append(list(zip(W_grads, b_grads, strict=True)))
    h_grad.mul_((h_McH > 0).unsqueeze(1))
    hidden = (torch.bmm(h_grad[:, 0].mT, z_McD), h_grad[:, 0].sum(1))
    return torch.bmm(h_grad[:, 1], q.hidden[0]), Gaussians(hidden, grads[0], grads[1])
