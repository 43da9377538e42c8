"""MMRec folders: one NAME.inter table (userID, itemID, ..., x_label 0, 1, 2 = train, val, test) and *_feat.npy.

Ids are dense and row i of the features is item i, so this is the tables importer with the names filled in.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from m3dist.data.dataset import DataError
from m3dist.data.importers import tables
from m3dist.data.importers.common import Source


def read(src: Path, features: dict[str, Path] | None = None, present: dict[str, Path] | None = None) -> Source:
    """Read the folder. Raises DataError."""
    if not src.is_dir():
        raise DataError(f"{src}: expected an MMRec folder")
    found = sorted(src.glob("*.inter"))
    if len(found) != 1:
        raise DataError(
            f"{src.name}: expected one .inter table, found {', '.join(path.name for path in found) or 'none'}"
        )
    options = tables.Options(features=features or find_features(src), present=present or {})
    label = tables.open_table(found[0]).pick(None, ("xlabel",), "x_label", "", required=False)
    if not label:
        raise DataError(
            f"{found[0].name}: no x_label column (0, 1, 2 = train, val, test); `m3dist prepare tables` can split it"
        )
    layout = tables.Layout("mmrec", {tables.UNSPLIT: found[0]}, None, options.features, src)
    return tables.read_layout(layout, replace(options, split_column=label))


def find_features(src: Path) -> dict[str, Path]:
    """image_feat.npy is modality `image`."""
    return {path.stem.removesuffix("_feat"): path for path in sorted(src.glob("*_feat.npy"))}
