"""What every importer returns, and how it becomes a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers.features import Feature
from m3dist.data.importers.splits import Splits
from m3dist.data.keys import Origin, Stored
from m3dist.data.writer import Writer

_LISTED = 10  # files that a note names
_TEXTS = ("readme", "license", "licence", "provenance", "copying", "notice", "citation", "changelog")


@dataclass
class Source:
    """Data read from some format, with dense ids.

    splits: {"train": (user, item), ...}, int32 [n] each; files: the file that each split came from.
    stored: in place of splits, sorted keys on disk.
    user_ids, item_ids: original ids by dense id (an array, or a table with an `id` column); None: 0..n-1.
    duplicates: interactions that were dropped as duplicates before they were split.
    readings: by file, what was taken for what; notes: what a person should know, a line each.
    folder, used: where the source lies, and which of its files were used; the others are named in a note.
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
    readings: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None
    used: set[Path] = field(default_factory=set)
    stored: Stored | None = None

    def said(self) -> list[str]:
        """All notes: those of the importer, and one on files that nothing read."""
        return self.notes + (left_out(self.folder, self.used) if self.folder else [])


def write(source: Source, dst: str | Path, overlap: str = "error", zero_rows: str = "keep") -> dict[str, Any]:
    """Write `source` as a prepared data set; returns dataset.json's content.

    overlap, zero_rows: see Writer. Raises DataError; nothing is left at `dst` then. `source.splits` is emptied, so
    that its memory can go.
    """
    item_names = source.item_ids["id"] if hasattr(source.item_ids, "column_names") else source.item_ids
    notes = source.said()
    with Writer(dst) as out:
        for feature in source.features:  # the cheap check of all features comes before the copy of any
            if feature.rows is not None and feature.rows != source.n_items:
                raise DataError(
                    f"{feature.file}: {feature.rows} feature rows for {source.n_items} items; "
                    "row i must belong to item i"
                )
        splits, source.splits = source.splits, {}
        origin = Origin(source.files, source.user_ids, item_names)
        if source.stored is not None:
            out.stored((source.n_users, source.n_items), source.stored, overlap, origin)
        else:
            out.interactions(source.n_users, source.n_items, splits, overlap, origin)
        del splits
        for feature in source.features:
            out.features(feature.name, feature.blocks(), feature.present, feature.file, zero_rows)
        if source.duplicates:
            out.report["duplicates_dropped"]["before_split"] = source.duplicates
        said = {"overlap": overlap} | ({"zero_rows": zero_rows} if zero_rows != "keep" else {})
        return out.finish(
            source.user_ids,
            source.item_ids,
            provenance={
                "format": source.format,
                "files": {**source.files, **{f.name: f.file for f in source.features}},
                "options": {**source.options, **said},
                "readings": {**source.readings, **{f.file: f.reading for f in source.features}},
                "notes": notes,
            },
        )


def need_dense(path: Path, highest: int, what: str) -> None:
    """Raise DataError where ids that should be numbered from 0 reach far beyond what the file can hold.

    highest: the highest id; each costs memory whether it occurs or not.
    """
    files.need_backing(path, 16 * (highest + 1), f"{what} ids up to {highest}")


def left_out(folder: Path, used: set[Path]) -> list[str]:
    """A note on each kind of file of a folder that was not used, with the reason."""
    taken = {files.real(path) for path in used}
    by_reason: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if files.real(path) in taken or any(other.is_relative_to(files.real(path)) for other in taken):
            continue
        by_reason.setdefault(_reason(path), []).append(path.name + ("/" if path.is_dir() else ""))
    notes = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        notes.append(f"not used: {', '.join(names[:_LISTED])}{more} ({reason})")
    return notes


def _reason(path: Path) -> str:
    from m3dist.data.importers.featurefiles import ARRAY_SUFFIXES
    from m3dist.data.importers.opening import SUFFIXES

    stem, suffix = files.stem(path).lower(), files.suffix(path)
    if path.name.startswith((".", "_")):
        return "hidden"
    if path.is_dir():
        return "a folder; name its files with options, or prepare it by itself"
    if stem.startswith(_TEXTS) or suffix == ".md":
        return "a text for people"
    if suffix in ARRAY_SUFFIXES:
        return "arrays that nothing asked for; --feature NAME=FILE takes one as features"
    if suffix in SUFFIXES:
        return "another table; --items takes one as the items table, --feature NAME=FILE as features"
    if suffix in (".xlsx", ".xls", ".ods"):
        return "a spreadsheet; save it as CSV"
    return "no format that is read"
