"""Each interaction moves to the environment whose model scores it highest (eq. 8).

The models' content scores u_c . (W_e x_i + b_e) are compared; the ids' part of a score is the same under all of them.
Under the softmax these are logarithms of probabilities among a sample of items: of scores alone, the model with the
largest W would have the most.
An item is projected once, under every model, and meets all its users in one product: work is by item, not by
interaction.

Shapes: n interactions, m pieces of items in a block with k rows each, g environments, c content width of users, D
representation width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.data.arrays import counted
from m3dist.data.draws import CHUNK, narrow
from m3dist.method.environments import Frozen, Trained

_PIECE = 256  # users of an item that are scored in one product
_PIECES = 512  # pieces of a block at most
_ROWS = 8192  # and their rows
_SAMPLE = 256  # items among which probabilities are found
_USERS = 8192  # whose totals are found at once


@dataclass(frozen=True)
class Blocks:
    """Interactions by item. A piece is a run of `order` with one item; a block holds pieces of about one length.

    Blocks depend on the interactions alone, so whoever scores a block finds the same bits.
    """

    order_n: Tensor  # interactions by item
    item: Tensor  # of each piece
    start: Tensor  # into order_n
    length: Tensor
    blocks: list[tuple[slice, int]]  # pieces, and k: the least power of two that holds their lengths

    @staticmethod
    def of(item_n: Tensor) -> Blocks:
        order_n, item, count = _by_item(item_n)
        pieces = (count + _PIECE - 1) // _PIECE
        at = torch.repeat_interleave(torch.arange(len(item), device=item.device), pieces)
        offset = (torch.arange(len(at), device=item.device) - (pieces.cumsum(0) - pieces)[at]) * _PIECE
        length = (count[at] - offset).clamp(max=_PIECE)
        start = (count.cumsum(0) - count)[at] + offset
        k = 2 ** torch.ceil(torch.log2(length.double())).long()
        by_k = torch.argsort(k, stable=True)
        blocks, first = [], 0
        for width, number in zip(*(x.tolist() for x in torch.unique(k, return_counts=True)), strict=True):
            step = min(_PIECES, _ROWS // width)
            blocks += [(slice(a, min(a + step, first + number)), width) for a in range(first, first + number, step)]
            first += number
        return Blocks(order_n, item[at][by_k], start[by_k], length[by_k], blocks)

    @functools.cached_property
    def _rows(self) -> Tensor:
        """Rows behind each block, and all."""
        total = torch.cat([self.length.new_zeros(1), self.length.cumsum(0)])
        return total[[0, *(pieces.stop for pieces, _ in self.blocks)]].cpu()

    def part(self, at: int, parts: int) -> list[tuple[slice, int]]:
        """The blocks of one of `parts` shares with about as many rows each."""
        bounds = torch.searchsorted(self._rows, torch.arange(parts + 1) * len(self.order_n) // parts).tolist()
        return self.blocks[bounds[at] : bounds[at + 1]]

    def places(self, pieces: slice, k: int) -> tuple[Tensor, Tensor]:
        """Where a block's rows stand in order_n, [m, k], and which of them are there; others repeat the last."""
        start, length = self.start[pieces, None], self.length[pieces, None]
        column = torch.arange(k, device=start.device)
        return start + torch.minimum(column, length - 1), column < length

    def interactions(self, at: int, parts: int) -> Tensor:
        """The interactions of a share, in the order of its blocks."""
        found = [places[there] for places, there in (self.places(*block) for block in self.part(at, parts))]
        return self.order_n[torch.cat(found)] if found else self.order_n[:0]


