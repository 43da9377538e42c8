"""Stage 2's fits: backbone losses in which only projections of the content are free, by environments of the samples.

score(u, i) = s_ui + u_c . (W x_i + bias), with a projection for each environment or one for all, under UltraGCN's
loss or a softmax of each positive among the negatives. A sample's gradient with respect to W is the outer product of
u_c and `pull`, the sum of dl/ds_i x_i over its items: W' u_c is taken once a row and meets x there, no item is
projected and nothing needs autograd.

Rows are sorted by environment. On a GPU they stand in tiles of 32 rows of one environment each, at most b / 32 + E of
them, so that shapes are fixed and every product is a batch over tiles; rows that fill a tile up weigh nothing. On a CPU
each environment's rows are one product, whose bits do not depend on which other environments there are.

Shapes: R representations; b samples; E environments; N negatives; c width of users' content; D width of a
representation; T tiles, B = 32 T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.losses.logistic import softplus

_TILE = 32


@dataclass(frozen=True)
class Samples:
    """A step's samples, which all representations share; a sample that is not there has weights 0.

    score_bN, own_b: s of negatives and of the positive, what content adds to. content_bc: u_c. The weight of a positive
    is positive_b, that of user u and negative j base_u + scale_u weight_j. item_b, negative_N: rows of x. tau: of the
    softmax, in which negatives have no weights; None for UltraGCN's loss.
    """

    score_bN: Tensor
    own_b: Tensor
    content_bc: Tensor
    positive_b: Tensor
    base_b: Tensor
    scale_b: Tensor
    weight_N: Tensor
    item_b: Tensor
    negative_N: Tensor
    tau: float | None = None


@dataclass(frozen=True)
class Projection:
    """Of one representation x_ID: W [E, c, D] and bias [E, c] of environments, or [1, c, D] and [1, c] for all."""

    x_ID: Tensor
    W: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Fit:
    """Sums over each environment's samples of one representation: samples, losses, gradients of W and bias, and where
    asked for squares of the samples' gradients of W, added up over c."""

    count_E: Tensor
    loss_E: Tensor
    gradient_EcD: Tensor
    bias_Ec: Tensor
    second_ED: Tensor | None


