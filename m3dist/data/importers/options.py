"""What a person may say about a source, in groups. The command line has an option for each, of the same name."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from m3dist.data.dataset import DataError
from m3dist.data.importers.splits import Plan

IDS = ("auto", "integers", "text")
BAD_ROWS = ("error", "drop")
QUOTES = ("double", "single", "backslash", "none")
OVERLAPS = ("error", "drop")
ZERO_ROWS = ("keep", "missing", "error")


@dataclass(frozen=True)
class Columns:
    """Names of columns; None leaves it to the names that are known."""

    user_column: str | None = None
    item_column: str | None = None
    rating_column: str | None = None
    time_column: str | None = None
    split_column: str | None = None
    items_id: str | None = None  # the id column of the items table


@dataclass(frozen=True)
class Text:
    """How text tables are written; None leaves it to a vote over many lines.

    header: None looks whether the first line names columns.
    quote: "double" (a quote inside is doubled), "single", "backslash" (a quote inside follows a backslash) or "none".
    """

    header: bool | None = True
    delimiter: str | None = None
    quote: str | None = None
    encoding: str | None = None


@dataclass(frozen=True)
class RowRules:
    """Which rows count, and how their values are read."""

    threshold: float | None = None  # keep interactions rated at least this
    ids: str = "auto"
    on_bad_row: str = "error"
    time_format: str | None = None  # of strptime, for times that are neither ISO 8601 nor numbers
    first_item: int = 0  # the item id of row 0 of features by position


@dataclass(frozen=True)
class Files:
    """Files that a person names: the items table, and features and flags by modality."""

    items: Path | None = None
    features: dict[str, Path] = field(default_factory=dict)
    present: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """How the data set is written, see `common.write`."""

    overlap: str = "error"
    zero_rows: str = "keep"

    def check(self) -> None:
        """Raises DataError where a value is none."""
        if self.overlap not in OVERLAPS or self.zero_rows not in ZERO_ROWS:
            raise DataError(
                f"--overlap {self.overlap}, --zero-rows {self.zero_rows}: expected {'|'.join(OVERLAPS)}, "
                f"{'|'.join(ZERO_ROWS)}"
            )


READING: dict[str, Any] = {"columns": Columns, "text": Text, "rows": RowRules, "plan": Plan, "files": Files}
GROUPS = READING | {"written": Written}


# the options that an importer may take, by name; the command line offers those that an importer says it TAKES
ALL = frozenset(name for group in READING.values() for name in group.__dataclass_fields__) | {"users", "preview"}
FILES = frozenset({"features", "present", "preview"})
SPLITTING = frozenset(Plan.__dataclass_fields__) - {"min_user", "min_item"}


@dataclass(frozen=True)
class Options:
    """How data is read, split and written: the options of `m3dist prepare`, in groups. `of` takes them without groups.

    users: how many there are, for formats whose item ids start behind the users'.
    preview: read at most this many rows of a table.
    """

    columns: Columns = Columns()
    text: Text = Text()
    rows: RowRules = RowRules()
    plan: Plan = field(default_factory=Plan)
    files: Files = Files()
    written: Written = Written()
    users: int | None = None
    preview: int | None = None

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Options by the names that they have on the command line, without groups.

        Options.of(split="random", ratios=(0.8, 0.1, 0.1), seed=0, cold=0.2, threshold=4.0, user_column="who").
        """
        groups = {
            name: group(**{key: given.pop(key) for key in list(given) if key in group.__dataclass_fields__})
            for name, group in GROUPS.items()
        }
        return cls(**groups, **given)

    def said(self) -> dict[str, Any]:
        """The options that differ from their defaults, files by name only: provenance knows no one's folders."""
        out: dict[str, Any] = {}
        for group in (self.columns, self.text, self.rows, self.plan):
            default = type(group)()
            out |= {
                f.name: getattr(group, f.name)
                for f in fields(group)
                if getattr(group, f.name) != getattr(default, f.name)
            }
        if self.files.items:
            out["items"] = self.files.items.name
        if self.files.present:
            out["present"] = {name: path.name for name, path in self.files.present.items()}
        if self.plan.split:
            out |= {"ratios": list(self.plan.ratios), "seed": self.plan.seed}
        if self.users:
            out["users"] = self.users
        return out