def _by_item(item_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Interactions by item and within one in their order, int32 where that holds them; the items, ascending, and how
    many interactions each has. Sorted a chunk at a time, so that beside the result there is a chunk in memory."""
    device, n = item_n.device, len(item_n)
    count_I = counted(item_n)
    next_I = count_I.cumsum(0) - count_I  # where the next interaction of each item goes
    order_n = torch.empty(n, dtype=torch.int32 if n < 1 << 31 else torch.int64, device=device)
    for start, chunk in zip(range(0, n, CHUNK), item_n.split(CHUNK), strict=False):
        sorted_c, index_c = torch.sort(chunk, stable=True)
        item, number = torch.unique_consecutive(sorted_c, return_counts=True)
        shift = next_I[item] - (number.cumsum(0) - number)
        place_c = torch.arange(len(chunk), device=device) + torch.repeat_interleave(shift, number)
        order_n[place_c] = (index_c + start).to(order_n.dtype)
        next_I[item] += number
    item = count_I.nonzero().flatten()
    return order_n, item, count_I[item]


@dataclass(frozen=True)
class Models:
    """The trained environments' projections of one representation, W [g, c, D] and b [g, c], by the numbers in `names`;
    x_r is scaled by scale_D."""

    r: int
    scale_D: Tensor
    names: Sequence[int]
    projections: Trained


@torch.no_grad()
def assign(frozen: Frozen, blocks: Blocks, models: Models, part: tuple[int, int] = (0, 1)) -> Tensor:
    """The environment that scores highest, int8 or int16 [n]; 0 outside a part of all. Ties go to the first."""
    device, c = frozen.engine.device, frozen.content
    g, D = len(models.names), len(models.scale_D)
    content_Uc = frozen.content_Uc
    W_gcD, b_gc = (x.to(device) for x in models.projections)
    W_Dgc = (W_gcD * models.scale_D.to(device)).view(g * c, D).T
    # a column of ones takes the bias: addmm would write it over the result first
    Wb = torch.cat([W_Dgc, b_gc.view(1, g * c)])
    total_Ug = _totals(frozen, models, Wb) if frozen.tau is not None else None
    dtype = narrow(frozen.settings.environments)
    name_g = torch.tensor(models.names, dtype=dtype, device=device)
    out_n = torch.zeros(len(blocks.order_n), dtype=dtype, device=device)
    for pieces, k in blocks.part(*part):
        place_mk, _ = blocks.places(pieces, k)
        interaction_m = blocks.order_n[place_mk.view(-1)]
        user_m = frozen.user[interaction_m]
        content_mkc = content_Uc.index_select(0, user_m).view(-1, k, c)
        x_m = F.pad(frozen.x[models.r].index_select(0, blocks.item[pieces]), (0, 1), value=1)
        item_mgc = torch.mm(x_m, Wb).view(-1, g, c)
        score_mkg = torch.bmm(content_mkc, item_mgc.transpose(1, 2))
        if total_Ug is not None:
            score_mkg.sub_(total_Ug.index_select(0, user_m).view(-1, k, g))
        best_m = score_mkg.argmax(2).view(-1)
        out_n[interaction_m] = name_g[best_m]  # rows that repeat another write the same again
    return out_n


def _totals(frozen: Frozen, models: Models, Wb: Tensor) -> Tensor:
    """tau times the logarithm of every user's total of exp(score / tau) over some items, under every model, [U, g]."""
    assert frozen.tau is not None
    items = torch.arange(len(frozen.item_Id) - 1, device=Wb.device) if frozen.pool is None else frozen.pool
    spread = torch.linspace(0, len(items) - 1, min(_SAMPLE, len(items)), device=Wb.device).long()
    x_S = F.pad(frozen.x[models.r].index_select(0, items[spread]), (0, 1), value=1)
    item_gSc = torch.mm(x_S, Wb).view(len(x_S), len(models.names), -1).transpose(0, 1)
    n, g = len(frozen.content_Uc), len(models.names)
    # one buffer for all blocks: fresh ones among results that stay would leave holes that the next do not fit
    score_uS = x_S.new_empty(min(_USERS, n), len(x_S))
    total_gU = x_S.new_empty(g, n)
    for start in range(0, n, _USERS):
        content_uc = frozen.content_Uc[start : start + _USERS]
        out_uS = score_uS[: len(content_uc)]
        for e, item_Sc in enumerate(item_gSc):
            torch.mm(content_uc, item_Sc.T, out=out_uS).div_(frozen.tau)
            torch.logsumexp(out_uS, 1, out=total_gU[e, start : start + _USERS])
    return total_gU.mul_(frozen.tau).T.contiguous()
