"""Stage 2's loss and gradients: a frozen backbone of which only content projections are free, one per environment.

score(u, i) = u_id . v_id + u_c . (W x_i + bias). The ids' part of scores is the same for all environments and
representations. W' u_c is taken once a row and meets x there; a sample's gradient with respect to W is the outer product
of u_c and pull = sum_i dl/ds_i x_i, so nothing needs autograd.

Rows are sorted by environment into tiles of 32, each of one environment, so that every row meets its own W in products of
fixed shapes, at hardly more arithmetic than the rows need.

Shapes: b rows, N negatives that all share, E environments, T tiles of S rows, c content width of users, D width of a
representation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_S = 32  # rows of a tile


class Tiles(NamedTuple):
    """Where rows stand by environment: row_TS, the row at each place of a tile, b where there is none; place_b, each
    row's place; environment_T, of each tile; and which environment each row is in, one_hot_Eb, and each tile."""

    row_TS: Tensor
    place_b: Tensor
    environment_b: Tensor
    environment_T: Tensor
    one_hot_Eb: Tensor
    one_hot_ET: Tensor

    @staticmethod
    def of(environment_b: Tensor, environments: int) -> Tiles:
        """Of int64 numbers of environments, each in 0..environments-1."""
        b, device = len(environment_b), environment_b.device
        T = -(-b // _S) + environments
        names_E = torch.arange(environments, device=device)
        sorted_b, order_b = torch.sort(environment_b, stable=True)
        start_E = torch.searchsorted(sorted_b, names_E)
        tiles_E = (torch.searchsorted(sorted_b, names_E, right=True) - start_E + (_S - 1)) // _S
        end_E = tiles_E.cumsum(0)
        shift_E = (end_E - tiles_E) * _S - start_E  # from a row's place in order to its place in tiles
        place_sorted = torch.arange(b, device=device) + shift_E.index_select(0, sorted_b)
        row_TS = torch.full((T * _S,), b, dtype=torch.int64, device=device).scatter_(0, place_sorted, order_b)
        place_b = torch.empty_like(order_b).scatter_(0, order_b, place_sorted)
        environment_T = torch.searchsorted(end_E, torch.arange(T, device=device), right=True)
        environment_T = environment_T.clamp_(max=environments - 1)
        one_hot_Eb = (environment_b == names_E[:, None]).float()
        one_hot_ET = (environment_T == names_E[:, None]).float()
        return Tiles(row_TS, place_b, environment_b, environment_T, one_hot_Eb, one_hot_ET)

    def cut(self, x_bk: Tensor) -> Tensor:
        """Rows in tiles, [T, S, k]; zeros where there is none."""
        return F.pad(x_bk, (0, 0, 0, 1)).index_select(0, self.row_TS).view(-1, _S, x_bk.shape[1])


class Rows(NamedTuple):
    """Of b positives: the ids' part of their scores, contents, and weights, 0 where there is no positive; the weight of
    row b and negative j is base_b + scale_b weight_j."""

    own_b: Tensor
    content_bc: Tensor
    x_bD: Tensor
    weight_b: Tensor
    base_b: Tensor
    scale_b: Tensor


class Negatives(NamedTuple):
    """The N negatives that all rows share: content, weights, and the ids' part of scores with the rows."""

    x_ND: Tensor
    weight_N: Tensor
    score_bN: Tensor


class Projection(NamedTuple):
    """W [E, c, D] and bias [E, c] of each environment, or W [c, D] and bias [c] of all."""

    W: Tensor
    bias: Tensor


class Fits(NamedTuple):
    """Of each environment, sums over its rows: losses [E], gradients of W [E, c, D] and of bias [E, c]; and of each row
    |u_c|^2 pull^2 [b, D], summed over c the squares of its gradient, where they were asked for."""

    loss_E: Tensor
    gradient_EcD: Tensor
    bias_Ec: Tensor
    square_bD: Tensor | None


@torch.no_grad()
def projection_fits(
    rows: Rows, negatives: Negatives, tiles: Tiles, projection: Projection, squares: bool = False
) -> Fits:
    """The backbone's loss of every environment's rows under its projection, and its gradients."""
    own_b, content_bc, x_bD, weight_b, base_b, scale_b = rows
    (x_ND, weight_N, score_bN), (W, bias) = negatives, projection
    content_TSc = tiles.cut(content_bc)
    if W.ndim == 3:
        query_TSD = torch.bmm(content_TSc, W.index_select(0, tiles.environment_T))
        query_bD = query_TSD.view(-1, W.shape[2]).index_select(0, tiles.place_b)
        shift_b = torch.linalg.vecdot(content_bc, bias.index_select(0, tiles.environment_b))
    else:
        query_bD, shift_b = content_bc @ W, content_bc @ bias
    score_bN = torch.addmm(score_bN, query_bD, x_ND.T).add_(shift_b[:, None]).clamp_(min=-80)
    own_b = torch.linalg.vecdot(query_bD, x_bD).add_(shift_b).add_(own_b)
    slope_bN = torch.sigmoid(score_bN)
    soft_bN = score_bN.sub_(slope_bN.log())  # softplus at half its price
    each_bN = torch.addcmul(base_b[:, None], scale_b[:, None], weight_N)
    loss_b = torch.linalg.vecdot(soft_bN, each_bN).addcmul_(weight_b, F.softplus(-own_b))
    slope_bN.mul_(each_bN)
    own_slope_b = torch.sigmoid(-own_b).mul_(weight_b).neg_()
    pull_bD = torch.addcmul(torch.mm(slope_bN, x_ND), own_slope_b[:, None], x_bD)
    bias_bc = content_bc * (slope_bN.sum(1) + own_slope_b)[:, None]
    gradient_TcD = torch.bmm(content_TSc.mT, tiles.cut(pull_bD))
    gradient_EcD = (tiles.one_hot_ET @ gradient_TcD.flatten(1)).view(-1, *gradient_TcD.shape[1:])
    square_bD = pull_bD.square().mul_(content_bc.square().sum(1, keepdim=True)) if squares else None
    return Fits(tiles.one_hot_Eb @ loss_b, gradient_EcD, tiles.one_hot_Eb @ bias_bc, square_bD)


def environment_variance(gradient_EcD: Tensor, second_ED: Tensor, count_E: Tensor) -> Tensor:
    """The Var-term (after InvRL, Du et al. 2022): how much environments' gradients differ, per dimension [D].

    gradient: sums over each environment's samples of their gradients with respect to the content projection; second:
    sums of their squares over c; count: samples. Environments with fewer than two samples are left out, since one sample
    says nothing of its noise. The squared deviation of the environments' mean gradients from their mean, summed over
    environments and c, less what sampling alone would give (the within-environment variance over count): a batch's noise
    would otherwise drown the difference. Never below 0.
    """
    there_E = (count_E > 1).to(count_E)
    E, n_E = there_E.sum().clamp(min=1), count_E.clamp(min=1)
    mean_EcD = gradient_EcD * (there_E / n_E)[:, None, None]
    middle_cD = mean_EcD.sum(0) / E
    noise_ED = (second_ED / n_E[:, None] - mean_EcD.square().sum(1)) / (n_E - 1).clamp(min=1)[:, None]
    deviation_D = ((mean_EcD - middle_cD) * there_E[:, None, None]).square().sum(dim=(0, 1))
    return (deviation_D - (1 - 1 / E) * (there_E @ noise_ED)).clamp(min=0)
