"""Tables as Markdown and CSV, plots as PNG."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from m3dist.storage.folders import Folder

Row = dict[str, str | float | int]


def write_table(path: Path, title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """`path`.md and `path`.csv with the same columns, those of the first row; None and nan are left empty."""
    columns, folder = list(rows[0]), Folder(path.parent)
    with folder.writing(f"{path.name}.csv") as partial, partial.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    lines = [f"# {title}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_shown(row[name]) for name in columns) + " |" for row in rows]
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    folder.write_text(f"{path.name}.md", "\n".join(lines) + "\n")


def _plain(value: str | float | int) -> str | float | int:
    """A value as spreadsheets show it: text that they would take for a formula gets an apostrophe."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if isinstance(value, float) and math.isnan(value) else value


def _shown(value: str | float | int) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def plot_lines(
    path: Path,
    x_label: str,
    panels: dict[str, dict[str, tuple[list[float], list[float], list[float]]]],
    width: float = 3.6,
) -> None:
    """One panel per name, in it one line per row: (x, mean, spread), with error bars where a spread is known."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), 3.0), squeeze=False)
    for axis, (name, lines) in zip(axes[0], panels.items(), strict=True):
        for row, (x, mean, spread) in lines.items():
            known = [0.0 if math.isnan(s) else s for s in spread]
            axis.errorbar(x, mean, yerr=known, marker="o", markersize=3, capsize=2, linewidth=1.2, label=row)
        axis.set_xlabel(x_label)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    with Folder(path.parent).writing(path.name) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)
