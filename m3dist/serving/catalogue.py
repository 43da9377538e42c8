"""The items that a run ranks: their ids, which of them have been trained, and their content.

Shapes: I items, w content width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.data.importers.idlists import places
from m3dist.training.data import DeviceData


@dataclass(frozen=True)
class Catalogue:
    """ids: as the data set has them, by place. trained_I: bool, which have training interactions. content_Iw: all
    modalities side by side, rows of length 1, or of 0 where an item has none; None without features."""

    ids: pa.ChunkedArray
    trained_I: Tensor
    content_Iw: Tensor | None

    @staticmethod
    def of(data: DeviceData) -> Catalogue:
        """The items of a data set."""
        content = data.all_features
        trained_I = torch.from_numpy(data.dataset.degrees[1] > 0).to(data.device)
        return Catalogue(data.dataset.item_ids, trained_I, None if content is None else F.normalize(content, dim=1))

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, ids: Iterable[Any], source: str, skip_unknown: bool = False) -> np.ndarray:
        """Where items stand, int64; -1 for unknown ones under skip_unknown. Raises ValueError that names them."""
        return places(ids, self.ids, source, skip_unknown, "item")

    def mark(self, ids: Iterable[Any], source: str, skip_unknown: bool = False) -> Tensor:
        """bool [I]: which items these are."""
        at = self.places(ids, source, skip_unknown)
        out = torch.zeros(len(self), dtype=torch.bool)
        out[torch.from_numpy(at[at >= 0])] = True
        return out.to(self.trained_I.device)