class Tiles:
    """Numbers that fits of b samples in E environments need again and again, on their device."""

    def __init__(self, b: int, environments: int, device: torch.device):
        self.environments = environments
        self.count = -(-b // _TILE) + environments
        self.edge_E1 = torch.arange(environments + 1, device=device)
        self.tile_T = torch.arange(self.count, device=device)
        self.row_32 = torch.arange(_TILE, device=device)


@torch.no_grad()
def projection_fits(
    samples: Samples, projections: Sequence[Projection], environment_Rb: Tensor, tiles: Tiles, moments: bool = False
) -> list[Fit]:
    """The fit of every representation; environment_Rb: int64 0..E-1, and E for samples that no environment has."""
    if environment_Rb.device.type != "cpu":
        return _by_tiles(samples, projections, environment_Rb, tiles, moments)
    return [
        _by_rows(samples, projection, environment_b, tiles.environments, moments)
        for projection, environment_b in zip(projections, environment_Rb, strict=True)
    ]


@dataclass(frozen=True)
class _Slopes:
    """Of every row: its loss, and dl/ds of negatives and of the positive."""

    loss_B: Tensor
    slope_BN: Tensor
    own_slope_B: Tensor


def _slopes(score_BN: Tensor, own_B: Tensor, weight_4B: Tensor, samples: Samples) -> _Slopes:
    """weight_4B: of positives, base and scale of negatives, and what else; rows may have more dimensions than one.

    Overwrites the scores.
    """
    if samples.tau is not None:
        return _among(score_BN.div_(samples.tau), own_B / samples.tau, weight_4B[0], samples.tau)
    positive_B, base_B1, scale_B1 = weight_4B[0], weight_4B[1].unsqueeze(-1), weight_4B[2].unsqueeze(-1)
    slope_BN, soft_BN = softplus(score_BN)
    weight_BN = torch.mul(scale_B1, samples.weight_N).add_(base_B1)
    loss_B = soft_BN.mul_(weight_BN).sum(-1).addcmul_(positive_B, F.softplus(-own_B))
    return _Slopes(loss_B, slope_BN.mul_(weight_BN), torch.sigmoid(-own_B).mul_(positive_B).neg_())


def _among(score_BN: Tensor, own_B: Tensor, weight_B: Tensor, tau: float) -> _Slopes:
    """The softmax of positives among negatives; scores are over tau already, and are overwritten."""
    total_B = torch.logaddexp(own_B, torch.logsumexp(score_BN, -1))
    slope_B = weight_B / tau
    slope_BN = score_BN.sub_(total_B.unsqueeze(-1)).exp_().mul_(slope_B.unsqueeze(-1))
    gap_B = total_B - own_B
    return _Slopes(gap_B * weight_B, slope_BN, torch.expm1(-gap_B).mul_(slope_B))


def _by_rows(samples: Samples, projection: Projection, environment_b: Tensor, E: int, moments: bool) -> Fit:
    """One representation on a CPU.

    B is a multiple of 32, of which the first n rows stand for samples: what vector instructions leave over is computed
    by others, which round differently, and bits would depend on how many rows other environments have.
    """
    W_EcD, bias_Ec, (c, D) = projection.W, projection.bias, projection.W.shape[1:]
    count = torch.bincount(environment_b, minlength=E + 1)[:E].tolist()
    n = sum(count)
    order_B = F.pad(torch.argsort(environment_b, stable=True)[:n], (0, -n % _TILE))
    own = count if len(W_EcD) > 1 else [n]  # rows of each projection
    x_BD = projection.x_ID.index_select(0, samples.item_b.index_select(0, order_B))
    x_ND = projection.x_ID.index_select(0, samples.negative_N)
    content_Bc, score_BN = (x.index_select(0, order_B) for x in (samples.content_bc, samples.score_bN))
    weight_4B = torch.stack([samples.positive_b, samples.base_b, samples.scale_b, samples.own_b]).index_select(
        1, order_B
    )
    row_B = F.pad(torch.repeat_interleave(torch.tensor(own)), (0, -n % _TILE))
    shift_B = torch.linalg.vecdot(content_Bc, bias_Ec.index_select(0, row_B))
    query_BD = torch.zeros_like(x_BD)
    for content, query, score, W_cD in zip(
        content_Bc[:n].split(own), query_BD[:n].split(own), score_BN[:n].split(own), W_EcD, strict=True
    ):
        score.addmm_(torch.mm(content, W_cD, out=query), x_ND.T)
    score_BN.add_(shift_B.unsqueeze(1))
    found = _slopes(score_BN, shift_B.add_(weight_4B[3]).add_(torch.linalg.vecdot(query_BD, x_BD)), weight_4B, samples)
    pull_BD = query_BD  # whose place it takes
    for slope, pull in zip(found.slope_BN[:n].split(own), pull_BD[:n].split(own), strict=True):
        torch.mm(slope, x_ND, out=pull)
    pull_BD.addcmul_(x_BD, found.own_slope_B.unsqueeze(1))
    bias_Bc = content_Bc * found.slope_BN.sum(1).add_(found.own_slope_B).unsqueeze(1)
    lengths = torch.tensor(count)
    loss_E, bias_grad_Ec = (torch.segment_reduce(x[:n], "sum", lengths=lengths) for x in (found.loss_B, bias_Bc))
    content_nc, pull_nD = content_Bc[:n], pull_BD[:n]
    gradient_EcD = W_EcD.new_empty(E, c, D)
    for content, pull, into in zip(content_nc.split(count), pull_nD.split(count), gradient_EcD, strict=True):
        torch.mm(content.T, pull, out=into)
    second_ED = None
    if moments:
        second_ED = W_EcD.new_empty(E, D)
        length_n = content_nc.square().sum(1)
        for length, square, into in zip(length_n.split(count), pull_nD.square_().split(count), second_ED, strict=True):
            torch.mv(square.T, length, out=into)
    return Fit(lengths.to(loss_E.dtype), loss_E, gradient_EcD, bias_grad_Ec, second_ED)


@dataclass(frozen=True)
class _Placed:
    """Rows in tiles: which sample stands in each, whether one does, whose tile it is, and tiles of environments as
    a matrix of ones."""

    row_RB: Tensor
    there_RB: Tensor
    environment_RT: Tensor
    member_RET: Tensor
    count_RE: Tensor


def _placed(environment_Rb: Tensor, tiles: Tiles) -> _Placed:
    R, b = environment_Rb.shape
    E = tiles.environments
    sorted_Rb, order_Rb = torch.sort(environment_Rb, dim=1, stable=True)
    edge_RE1 = torch.searchsorted(sorted_Rb, tiles.edge_E1.expand(R, -1).contiguous())
    count_RE = edge_RE1[:, 1:] - edge_RE1[:, :-1]
    number_RE = (count_RE + (_TILE - 1)) // _TILE
    end_RE = number_RE.cumsum(1)
    tile_RT = tiles.tile_T.expand(R, -1)
    environment_RT = torch.searchsorted(end_RE, tile_RT.contiguous(), right=True).clamp_(max=E - 1)
    nth_RT = tile_RT - (end_RE - number_RE).gather(1, environment_RT)  # of its environment
    first_RT = edge_RE1.gather(1, environment_RT).add_(nth_RT, alpha=_TILE)
    place_RB = (first_RT.unsqueeze(2) + tiles.row_32).view(R, -1)
    there_RB = place_RB.view(R, -1, _TILE) < edge_RE1[:, 1:].gather(1, environment_RT).unsqueeze(2)
    row_RB = order_Rb.gather(1, place_RB.clamp_(max=b - 1))
    member_RET = environment_RT.unsqueeze(1) == tiles.edge_E1[:E].unsqueeze(1)
    return _Placed(row_RB, there_RB.view(R, -1), environment_RT, member_RET, count_RE)


def _by_tiles(
    samples: Samples, projections: Sequence[Projection], environment_Rb: Tensor, tiles: Tiles, moments: bool
) -> list[Fit]:
    """All representations on a GPU."""
    R, T, c, dtype = len(projections), tiles.count, samples.content_bc.shape[1], samples.content_bc.dtype
    placed = _placed(environment_Rb, tiles)
    row_n, member_RET = placed.row_RB.view(-1), placed.member_RET.to(dtype)
    content_RBc = samples.content_bc.index_select(0, row_n).view(R, -1, c)
    score_RBN = samples.score_bN.index_select(0, row_n).view(R, T * _TILE, -1)
    weight_4b = torch.stack([samples.positive_b, samples.base_b, samples.scale_b, samples.own_b])
    weight_4RB = weight_4b.index_select(1, row_n).view(4, R, -1).mul_(placed.there_RB)
    item_RB = samples.item_b.index_select(0, row_n).view(R, -1)
    content_RTtc = content_RBc.view(R, T, _TILE, c)
    bias = torch.stack([x.bias for x in projections])
    if bias.shape[1] > 1:
        bias_RTc = bias.gather(1, placed.environment_RT.unsqueeze(2).expand(-1, -1, c))
        shift_RB = (content_RTtc * bias_RTc.unsqueeze(2)).sum(3).view(R, -1)
    else:
        shift_RB = torch.bmm(content_RBc, bias.mT).squeeze(2)
    own_RB = weight_4RB[3].add_(shift_RB)
    score_RBN.add_(shift_RB.unsqueeze(2))
    xs = []
    for r, (x, content_Ttc) in enumerate(zip(projections, content_RTtc, strict=True)):
        x_BD, x_ND = x.x_ID.index_select(0, item_RB[r]), x.x_ID.index_select(0, samples.negative_N)
        if len(x.W) > 1:
            query_BD = torch.bmm(content_Ttc, x.W.index_select(0, placed.environment_RT[r])).view_as(x_BD)
        else:
            query_BD = torch.mm(content_RBc[r], x.W[0])
        score_RBN[r].addmm_(query_BD, x_ND.T)
        own_RB[r].add_(torch.linalg.vecdot(query_BD, x_BD))
        xs.append((x_BD, x_ND))
    found = _slopes(score_RBN, own_RB, weight_4RB, samples)
    bias_RBc = content_RBc * found.slope_BN.sum(2).add_(found.own_slope_B).unsqueeze(2)
    bias_grad_REc = torch.bmm(member_RET, bias_RBc.view_as(content_RTtc).sum(2))
    loss_RE = torch.bmm(member_RET, found.loss_B.view(R, T, _TILE).sum(2, keepdim=True)).squeeze(2)
    count_RE = placed.count_RE.to(dtype)
    length_RT1t = content_RTtc.square().sum(3).unsqueeze(2) if moments else None
    out = []
    for r, (x_BD, x_ND) in enumerate(xs):
        D = x_BD.shape[1]
        pull_TtD = torch.mm(found.slope_BN[r], x_ND).addcmul_(x_BD, found.own_slope_B[r].unsqueeze(1)).view(T, _TILE, D)
        each_TcD = torch.bmm(content_RTtc[r].mT, pull_TtD)
        gradient_EcD = torch.mm(member_RET[r], each_TcD.view(T, c * D)).view(-1, c, D)
        second_ED = None
        if length_RT1t is not None:
            second_ED = torch.mm(member_RET[r], torch.bmm(length_RT1t[r], pull_TtD.square_()).squeeze(1))
        out.append(Fit(count_RE[r], loss_RE[r], gradient_EcD, bias_grad_REc[r], second_ED))
    return out
