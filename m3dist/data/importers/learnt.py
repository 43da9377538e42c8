"""What reading a source teaches about it, kept when it has to be read again."""

from __future__ import annotations

from dataclasses import dataclass, field

from m3dist.data.dataset import DataError
from m3dist.data.importers.features import Feature, Vectors
from m3dist.data.importers.ids import INTEGERS, TEXT
from m3dist.data.importers.opening import Quotings
from m3dist.data.importers.options import BAD_ROWS, IDS, Options
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.times import TimeKind
from m3dist.data.importers.values import IdKind


@dataclass
class Learnt:
    """Kinds of columns, quoting of files, and opened features: what does not depend on a pass."""

    users: IdKind
    items: IdKind
    times: TimeKind
    quotings: Quotings = field(default_factory=dict)
    features: dict[str, Feature | Vectors] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Options) -> Learnt:
        """Nothing yet but what a person says. Raises DataError."""
        rules = options.rows
        if rules.ids not in IDS or rules.on_bad_row not in BAD_ROWS:
            raise DataError(
                f"--ids {rules.ids}, --on-bad-row {rules.on_bad_row}: expected {'|'.join(IDS)}, {'|'.join(BAD_ROWS)}"
            )
        mode, given = (TEXT if rules.ids == "text" else INTEGERS), rules.ids != "auto"
        return cls(IdKind("user", mode, given), IdKind("item", mode, given), TimeKind(rules.time_format))

    def again(self) -> None:
        """Begin another pass: what is counted begins anew, what is known stays."""
        self.times = TimeKind(self.times.format, self.times.mode)


@dataclass
class Pass:
    """One pass over all files of a source.

    readings: by file, what was taken for what; notes: what a person should know.
    """

    options: Options
    learnt: Learnt
    bad: BadRows
    readings: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
