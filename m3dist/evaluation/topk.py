"""The k best items of every user, exactly, on any device.

Ties break by item id. Where a device runs behind the host, a block of users costs one wait: for the answer whether
any row has a tie that its first pass cannot settle, or a NaN.

Shapes: u users of a block, I items, k list length, G groups of columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = 16  # columns whose maximum stands for them in the first pass
_NAN = "the model's scores hold NaN; lower the learning rate"


def top_k(score_uI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best items of every row: ids int64 and scores, [u, k], best first, ties to the smaller id.

    k is cut to I. Raises FloatingPointError on NaN.
    """
    k = min(k, score_uI.shape[1])
    groups = score_uI.shape[1] // _GROUP
    if groups > 2 * k:
        item, score, doubtful_u = _by_groups(score_uI, k, groups)
    else:
        score, item = _largest(score_uI, k)
        doubtful_u = None
    tied_u = (score[:, 1:] == score[:, :-1]).any(1)
    tied_u = tied_u if doubtful_u is None else tied_u | doubtful_u
    nan_u = score[:, 0].isnan()  # NaN comes first
    item, score = item[:, :k], score[:, :k]
    if bool((tied_u | nan_u).any()):
        if bool(nan_u.any()):
            raise FloatingPointError(_NAN)
        rows = tied_u.nonzero().squeeze(1)
        item[rows], score[rows] = _sorted(score_uI[rows], k)
    return item, score


def _by_groups(score_uI: Tensor, k: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates [u, k + 1] in two passes, and the rows that may have missed one.

    Columns g, g + G, g + 2G, ... form group g; the k groups with the best maxima hold the k best items unless the k-th
    maximum is tied with a group left out, since k items beat everything outside. Only these groups' columns, and those
    behind the last group, are looked at.
    """
    u, n_items = score_uI.shape
    device = score_uI.device
    tail = torch.arange(groups * _GROUP, n_items, device=device)
    maximum_uG = score_uI[:, : groups * _GROUP].unflatten(1, (_GROUP, groups)).amax(1)
    value, best_uk = _largest(maximum_uG, k)
    columns = (best_uk[:, :k].unsqueeze(2) + torch.arange(_GROUP, device=device) * groups).flatten(1)
    columns = torch.cat([columns, tail.expand(u, len(tail))], dim=1)
    score, at = _largest(score_uI.gather(1, columns), k)
    return columns.gather(1, at), score, value[:, k - 1] == value[:, k]


def _largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k + 1 largest of every row and where, or all; NaN comes first."""
    return torch.topk(x, min(k + 1, x.shape[1]), dim=1)


def _sorted(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of rows that are sorted whole, by score and then by id."""
    item = torch.arange(score.shape[1], device=score.device)
    bits = (score.float() + 0.0).contiguous().view(torch.int32).long()  # -0.0 and 0.0 tie
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    at = torch.topk((ordered << 32) | (0x7FFFFFFF - item), k, dim=1).indices
    return at, score.gather(1, at)
