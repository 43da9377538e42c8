"""Typed columns out of tables, the same from text, Parquet and Arrow: ids, numbers, split labels.

Shapes: b rows of a batch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3dist.data.dataset import DataError
from m3dist.data.importers.ids import INTEGERS, TEXT, UNSIGNED
from m3dist.data.importers.rows import Rows

LABELS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "0": 0, "1": 1, "2": 2}
_MISSING = pa.array(["null", "nan", "none", "n/a", "<na>", "\\n", "nat", "#n/a"])
_INTEGER = re.compile(r"-?[1-9][0-9]{0,99}|0")  # longer ones are text
_WHOLE = re.compile(r"(-?[1-9][0-9]{0,99}|0)\.0+")
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_POWERS = 10 ** np.arange(1, 19, dtype=np.int64)


class Reread(Exception):
    """A later row showed that a column, or a file, is not what it was taken for; what was learnt is kept."""


@dataclass
class IdKind:
    """What the ids of users or of items are, decided over all files of a source.

    They are 64-bit integers until one is not; then all are unsigned, or text.
    """

    what: str  # "user" or "item"
    mode: str = INTEGERS
    given: bool = False  # the mode is a person's choice
    odd: str = ""  # the first id that is no integer, and where
    respelled: str = ""  # the first integer written as 3.0, and where

    def become(self, mode: str, odd: str) -> Reread:
        self.mode, self.odd = mode, odd
        return Reread()


def plain(array: pa.Array, what: str, rows: Rows) -> pa.Array:
    """Integers, floats, booleans, times or strings as they are; every other encoding of these as one of them."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(array.storage, what, rows)
    if pa.types.is_dictionary(kind):
        return plain(array.dictionary_decode(), what, rows)
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(array), what, rows)
    if pa.types.is_null(kind) or pa.types.is_decimal(kind) or pa.types.is_large_string(kind) or _is_binary(kind):
        try:
            return pc.cast(array, pa.string())
        except pa.ArrowInvalid:
            raise DataError(f"{rows.where(0)}: the {what} is {kind} and not UTF-8 text") from None
    if pa.types.is_nested(kind):
        raise DataError(f"{rows.where(0)}: the {what} must be one value a row, got {kind}")
    return array


def id_column(array: pa.Array, kind: IdKind, rows: Rows) -> pa.Array:
    """Ids as int64 or uint64, or as dictionary-encoded strings. Rows without an id are refused.

    Integers of any width, floats that are whole and their spellings as text give the same ids. Raises Reread where
    an id shows that the ids of this kind are not what they were taken for.
    """
    what = f"{kind.what} id"
    array = plain(array, what, rows)
    if pa.types.is_string(array.type):
        integers = _integers(array) if kind.mode == INTEGERS else None
        return _words(array, kind, rows) if integers is None else integers
    if pa.types.is_floating(array.type):
        array = pc.cast(array, pa.float64())
        number = array.fill_null(np.nan).to_numpy(zero_copy_only=False)
        rows.refuse(np.isnan(number), f"missing {what}", lambda at: f"the {what} is missing")
        lost = np.isinf(number) | (np.abs(number) > 1 << 53)
        rows.refuse(
            lost,
            f"inexact {what}",
            lambda at: f"{what} {number[at]} is a float beyond 2**53, which has lost digits; store ids as integers",
        )
        number = np.where(np.isfinite(number) & ~lost, number, 0.0)
        if not (kind.given and kind.mode == TEXT):
            rows.refuse(
                number % 1 != 0,
                f"{what} is a fraction",
                lambda at: f"{what} {number[at]} is not an integer; --ids text takes it as it is",
            )
        if kind.mode == TEXT:
            return _words(_spelled(number), kind, rows)
        number = np.where(rows.kept, number, 0.0)
        array = pa.array(number.astype(np.int64))
    elif not pa.types.is_integer(array.type):
        raise DataError(f"{rows.where(0)}: {what}s must be integers or strings, got {array.type}")
    missing = pc.is_null(array).to_numpy(zero_copy_only=False)
    rows.refuse(missing, f"missing {what}", lambda at: f"the {what} is missing")
    array = array.fill_null(0)
    if kind.mode == TEXT:
        return pc.dictionary_encode(pc.cast(array, pa.string()))
    low, high = (pc.min_max(array)[end].as_py() or 0 for end in ("min", "max"))
    if high >= 1 << 63 and kind.mode == INTEGERS:
        raise kind.become(UNSIGNED, "")
    if low < 0 and kind.mode == UNSIGNED:
        raise kind.become(TEXT, f"{rows.where(pc.index(array, low).as_py())}: {what} {low} beside ids over 2**63")
    return pc.cast(array, pa.int64() if kind.mode == INTEGERS else pa.uint64())


