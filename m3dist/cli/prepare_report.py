"""What `m3dist prepare` prints: what a data set holds, or how the first rows of a source are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from m3dist.data.dataset import SPLITS
from m3dist.data.importers.common import Source
from m3dist.terminal import cells, printable

PREVIEW = 1000  # rows of each table that --dry-run reads
_SHOWN = 5  # rows that it shows


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 100)


def say(line: str) -> None:
    """Print a line, as it is."""
    _console().print(printable(line), markup=False, highlight=False, soft_wrap=True)


def report(dst: Path, meta: dict[str, Any]) -> None:
    """Print what a prepared data set holds. meta: the content of its dataset.json."""
    table = Table(title=cells(dst)[0], title_justify="left", show_header=False)
    rows: list[tuple[str, str]] = [("users", f"{meta['users']:,}"), ("items", f"{meta['items']:,}")]
    for split in SPLITS:
        rows.append((f"{split} interactions", f"{meta['interactions'][split]:,}"))
    rows.append(("sparsity", f"{100 * meta['sparsity']:.4f} %"))
    for name, width in meta["modalities"].items():
        rows.append((f"modality {name}", _modality(meta, name, width)))
    if not meta["modalities"]:
        rows.append(("modalities", "none: model=ultragcn trains on ids"))
    cold = meta["cold_items"]
    rows.append(("cold items", f"{cold['all']:,} (in val {cold['val']:,}, in test {cold['test']:,})"))
    rows.append(("cold users", f"{meta['cold_users']:,}"))
    rows.append(("duplicates dropped", _counts(meta["duplicates_dropped"])))
    if any(meta["overlaps_dropped"].values()):
        rows.append(("overlaps dropped", _counts(meta["overlaps_dropped"])))
    rows.append(("fingerprint", meta["fingerprint"]))
    for row in rows:
        table.add_row(*cells(*row))
    _console().print(table)
    _origins(meta["provenance"].get("readings", {}), meta["provenance"].get("notes", []))
    for name, columns in meta["columns"].items():
        zero = columns["zero_rows"]
        if zero and meta["provenance"].get("options", {}).get("zero_rows") != "missing":
            say(
                f"note: rows of {name} that hold zeros only: {zero:,}. Do these items lack it? --zero-rows missing "
                "says so, --zero-rows error refuses them"
            )


def preview(source: Source) -> None:
    """Print how the first rows of a source are read."""
    say(f"{source.format}: the first rows as they are read")
    table = Table()
    for column in ("split", "user", "item"):
        table.add_column(column)
    items = source.item_ids["id"] if hasattr(source.item_ids, "column_names") else source.item_ids
    for split in SPLITS:
        user, item = source.splits[split]
        for u, i in zip(user[:_SHOWN].tolist(), item[:_SHOWN].tolist(), strict=True):
            table.add_row(*cells(split, repr(_original(source.user_ids, u)), repr(_original(items, i))))
    _console().print(table)
    counts = ", ".join(f"{split} {len(source.splits[split][0]):,}" for split in SPLITS)
    say(f"at most {PREVIEW:,} rows of each table: {counts}; {source.n_users:,} users, {source.n_items:,} items")
    _origins({**source.readings, **{f.file: f.reading for f in source.features}}, source.said())
    for feature in source.features:
        lacking = "" if feature.present is None else f", {int(np.sum(~feature.present)):,} items lack it"
        say(f"modality {feature.name}: {feature.file}, {feature.rows:,} rows{lacking}")
    say("nothing was written (--dry-run)")


def _original(ids: Any, dense: int) -> Any:
    if ids is None:
        return dense
    value = ids[dense]
    return value.as_py() if hasattr(value, "as_py") else value


def _origins(readings: dict[str, str], notes: list[str]) -> None:
    for file, reading in readings.items():
        say(f"read: {file}: {reading}")
    for note in notes:
        say(f"note: {note}")


def _modality(meta: dict[str, Any], name: str, width: int) -> str:
    columns, lacking = meta["columns"][name], meta["lacking"].get(name, 0)
    out = f"width {width}, {meta['items'] - lacking:,} of {meta['items']:,} items have it"
    for what in ("constant", "duplicate"):
        if columns[what]:
            out += f", {columns[what]:,} {what} columns"
    return out


def _counts(by_split: dict[str, int]) -> str:
    total = sum(by_split.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in by_split.items() if n)
    return f"{total:,}" + (f" ({parts})" if parts else "")
