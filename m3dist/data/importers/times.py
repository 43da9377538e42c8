"""Times of interactions, from text, Parquet and Arrow alike: ISO 8601, dates, timestamps, and epoch numbers.

Shapes: b rows of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3dist.data.dataset import DataError
from m3dist.data.importers.rows import Rows
from m3dist.data.importers.values import Reread, plain

WHOLE, FRACTIONS, DATES = "whole", "fractions", "dates"
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:?\d{2}(:?\d{2}([.,]\d{1,9})?)?)?)?( ?([zZ]|UTC|GMT|[+-]\d{2}(:?\d{2})?))?$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_NS = pa.timestamp("ns")
_UNITS = ((1e8, "", 0), (1e11, "s", 1), (1e14, "ms", 1e3), (1e17, "us", 1e6), (np.inf, "ns", 1e9))
_SAID = {"": "plain numbers", "s": "epoch seconds", "ms": "epoch milliseconds", "us": "epoch microseconds"}
_SAID |= {"ns": "epoch nanoseconds"}


@dataclass
class TimeKind:
    """What the times of a source are, decided over all its files.

    mode: WHOLE numbers until one has a fraction; DATES (nanoseconds since 1970 in UTC) where the first ones are.
    """

    format: str | None = None  # of strptime
    mode: str = ""
    low: float = np.inf
    high: float = -np.inf
    units: dict[str, str] = field(default_factory=dict)  # unit of epoch numbers: the first place with it
    naive: bool = False  # dates without a zone
    zoned: bool = False

    @property
    def dtype(self) -> type:
        return np.float64 if self.mode == FRACTIONS else np.int64

    @property
    def unit(self) -> str:
        return "ns" if self.mode == DATES else next(iter(self.units), "")

    def add(self, other: TimeKind) -> None:
        """Take what a later file of the source says. Raises DataError where its numbers have another unit."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.naive, self.zoned = self.naive or other.naive, self.zoned or other.zoned
        for unit, where in other.units.items():
            self.units.setdefault(unit, where)
        self.need_one_unit()

    def need_one_unit(self) -> None:
        """Raises DataError where epoch numbers have two units."""
        if len(self.units) > 1:
            (a, here), (b, there) = list(self.units.items())[:2]
            raise DataError(f"{there}: a time in {_SAID[b]}, but {here} has one in {_SAID[a]}; bring them to one unit")

    def said(self, column: str) -> str:
        """What was taken for what, for people."""
        if self.mode == DATES:
            kind = "dates and times"
            if self.naive:
                kind += " without a zone, taken as UTC" if not self.zoned else ", those without a zone taken as UTC"
        else:
            kind = _SAID[self.unit]
        if not self.unit:
            kind = "dates written as yyyymmdd" if self._compact else kind
            return f"times: {kind} in {column!r}, {self.low:.15g} to {self.high:.15g}"
        return f"times: {kind} in {column!r}, {self._day(self.low)} to {self._day(self.high)}"

    def moment(self, text: str, option: str) -> int | float:
        """A date, or a number in the column's own unit, as these times count. Raises DataError."""
        try:
            number = float(text)
            if self.mode != DATES and not (self.unit and number < 1e8):
                return number
        except ValueError:
            pass
        try:
            found = [stamps[0].value for stamps in _iso(pa.array([text])) if stamps is not None]
            moment = next(value for value in found if value is not None)
        except (pa.ArrowInvalid, StopIteration):
            raise DataError(
                f"{option} {text!r}: expected a date such as 2015-01-31, or a number like the times"
            ) from None
        if not self.unit and self._compact:
            return int(str(np.datetime64(moment, "ns").astype("datetime64[D]")).replace("-", ""))
        if not self.unit:
            raise DataError(f"{option} {text!r}: the times are plain numbers, so give a number")
        return moment if self.unit == "ns" else moment / 1e9 * self._per_second()

    @property
    def _compact(self) -> bool:
        return self.mode == WHOLE and self.low >= 19000101 and self.high <= 21001231

    def _per_second(self) -> float:
        return next(per for _, unit, per in _UNITS if unit == self.unit)

    def _day(self, time: float) -> str:
        return str(np.datetime64(int(time / self._per_second()), "s").astype("datetime64[D]"))


