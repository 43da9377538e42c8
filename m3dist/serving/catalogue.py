"""The items that a run ranks: their ids, which of them have been trained, and their content.

Shapes: I items, w content width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.data.importers.idlists import places
from m3dist.training.data import DeviceData


def typed(ids: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Ids of a given type; null where one cannot be of that type."""
    try:
        return pa.array(ids).cast(kind)
    except (pa.ArrowException, TypeError):
        return pa.array([_as(value, kind) for value in ids], type=kind)


def _as(value: Any, kind: pa.DataType) -> Any:
    try:
        return pa.scalar(value).cast(kind).as_py()
    except pa.ArrowException:
        return None


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

    def extended(self, ids: pa.Array, x: list[Tensor]) -> Catalogue:
        """With new items behind these. x: their features, as `DeviceData.prepared` has them.

        Raises ValueError where one of them is there already, or has an id that is no id of this kind.
        """
        kind = self.ids.type
        text = ids.to_pylist()
        new = typed(text, kind)
        if new.null_count:
            odd = text[pc.index(new.is_null(), True).as_py()]
            raise ValueError(f"new items: id {odd!r} cannot be one of this run's items, whose ids are {kind}")
        there = pc.index_in(new, value_set=self.ids)
        if there.null_count < len(new):
            raise ValueError(f"new items: item {new[pc.index(there.is_valid(), True).as_py()].as_py()!r} is not new")
        if len(pc.unique(new)) < len(new):
            raise ValueError("new items: an id stands there twice")
        assert self.content_Iw is not None
        content = torch.cat([self.content_Iw, F.normalize(torch.cat(x, dim=1), dim=1)])
        trained_I = F.pad(self.trained_I, (0, len(new)))
        return Catalogue(pa.chunked_array([*self.ids.chunks, new]), trained_I, content)

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
