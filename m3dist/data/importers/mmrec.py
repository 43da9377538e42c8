"""MMRec folders: one .inter table with x_label (0, 1, 2 = train, val, test), and features under any name.

image_feat.npy is modality `image`. Ids are dense and row i of the features is item i.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.common import Source
from m3dist.data.importers.featurefiles import ARRAY_SUFFIXES
from m3dist.data.importers.layout import UNSPLIT, Layout, modality
from m3dist.data.importers.opening import open_table
from m3dist.data.importers.options import ALL, SPLITTING, Options
from m3dist.data.importers.reader import read_layout
from m3dist.data.importers.table import Role

TAKES = ALL - SPLITTING - {"users", "split_column", "time_column", "time_format", "header", "delimiter"}
_LABEL = Role("x_label", ("xlabel",), "", required=False)


def recognise(src: Path) -> str | None:
    """Why `src` is an MMRec folder, or None."""
    if not src.is_dir():
        return None
    found = sorted(src.glob("*.inter"))
    return f"{found[0].name} has x_label" if len(found) == 1 and open_table(found[0]).pick(None, _LABEL) else None


def read(src: Path, options: Options | None = None, **given: Any) -> Source:
    """Read the folder. Raises DataError."""
    options = options or Options.of(**given)
    if not src.is_dir():
        raise DataError(f"{src}: expected an MMRec folder")
    found = sorted(src.glob("*.inter"))
    if len(found) != 1:
        raise DataError(
            f"{src.name}: expected one .inter table, found {', '.join(path.name for path in found) or 'none'}"
        )
    label = open_table(found[0], options.text).pick(None, _LABEL)
    if not label:
        raise DataError(
            f"{found[0].name}: no x_label column (0, 1, 2 = train, val, test); `m3dist prepare recbole` can split it"
        )
    features = options.files.features or find_features(src)
    by_chance = set() if options.files.features else {n for n, p in features.items() if not p.stem.endswith("_feat")}
    layout = Layout("mmrec", {UNSPLIT: found[0]}, options.files.items, features, src, lenient=by_chance)
    return read_layout(layout, replace(options, columns=replace(options.columns, split_column=label)))


def find_features(src: Path, taken: Collection[Path] = ()) -> dict[str, Path]:
    """image_feat.npy is modality `image`; other arrays that are not taken may be features, too."""
    out = {path.stem.removesuffix("_feat"): path for path in sorted(src.glob("*_feat.npy"))}
    for path in sorted(src.iterdir()):
        if path.is_file() and files.suffix(path) in ARRAY_SUFFIXES and path not in out.values():
            if path.name.startswith((".", "_", "has_")) or path in taken:
                continue
            name = modality(path)
            out[name if name not in out else path.stem] = path
    return out