def time_column(array: pa.Array, kind: TimeKind, rows: Rows) -> np.ndarray:
    """int64 [b] (float64 for fractions) that orders as the times do; 0 in rows that are refused. Raises Reread."""
    array = plain(array, "time", rows)
    missing = pc.is_null(array)
    if pa.types.is_string(array.type):
        array = pc.utf8_trim_whitespace(array)
        missing = pc.or_kleene(missing, pc.equal(array, "")).fill_null(True)
    lacking = missing.to_numpy(zero_copy_only=False)
    rows.refuse(lacking, "missing time", lambda at: "the time is missing")
    if not kind.mode:
        kind.mode = _first_mode(array, kind)
    if kind.mode == DATES:
        times = _dates(array, kind, rows, lacking)
    else:
        times = _numbers(array, kind, rows, lacking)
    kept = times[rows.kept] if not rows.kept.all() else times
    if len(kept):
        kind.low, kind.high = min(kind.low, kept.min()), max(kind.high, kept.max())
        if kind.mode != DATES:
            _note_units(times, kind, rows)
    return times


def _first_mode(array: pa.Array, kind: TimeKind) -> str:
    """Dates or numbers, by the majority of the first batch."""
    if kind.format or pa.types.is_temporal(array.type):
        return DATES
    if pa.types.is_string(array.type):
        numbers = pc.sum(pc.match_substring_regex(array, _NUMBER)).as_py() or 0
        dates = pc.sum(pc.match_substring_regex(array, _ISO)).as_py() or 0
        return DATES if dates > numbers else WHOLE
    return WHOLE


