"""Rows of users who were not trained with the others: found from their histories, with items held as they are.

A user's row is the minimum of what training makes small for one user, the backbone's loss with its weights and L2: a
mean over the history, and over negatives, all that training draws from or so many of them, spread evenly. Both losses
are convex in scores, so a fixed number of gradient steps whose lengths follow the curvature (Barzilai and Borwein,
Two-Point Step Size Gradient Methods, IMA Journal of Numerical Analysis 1988) ends at the same row every time.

Shapes: M members; n histories, u of a block; T items that a user is drawn to; N negatives; C columns of a block's
scores, the negatives first and behind them what users are not pushed from; I items; k width of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.config import ResolvedBackbone
from m3dist.data.graphs import user_item
from m3dist.evaluation.ranking import Seen
from m3dist.losses.softmax import COLDEST
from m3dist.models.ultragcn import Weights, user_factor

STEPS = {"softmax": 6, "ultragcn": 20}  # of every user; from then on rows hardly move
_NEGATIVES = 4096  # at most
_IN_CACHE, _ON_GPU = 1 << 20, 1 << 24  # numbers of a block's largest tensor
_SPARE = 2  # so many columns of scores a negative, at most, for histories' items to be read among them

# of rows [u, k]: the gradient, and a number by which one row is better than another, [u, 1]
Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Drawn:
    """What draws the users of a block: items and what their terms of the loss weigh, 0 where there are fewer than T;
    and the users' a_u of eq. 9."""

    item_uT: Tensor
    weight_uT: Tensor
    factor_u: Tensor


class Rows(Protocol):
    """One member's rows of a block: what its users are drawn to, and C columns, of which the first N are negatives."""

    @property
    def columns(self) -> int:
        """C"""

    def products(self, user_uk: Tensor) -> tuple[Tensor, Tensor]:
        """With what users are drawn to, [u, T], and with columns, [u, C], which may be overwritten."""

    def back(self, pull_uT: Tensor, push_uC: Tensor) -> Tensor:
        """The sum of columns times `push_uC` less that of what users are drawn to times `pull_uT`, [u, k]; may
        overwrite `push_uC`."""


@dataclass(frozen=True)
class Apart:
    """Rows that are gathered for every user."""

    own_uTk: Tensor
    far_Nk: Tensor

    @property
    def columns(self) -> int:
        return len(self.far_Nk)

    def products(self, user_uk: Tensor) -> tuple[Tensor, Tensor]:
        return torch.bmm(self.own_uTk, user_uk.unsqueeze(2)).squeeze(2), user_uk @ self.far_Nk.T

    def back(self, pull_uT: Tensor, push_uC: Tensor) -> Tensor:
        return (push_uC @ self.far_Nk).sub_(torch.bmm(pull_uT.unsqueeze(1), self.own_uTk).squeeze(1))


@dataclass(frozen=True)
class Among:
    """Rows of a small catalogue, all of which users are scored against: one product each way gives all that is needed,
    and nothing is gathered. negatives: how many columns are."""

    row_Ck: Tensor
    at_uT: Tensor

    @property
    def columns(self) -> int:
        return len(self.row_Ck)

    def products(self, user_uk: Tensor) -> tuple[Tensor, Tensor]:
        score_uC = user_uk @ self.row_Ck.T
        return score_uC.gather(1, self.at_uT), score_uC

    def back(self, pull_uT: Tensor, push_uC: Tensor) -> Tensor:
        return push_uC.scatter_add_(1, self.at_uT, -pull_uT) @ self.row_Ck


