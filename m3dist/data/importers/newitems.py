"""Reads a folder of items alone: their ids and features, as `m3dist prepare tables` reads them beside interactions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from m3dist.data.blocks import finite, row_blocks
from m3dist.data.dataset import DataError
from m3dist.data.importers import features as feat
from m3dist.data.importers.catalogue import Catalogue
from m3dist.data.importers.ids import RowIds
from m3dist.data.importers.layout import items_layout
from m3dist.data.importers.learnt import Learnt, Pass
from m3dist.data.importers.options import Options
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.values import Reread


@dataclass(frozen=True)
class NewItems:
    """ids: original ones. features: by modality, float32 [n, d]. present: bool [n], which items have a modality."""

    ids: pa.Array
    features: dict[str, np.ndarray]
    present: dict[str, np.ndarray]


def read_new_items(src: Path, options: Options | None = None) -> NewItems:
    """The items of a folder: an items table and features in its order, or features with ids.

    Raises DataError, also where nothing says which ids the items have.
    """
    options = options or Options()
    layout = items_layout(src, options)
    if not layout.features:
        raise DataError(f"{src}: no features; expected a file a modality, beside an items table or with ids")
    learnt = Learnt.of(options)
    while True:
        run = Pass(options, learnt, BadRows())
        try:
            items = Catalogue(layout, run)
            if isinstance(items.codes.ids, RowIds):
                raise DataError(
                    f"{src}: {items.matrices[0].file} has rows by position and nothing says whose they are; list the "
                    "ids in the same order in an items table, items.tsv"
                )
            ids, _, features = items.finish(items.read_vectors(), [])
            break
        except Reread:
            learnt.again()
    feat.assign_flags(features, options.files.present, layout.folder)
    ids = ids["id"].combine_chunks() if isinstance(ids, pa.Table) else ids
    features, _ = feat.pad(features, len(ids))
    found, present = {}, {}
    for feature in features:
        here = np.ones(len(ids), dtype=bool) if feature.present is None else feature.present
        found[feature.name] = _values(feature, here)
        present[feature.name] = here
    return NewItems(ids, found, present)


def _values(feature: feat.Feature, present: np.ndarray) -> np.ndarray:
    """[n, d], checked; rows of items that lack the modality are zeros."""
    parts: list[np.ndarray] = []
    rows = 0
    for block in row_blocks(feature.blocks()):
        parts.append(finite(block, np.dtype(np.float32), rows, present, feature.file))
        rows += len(block)
    if rows != len(present):
        raise DataError(f"{feature.file}: {rows} feature rows for {len(present)} items")
    return np.concatenate(parts)