def number_column(array: pa.Array, what: str, rows: Rows) -> np.ndarray:
    """float64 [b], NaN in rows that are refused: those whose number is missing, NaN or none at all."""
    array = plain(array, what, rows)
    if pa.types.is_string(array.type):
        usable = np.ones(len(array), dtype=bool)
        try:
            numbers = pc.cast(array, pa.float64())
        except pa.ArrowInvalid:
            array = pc.utf8_trim_whitespace(array)
            usable = pc.match_substring_regex(array, _NUMBER).fill_null(False).to_numpy(zero_copy_only=False)
            numbers = pc.cast(pc.if_else(pa.array(usable), array, "nan"), pa.float64())
        nan = pc.equal(pc.utf8_lower(array), "nan").fill_null(False).to_numpy(zero_copy_only=False)
        missing = pc.equal(array, "").fill_null(True).to_numpy(zero_copy_only=False)
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        numbers = pc.cast(array, pa.float64(), safe=False)
        missing = pc.is_null(array).to_numpy(zero_copy_only=False)
        nan = pc.is_nan(numbers).fill_null(False).to_numpy(zero_copy_only=False)
    else:
        raise DataError(f"{rows.where(0)}: the {what} must be a number, got {array.type}")
    number = numbers.fill_null(np.nan).to_numpy(zero_copy_only=False)
    rows.refuse(missing, f"missing {what}", lambda at: f"the {what} is missing")
    rows.refuse(nan, f"{what} is NaN", lambda at: f"{what} is NaN, expected a number")
    odd = ~np.isfinite(number)
    rows.refuse(odd, f"{what} is not a number", lambda at: f"{what} {array[at].as_py()!r} is not a number")
    return np.where(odd, np.nan, number)


def label_column(array: pa.Array, rows: Rows) -> np.ndarray:
    """int8 [b]: 0 train, 1 val, 2 test; -1 in rows that are refused."""
    array = plain(array, "split", rows)
    if pa.types.is_floating(array.type):
        array = _spelled(array.fill_null(np.nan).to_numpy(zero_copy_only=False))
    encoded = pc.dictionary_encode(pc.cast(array, pa.string()), null_encoding="encode")
    names = [re.sub(r"\.0+$", "", str(name).strip().lower()) for name in encoded.dictionary.to_pylist()]
    codes = np.array([LABELS.get(name, -1) for name in names], dtype=np.int8)
    codes = codes[encoded.indices.to_numpy(zero_copy_only=False)]
    rows.refuse(
        codes < 0,
        "unknown split",
        lambda at: f"split {array[at].as_py()!r}; expected train, val or test, or 0, 1 or 2",
    )
    return codes


def as_id(value: object, integers: bool) -> int | str | None:
    """One id as a data set has it, whose ids are integers or text; None for what is no integer among integers."""
    if isinstance(value, float):
        value = repr(value)
    text = str(value).strip()
    if not integers:
        return text
    whole = _WHOLE.fullmatch(text)
    return int(whole[1]) if whole else int(text) if _INTEGER.fullmatch(text) else None


def id_notes(kind: IdKind, ids: pa.Array) -> list[str]:
    """What a person should know of how ids were taken. Raises DataError where two spellings mean one id."""
    if kind.mode != TEXT:
        return [f"{kind.respelled} and others like it were taken as integers"] if kind.respelled else []
    if kind.given:
        return []
    words = ids.filter(pc.match_substring_regex(ids, _NUMBER)).to_pylist()
    spelled = {word: whole[1] for word in words if (whole := _WHOLE.fullmatch(word))}
    if spelled:
        both = set(words)
        twice = next((word for word, integer in spelled.items() if integer in both), None)
        if twice:
            raise DataError(
                f"{kind.what} ids {spelled[twice]!r} and {twice!r} both occur, among ids that are text "
                f"({kind.odd}): one or two {kind.what}s? Spell them alike, or say --ids text for two"
            )
    integers = [word for word in words if _INTEGER.fullmatch(word)]
    if len(words) == len(ids) and any("." in word or "e" in word.lower() for word in words):
        raise DataError(
            f"{kind.odd} is a number but no integer, expected an integer or a name; --ids text takes ids as they are "
            "written"
        )
    if 2 * len(integers) <= len(ids):
        return []
    others = len(ids) - len(integers)
    return [
        f"{kind.what} ids are text, though {len(integers):,} of {len(ids):,} are integers: {kind.odd} is none"
        + (f", nor are {others - 1:,} others" if others > 1 else "")
        + " (--ids integers refuses such rows)"
    ]


