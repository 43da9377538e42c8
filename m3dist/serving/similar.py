"""Items that a run finds alike, by the rows that it ranks by.

Shapes: q items asked for, I items, M members.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.serving.catalogue import Catalogue

_BLOCK = 1 << 24  # numbers of a block of cosines


@torch.no_grad()
def similar(catalogue: Catalogue, items: list[Tensor], weight_M: Tensor, asked: tuple[np.ndarray, int]) -> pa.Table:
    """A row for each of the k items most like each of those asked for: item, rank, similar and cosine.

    items: the members' rows [I, k]; weight_M: what each counts, so that their cosines add up to one number from -1 to
    1. asked: places of items, and k. No item is like itself.
    """
    at_q, k = torch.from_numpy(asked[0]), min(asked[1], len(catalogue) - 1)
    unit = [F.normalize(item_Ik.float(), dim=1) for item_Ik in items]
    columns: dict[str, list[Any]] = {"similar": [], "cosine": []}
    for part_b in at_q.split(max(1, _BLOCK // len(catalogue))):
        here_b = part_b.to(unit[0].device)
        like_bI = torch.zeros(len(here_b), len(catalogue), device=here_b.device)
        for row_Ik, weight in zip(unit, weight_M.tolist(), strict=True):
            like_bI.addmm_(row_Ik[here_b], row_Ik.T, alpha=weight)
        like_bI.scatter_(1, here_b[:, None], float("-inf"))
        value_bk, place_bk = torch.topk(like_bI, k, dim=1)
        columns["similar"].append(place_bk.flatten().cpu().numpy())
        columns["cosine"].append(value_bk.flatten().cpu().numpy())
    return pa.table(
        {
            "item": catalogue.ids.take(pa.array(np.repeat(asked[0], k))),
            "rank": np.tile(np.arange(1, k + 1), len(at_q)),
            "similar": catalogue.ids.take(pa.array(np.concatenate(columns["similar"]))),
            "cosine": np.concatenate(columns["cosine"]),
        }
    )