class FoldIn:
    """How a run finds users' rows.

    items: the members' rows, [I, k] each, as they rank, those of new items behind the trained ones'. means: of the
    trained users' rows, [M, k], which a user without history has. pool: ids that training draws negatives from; None
    where these are all.
    """

    def __init__(
        self, backbone: ResolvedBackbone, weights: Weights, items: list[Tensor], means: Tensor, pool: Tensor | None
    ):
        self.config, self.weights, self.items, self.means = backbone, weights, items, means
        trained = len(weights.c_I) - 1
        self.c_I = F.pad(weights.c_I[:-1], (0, len(items[0]) - trained), value=1.0)  # new items have no interactions
        size = trained if pool is None else len(pool)
        at = torch.arange(min(size, _NEGATIVES), device=means.device) * size // min(size, _NEGATIVES)
        self.negative_N = at if pool is None else pool[at].long()
        # items, negatives first, [C], and the place of every item among them, [I]
        self.columns: tuple[Tensor, Tensor] | None = None
        if len(items[0]) <= _SPARE * len(self.negative_N):
            rest_I = torch.ones(len(items[0]), dtype=torch.bool, device=means.device)
            rest_I[self.negative_N] = False
            column_C = torch.cat([self.negative_N, rest_I.nonzero().squeeze(1)])
            self.columns = column_C, torch.argsort(column_C)

    @torch.no_grad()
    def rows(self, histories: Seen) -> Tensor:
        """[M, n, k], of every history."""
        out = self.means.unsqueeze(1).repeat(1, len(histories.here) - 1, 1)
        scored = [item_Ik[self.columns[0]] for item_Ik in self.items] if self.columns else []
        for user_u, drawn in self._blocks(histories):
            for m, item_Ik in enumerate(self.items):
                if self.columns:
                    rows: Rows = Among(scored[m], self.columns[1][drawn.item_uT])
                else:
                    rows = self._apart(item_Ik, drawn)
                out[m, user_u] = self._member(item_Ik, rows, drawn)
        return out

    def _apart(self, item_Ik: Tensor, drawn: Drawn) -> Apart:
        return Apart(item_Ik[drawn.item_uT], item_Ik[self.negative_N])

    def padded(self, history_uT: Tensor) -> Tensor:
        """Rows [M, u, k] of histories side by side, int64 [u, T], -1 where there is no item.

        The same rows as `rows` gives, to rounding, by operations on tensors of fixed rank alone, which can be exported.
        No item may be in a history twice.
        """
        there_uT, item_uT = history_uT >= 0, history_uT.clamp(min=0)
        count_u = there_uT.sum(1)
        a_u = user_factor(count_u.double()).float()
        share_uT = there_uT / count_u.clamp(min=1).unsqueeze(1)
        weight_uT = self._positive(a_u.unsqueeze(1), self.c_I[item_uT]) * share_uT
        if self.config.nu and self.config.loss != "softmax":
            K, new = self.weights.K, len(self.c_I) - len(self.weights.c_I) + 1
            omega_IK, near_IK = (
                F.pad(x.view(-1, K)[:-1], (0, 0, 0, new)) for x in (self.weights.omega, self.weights.neighbour)
            )
            near_weight_uTK = omega_IK[item_uT] * (share_uT * self.config.nu).unsqueeze(2)
            item_uT = torch.cat([item_uT, near_IK[item_uT].flatten(1)], dim=1)
            weight_uT = torch.cat([weight_uT, near_weight_uTK.flatten(1)], dim=1)
        drawn = Drawn(item_uT, weight_uT.float(), a_u)
        rows_Muk = torch.stack([self._member(x, self._apart(x, drawn), drawn) for x in self.items])
        return torch.where((count_u > 0).view(1, -1, 1), rows_Muk, self.means.unsqueeze(1))

    def _positive(self, a: Any, c: Any) -> Any:
        """Eq. 11's weight of positives, from a_u and c_i of eq. 9, arrays or tensors of shapes that fit."""
        return self.weights.w[0] + self.weights.kappa * self.weights.w[1] * a * c

    def _member(self, item_Ik: Tensor, rows: Rows, drawn: Drawn) -> Tensor:
        """One member's rows of a block, [u, k]."""
        N, C, users = len(self.negative_N), rows.columns, len(drawn.factor_u)
        if self.config.loss == "softmax":
            tau = max(self.config.tau, COLDEST)
            gradient = _softmax(rows, drawn.weight_uT, (tau, self.config.negatives, N))
            mean_uk = rows.back(-drawn.weight_uT, item_Ik.new_zeros(users, C))
            first_u1 = torch.full_like(mean_uk[:, :1], tau**2)
            return _descend(gradient, F.normalize(mean_uk, dim=1), first_u1, self.config.loss)
        c_N = self.c_I[self.negative_N]
        weight_uN = self.weights.w[2] + self.weights.kappa * self.weights.w[3] * drawn.factor_u.unsqueeze(1) * c_N
        weight_uC = F.pad(weight_uN * (self.config.negative_weight / N), (0, C - N))
        l2_k = torch.full((item_Ik.shape[1],), self.config.l2, device=item_Ik.device)
        l2_k[self.config.dim :] = self.config.content_l2
        gradient = _ultragcn(rows, (drawn.weight_uT, weight_uC), l2_k)
        square_I = item_Ik.square().sum(1)
        own_u = (drawn.weight_uT * square_I[drawn.item_uT]).sum(1)
        steepest_u = (own_u + weight_uC[:, :N] @ square_I[self.negative_N]) / 4 + 2 * l2_k.max()
        start_uk = item_Ik.new_zeros(users, item_Ik.shape[1])
        return _descend(gradient, start_uk, 1 / steepest_u.unsqueeze(1), self.config.loss)

    def _blocks(self, histories: Seen) -> Iterator[tuple[Tensor, Drawn]]:
        """Users who have a history and what draws them, those with alike many items together."""
        count = np.diff(histories.here)
        drawn = self._weights(histories, count)
        size, k = np.diff(drawn.indptr), self.means.shape[1]
        order = np.argsort(-size, kind="stable")[: int((size > 0).sum())]
        factor_n = user_factor(torch.from_numpy(count.astype(np.float64))).float().to(self.means.device)
        start, most = 0, _IN_CACHE if self.means.device.type == "cpu" else _ON_GPU
        while start < len(order):
            T = int(size[order[start]])
            widest = max(len(self.columns[0]), T) if self.columns else max(len(self.negative_N), T * k)
            some = order[start : start + max(1, most // widest)]
            start += len(some)
            item_uT, weight_uT = (torch.from_numpy(x).to(self.means.device) for x in _padded(drawn[some], T))
            user_u = torch.from_numpy(some).to(self.means.device)
            yield user_u, Drawn(item_uT, weight_uT, factor_n[user_u])

    def _weights(self, histories: Seen, count: np.ndarray) -> sp.csr_matrix:
        """[n, I]: of every user's positives and, under UltraGCN's loss, of their neighbours.

        The softmax has no neighbours here: a run keeps no lengths of rows, which its L_I depends on.
        """
        user = np.repeat(np.arange(len(count)), count)
        item, I = histories.item.cpu().numpy(), len(self.items[0])
        a_n = user_factor(torch.from_numpy(count.astype(np.float64))).numpy()
        c_I = self.c_I.cpu().numpy()
        share = 1 / np.maximum(count, 1)
        positive = self._positive(a_n[user], c_I[item]) * share[user]
        given = sp.csr_matrix((positive, (user, item)), shape=(len(count), I))
        if not self.config.nu or self.config.loss == "softmax":
            return given
        K = self.weights.K
        omega = self.weights.omega.view(-1, K)[:-1].cpu().numpy().ravel()
        near = self.weights.neighbour.view(-1, K)[:-1].cpu().numpy().ravel()
        graph = sp.csr_matrix((omega, (np.repeat(np.arange(len(omega) // K), K), near)), shape=(I, I))
        means = sp.diags(share * self.config.nu) @ user_item(user, item, (len(count), I))
        return (given + means @ graph).tocsr()


class Both:
    """Of members of both losses (`method.second`): rows of the first, and those of the second times scale_M1 beside.

    first, second: of the same members, with items as many.
    """

    def __init__(self, first: FoldIn, second: FoldIn, scale_M1: Tensor):
        self.first, self.second, self.scale_M11 = first, second, scale_M1.unsqueeze(1)
        self.items = [torch.cat(pair, dim=1) for pair in zip(first.items, second.items, strict=True)]
        self.means = torch.cat([first.means, second.means * scale_M1], dim=1)

    def rows(self, histories: Seen) -> Tensor:
        """See `FoldIn.rows`."""
        return torch.cat([self.first.rows(histories), self.second.rows(histories) * self.scale_M11], dim=2)

    def padded(self, history_uT: Tensor) -> Tensor:
        """See `FoldIn.padded`."""
        return torch.cat([self.first.padded(history_uT), self.second.padded(history_uT) * self.scale_M11], dim=2)


def _padded(drawn: sp.csr_matrix, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of every row, [u, T] each, with zeros behind."""
    size = np.diff(drawn.indptr)
    row = np.repeat(np.arange(len(size)), size)
    at = np.arange(len(row)) - np.repeat(drawn.indptr[:-1], size)
    item, value = np.zeros((len(size), T), np.int64), np.zeros((len(size), T), np.float32)
    item[row, at], value[row, at] = drawn.indices, drawn.data
    return item, value


def _ultragcn(rows: Rows, weights: tuple[Tensor, Tensor], l2_k: Tensor) -> Gradient:
    """Of the sum of weighted -log sigmoid(u . v) of positives, -log(1 - sigmoid(u . v)) of negatives, and L2."""
    weight_uT, weight_uC = weights

    def gradient(user_uk: Tensor) -> tuple[Tensor, Tensor]:
        own_uT, far_uC = rows.products(user_uk)
        slope_uT = own_uT.neg_().sigmoid_().mul_(weight_uT)
        slope_uC = far_uC.sigmoid_().mul_(weight_uC)
        found_uk = rows.back(slope_uT, slope_uC).addcmul_(user_uk, l2_k, value=2)
        return found_uk, found_uk.norm(dim=1, keepdim=True)

    return gradient


def _softmax(rows: Rows, weight_uT: Tensor, shape: tuple[float, int, int]) -> Gradient:
    """Of every positive's softmax among negatives, for users of length 1.

    shape: tau, how many negatives training draws, and N, those that stand for them here.
    """
    tau, drawn, N = shape

    def gradient(user_uk: Tensor) -> tuple[Tensor, Tensor]:
        own_uT, each_uC = rows.products(user_uk / tau)
        each_uC.exp_()[:, N:] = 0
        total_u1 = each_uC.sum(1, keepdim=True)
        gap_uT = (total_u1 * (drawn / N)).log() - own_uT
        value_u1 = F.softplus(gap_uT).mul_(weight_uT).sum(1, keepdim=True)
        slope_uT = torch.sigmoid(gap_uT).mul_(weight_uT)
        push_uC = each_uC.mul_(slope_uT.sum(1, keepdim=True) / total_u1)
        found_uk = rows.back(slope_uT, push_uC).div_(tau)
        return found_uk.addcmul_(user_uk, torch.linalg.vecdot(found_uk, user_uk).unsqueeze(1), value=-1), value_u1

    return gradient


def _descend(gradient: Gradient, row_uk: Tensor, first_u1: Tensor, loss: str) -> Tensor:
    """The best rows on the way. first_u1: lengths of steps that never overshoot.

    Rows of the softmax are kept at length 1, and their gradients are along the sphere.
    """
    (slope_uk, least_u1), length_u1 = gradient(row_uk), first_u1
    best_uk = row_uk
    for _ in range(STEPS[loss]):
        next_uk = row_uk - length_u1 * slope_uk
        if loss == "softmax":
            next_uk = F.normalize(next_uk, dim=1)
        then_uk, size_u1 = gradient(next_uk)
        moved_uk, turned_uk = next_uk - row_uk, then_uk - slope_uk
        along_u1 = torch.linalg.vecdot(moved_uk, turned_uk).unsqueeze(1)
        length_u1 = along_u1 / turned_uk.square().sum(1, keepdim=True).clamp(min=1e-30)
        length_u1 = torch.where(along_u1 > 0, length_u1, first_u1)
        row_uk, slope_uk = next_uk, then_uk
        best_uk = torch.where(size_u1 < least_u1, row_uk, best_uk)
        least_u1 = torch.minimum(size_u1, least_u1)
    return best_uk