def _numbers(array: pa.Array, kind: TimeKind, rows: Rows, lacking: np.ndarray) -> np.ndarray:
    odd = np.zeros(len(array), dtype=bool)
    if pa.types.is_string(array.type):
        try:
            array = pc.cast(pc.if_else(pa.array(lacking), "0", array), pa.int64())
        except pa.ArrowInvalid:
            odd = ~pc.match_substring_regex(array, _NUMBER).fill_null(False).to_numpy(zero_copy_only=False) & ~lacking
            text, array = array, pc.cast(pc.if_else(pa.array(odd | lacking), "0", array), pa.float64())
            _refuse_odd(text, odd, rows, "a number")
    elif pa.types.is_temporal(array.type) or not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise DataError(f"{rows.where(0)}: the time is {array.type}, the times before it are numbers")
    if pa.types.is_integer(array.type):
        if array.type == pa.uint64() and (pc.max(array).as_py() or 0) >= 1 << 63:
            raise DataError(f"{rows.where(0)}: a time is beyond 2**63")
        whole = pc.cast(array, pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        return whole.astype(np.float64) if kind.mode == FRACTIONS else whole
    number = pc.cast(array, pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
    rows.refuse(~np.isfinite(number), "missing time", lambda at: f"time is {number[at]}, expected a number")
    number = np.where(np.isfinite(number) & ~odd, number, 0.0)
    if kind.mode == FRACTIONS:
        return number
    if (number % 1 != 0).any() or (np.abs(number) >= 1 << 63).any():
        kind.mode = FRACTIONS
        raise Reread()
    return number.astype(np.int64)


def _dates(array: pa.Array, kind: TimeKind, rows: Rows, lacking: np.ndarray) -> np.ndarray:
    """int64 [b] nanoseconds since 1970, UTC."""
    if pa.types.is_string(array.type):
        read = _formatted if kind.format else _parsed
        stamps = read(array, kind)
    elif pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        zone = getattr(array.type, "tz", None)
        kind.naive, kind.zoned = kind.naive or not zone, kind.zoned or bool(zone)
        stamps = _cast(array, lambda part: pc.cast(part, pa.timestamp("ns", zone) if zone else _NS))
    else:
        raise DataError(f"{rows.where(0)}: the time is {array.type}, the times before it are dates")
    odd = pc.is_null(stamps).to_numpy(zero_copy_only=False) & ~lacking
    _refuse_odd(array, odd, rows, f"a date of the format {kind.format!r}" if kind.format else "an ISO 8601 date")
    return pc.cast(stamps, pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)


def _formatted(array: pa.Array, kind: TimeKind) -> pa.Array:
    kind.naive = True
    return _cast(pc.strptime(array, format=kind.format, unit="s", error_is_null=True), lambda x: pc.cast(x, _NS))


def _parsed(array: pa.Array, kind: TimeKind) -> pa.Array:
    """ISO 8601 text as timestamps; null where it is none."""
    naive, zoned = _iso(array)
    kind.naive, kind.zoned = kind.naive or naive is not None, kind.zoned or zoned is not None
    if naive is None or zoned is None:
        return naive if zoned is None else zoned
    return pc.coalesce(pc.cast(naive, pa.int64()), pc.cast(zoned, pa.int64()))


def _iso(array: pa.Array) -> tuple[pa.Array | None, pa.Array | None]:
    """Times without a zone, and times with one; null where a value is not of that kind, None where none is."""
    for zone in (None, "UTC"):  # all alike, as nearly always
        try:
            stamps = pc.cast(array, pa.timestamp("ns", zone))
            return (stamps, None) if zone is None else (None, stamps)
        except pa.ArrowInvalid:
            continue
    usable = pc.match_substring_regex(array, _ISO)
    text = pc.replace_substring_regex(array, r"^(.{10})[ T]", r"\1T")
    text = pc.replace_substring_regex(text, r" ?([zZ]|UTC|GMT)$", "Z")
    text = pc.replace_substring(pc.replace_substring_regex(text, r" ([+-])", r"\1"), ",", ".")
    has_zone = pc.and_kleene(usable, pc.match_substring_regex(text, r"^.{11,}(Z|[+-]\d{2}(:?\d{2})?)$"))
    out = []
    for zone, chosen in ((None, pc.and_kleene(usable, pc.invert(has_zone))), ("UTC", has_zone)):
        chosen = chosen.fill_null(False)
        part = pc.if_else(chosen, text, pa.scalar(None, pa.string()))
        cast = functools.partial(pc.cast, target_type=pa.timestamp("ns", zone))
        out.append(_cast(part, cast) if pc.any(chosen).as_py() else None)
    if out == [None, None]:
        return pa.nulls(len(array), _NS), None
    return out[0], out[1]


def _cast(array: pa.Array, cast: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """`cast` of an array, null where a value cannot be cast: halves until what fails is alone."""
    try:
        return cast(array)
    except pa.ArrowInvalid:
        if len(array) == 1:
            return cast(pa.nulls(1, array.type))
        half = len(array) // 2
        return pa.concat_arrays([_cast(array[:half], cast), _cast(array[half:], cast)])


def _refuse_odd(array: pa.Array, odd: np.ndarray, rows: Rows, expected: str) -> None:
    rows.refuse(
        odd,
        "unreadable time",
        lambda at: f"time {array[at].as_py()!r} is not {expected}, as others are; --time-format reads other dates",
    )


def _note_units(times: np.ndarray, kind: TimeKind, rows: Rows) -> None:
    """Remember the unit that epoch numbers show by their size; refuse two units in one source."""
    size = np.abs(times)
    for low, (high, unit, _) in zip((0.0, *(top for top, _, _ in _UNITS)), _UNITS, strict=False):
        if not unit or unit in kind.units:
            continue
        found = np.flatnonzero((size >= low) & (size < high) & rows.kept)
        if len(found):
            kind.units[unit] = rows.where(int(found[0]))
    kind.need_one_unit()
