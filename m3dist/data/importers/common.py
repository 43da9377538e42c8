"""What every importer returns, and how it becomes a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m3dist.data.dataset import DataError
from m3dist.data.importers.features import Feature
from m3dist.data.importers.splits import Splits
from m3dist.data.writer import Origin, Writer


@dataclass
class Source:
    """Data read from some format, with dense ids.

    splits: {"train": (user, item), ...}, int32 [n] each; files: the file that each split came from.
    user_ids, item_ids: original ids by dense id (an array, or a table with an `id` column); None: 0..n-1.
    duplicates: interactions that were dropped as duplicates before they were split.
    notes: what a person should know, a line each.
    """

    format: str
    n_users: int
    n_items: int
    splits: Splits
    files: dict[str, str]
    features: list[Feature] = field(default_factory=list)
    user_ids: Any = None
    item_ids: Any = None
    duplicates: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write(source: Source, dst: str | Path, overlap: str = "error") -> dict[str, Any]:
    """Write `source` as a prepared data set; returns dataset.json's content with `notes`.

    Raises DataError; nothing is left at `dst` then. `source.splits` is emptied, so that its memory can go.
    """
    item_names = source.item_ids["id"] if hasattr(source.item_ids, "column_names") else source.item_ids
    with Writer(dst) as out:
        for feature in source.features:  # the cheap check of all features comes before the copy of any
            if feature.rows is not None and feature.rows != source.n_items:
                raise DataError(
                    f"{feature.file}: {feature.rows} feature rows for {source.n_items} items; "
                    "row i must belong to item i"
                )
        splits, source.splits = source.splits, {}
        out.interactions(
            source.n_users,
            source.n_items,
            splits,
            overlap=overlap,
            origin=Origin(source.files, source.user_ids, item_names),
        )
        del splits
        for feature in source.features:
            out.features(feature.name, feature.blocks(), feature.present, feature.file)
        if source.duplicates:
            out.report["duplicates_dropped"]["before_split"] = source.duplicates
        meta = out.finish(
            source.user_ids,
            source.item_ids,
            provenance={
                "format": source.format,
                "files": {**source.files, **{f.name: f.file for f in source.features}},
                "options": {**source.options, "overlap": overlap},
                "notes": source.notes,
            },
        )
    return meta


def need(array: np.ndarray, source: str, what: str) -> np.ndarray:
    """`array`, which must not be empty."""
    if not len(array):
        raise DataError(f"{source}: no {what}")
    return array
