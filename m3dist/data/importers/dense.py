"""Features for formats whose items are numbered from 0 already."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from m3dist.data.dataset import DataError
from m3dist.data.importers import features as feat
from m3dist.data.importers.featurefiles import is_ambiguous, open_feature
from m3dist.data.importers.ids import INTEGERS, RowIds
from m3dist.data.importers.options import Options
from m3dist.data.importers.rows import BadRows, Rows
from m3dist.data.importers.values import IdKind, id_column

Opened = dict[str, feat.Feature | feat.Vectors]


def open_features(found: dict[str, Path], options: Options, lenient: set[str]) -> tuple[Opened, list[str]]:
    """Modalities by name, and notes on the lenient ones whose file holds no features. Raises DataError."""
    out, notes = {}, []
    for name, path in found.items():
        by_chance = not options.files.features and (name in lenient or is_ambiguous(path))
        try:
            feature = open_feature(name, path, options.columns)
            if by_chance and feature.whole:
                raise DataError(f"{path.name}: whole numbers; --feature {name}={path.name} takes them as features")
            out[name] = feature
        except DataError as error:
            if not by_chance:
                raise
            notes.append(f"not used: {error}")
    return out, notes


def placed(feature: feat.Feature | feat.Vectors, n_items: int) -> feat.Feature:
    """A modality with a row per item: features with ids join by item number. Raises DataError."""
    if isinstance(feature, feat.Feature):
        return feature
    out, ids = feat.Placed(feature), RowIds(n_items, n_items)
    kind = IdKind("item", INTEGERS, given=True)
    for where, given, values, held in feature.batches(BadRows()):
        codes = ids.encode(id_column(given, kind, Rows(len(given), where, BadRows())))
        bad = np.flatnonzero(codes < 0)
        if len(bad):
            at = int(bad[0])
            raise DataError(f"{where(at)}: item {given[at].as_py()!r}, expected item numbers 0..{n_items - 1}")
        out.add(codes[held], values, where)
    return out.place(None, n_items)