def _is_binary(kind: pa.DataType) -> bool:
    view = getattr(pa.types, "is_string_view", None)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or bool(view and view(kind))


def _integers(array: pa.Array) -> pa.Array | None:
    """Text as int64, or None where some value is not an integer as it is usually written: "007" is a name."""
    if array.null_count:
        return None
    try:
        integers = pc.cast(array, pa.int64())
    except pa.ArrowInvalid:
        return None
    value = integers.to_numpy()
    # the length tells 7 from "007", "0x7" and "-0"; the absolute value of -2**63 is itself, and is no id
    length = np.searchsorted(_POWERS, np.abs(value), side="right") + 1 + (value < 0)
    return integers if np.array_equal(length, pc.binary_length(array).to_numpy()) else None


def _words(array: pa.Array, kind: IdKind, rows: Rows) -> pa.Array:
    """Ids that are not all plain integers, by their distinct spellings."""
    what = f"{kind.what} id"
    encoded = pc.dictionary_encode(array.fill_null(""))
    index = encoded.indices.to_numpy()
    words = pc.utf8_trim_whitespace(encoded.dictionary)
    empty = pc.equal(words, "").to_numpy(zero_copy_only=False)
    rows.refuse(empty[index], f"missing {what}", lambda at: f"the {what} is missing")
    if not (kind.given and kind.mode == TEXT):
        null = pc.or_(pc.is_in(pc.utf8_lower(words), value_set=_MISSING), pc.equal(words, "NA"))
        null = null.to_numpy(zero_copy_only=False)
        rows.refuse(
            null[index],
            f"missing {what}",
            lambda at: f"the {what} is {array[at].as_py()!r}, a missing value (--ids text takes it as an id)",
        )
        empty = empty | null
    if kind.mode == TEXT:
        return pa.DictionaryArray.from_arrays(encoded.indices, words)
    values = [0] * len(words)
    odd = np.zeros(len(words), dtype=bool)
    for i, word in enumerate(words.to_pylist()):
        if empty[i]:
            continue
        if _INTEGER.fullmatch(word):
            values[i] = int(word)
        elif whole := _WHOLE.fullmatch(word):
            values[i] = int(whole[1])
            kind.respelled = kind.respelled or f"{rows.where(_first(index == i))}: {what} {word}"
        else:
            odd[i] = True
            if not kind.given:  # words stand in order of first sight
                break
    if odd.any():
        if not kind.given:
            at = _first(odd[index])
            raise kind.become(TEXT, f"{rows.where(at)}: {what} {array[at].as_py()!r}")
        rows.refuse(
            odd[index],
            f"{what} is not an integer",
            lambda at: f"{what} {array[at].as_py()!r} is not an integer (--ids integers)",
        )
    low, high = min(values, default=0), max(values, default=0)
    if high >= 1 << 63 or low < -(1 << 63):
        if low < 0 or high >= 1 << 64:
            raise kind.become(TEXT, f"{rows.where(_first(index == values.index(high)))}: {what} {high}")
        if kind.mode == INTEGERS:
            raise kind.become(UNSIGNED, "")
    elif low < 0 and kind.mode == UNSIGNED:
        raise kind.become(TEXT, f"{rows.where(_first(index == values.index(low)))}: {what} {low} beside ids over 2**63")
    table = np.array(values, dtype=np.uint64 if kind.mode == UNSIGNED else np.int64)
    return pa.array(table[index])


def _spelled(number: np.ndarray) -> pa.Array:
    """Floats as Python and pandas write them: 3.0, 2.5."""
    values, index = np.unique(number, return_inverse=True)
    return pa.DictionaryArray.from_arrays(
        pa.array(index.reshape(-1).astype(np.int32)), pa.array([repr(x) for x in values.tolist()], pa.string())
    ).dictionary_decode()


def _first(mask: np.ndarray) -> int:
    return int(np.flatnonzero(mask)[0])
