"""Original ids to dense ids, in batches, in memory that follows the number of distinct ids.

Shapes: b ids of a batch, n interactions, V distinct ids.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

INTEGERS, UNSIGNED, TEXT = "integers", "unsigned", "text"  # what ids are


class Column(Protocol):
    """A one-dimensional array that grows by batches."""

    def append(self, values: np.ndarray) -> None: ...

    def take(self) -> np.ndarray:
        """The array; what held it is given up."""
        ...


class Growing:
    """A one-dimensional array that grows by batches without a second copy of itself."""

    def __init__(self, dtype: type = np.int32):
        self._data: np.ndarray = np.empty(1 << 16, dtype=dtype)
        self._n = 0

    def append(self, values: np.ndarray) -> None:
        end = self._n + len(values)
        if end > len(self._data):
            # realloc moves pages instead of copying them; nothing else holds the array
            self._data.resize(max(end, len(self._data) * 5 // 4), refcheck=False)
        self._data[self._n : end] = values
        self._n = end

    def take(self) -> np.ndarray:
        """The array, trimmed; the buffer is given up."""
        data, n = self._data, self._n
        self._data, self._n = np.empty(0, dtype=data.dtype), 0
        data.resize(n, refcheck=False)
        return data


class Ids(Protocol):
    """Maps original ids to int32 codes. After the last batch, `finish` says which dense id a code became."""

    def encode(self, ids: pa.Array) -> np.ndarray:
        """int32 [b] codes; -1 for an id that is not among the known ones, where these are given."""
        ...

    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        """The original ids by dense id [V], and dense id by code, int32 [V] (None: codes are dense ids)."""
        ...


class IntegerIds:
    """Any integers, int64 or uint64. Dense ids follow the integers' order, so ids 0..V-1 that all occur stay.

    While the integers lie close together, their codes stand in a table by integer; otherwise in sorted arrays.
    """

    def __init__(self, dtype: type = np.int64) -> None:
        self._known: np.ndarray = np.empty(0, dtype=dtype)  # sorted; empty while the table is used
        self._codes: np.ndarray = np.empty(0, dtype=np.int32)  # of _known, in order of first sight
        self._table: np.ndarray | None = np.empty(0, dtype=np.int32)  # code by integer - _base; -1: not seen
        self._base, self._seen, self._rows = 0, 0, 0
        self._dtype = dtype

    def encode(self, ids: pa.Array) -> np.ndarray:
        values = ids.to_numpy(zero_copy_only=False)
        if not len(values):
            return np.empty(0, dtype=np.int32)
        self._rows += len(values)
        if self._table is not None and self._cover(int(values.min()), int(values.max())):
            return self._by_table(values)
        return self._by_search(values)

    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        self._leave_table()
        dense = np.empty(len(self._codes), dtype=np.int32)
        dense[self._codes] = np.arange(len(dense), dtype=np.int32)
        return pa.array(self._known), dense

    def _cover(self, low: int, high: int) -> bool:
        """Make the table reach from low to high; False, and no table any more, where that is too far."""
        assert self._table is not None
        size = len(self._table)
        if size and self._base <= low and high < self._base + size:
            return True
        first = min(low, self._base) if size else low
        last = max(high, self._base + size - 1) if size else high
        if last - first >= max(1 << 20, 8 * self._rows):
            self._leave_table()
            return False
        wider = np.full(max(last - first + 1, min(2 * size, 8 * self._rows)), -1, dtype=np.int32)
        wider[self._base - first : self._base - first + size] = self._table
        self._table, self._base = wider, first
        return True

    def _by_table(self, values: np.ndarray) -> np.ndarray:
        assert self._table is not None
        at = (values - self._dtype(self._base)).astype(np.int64)
        codes = self._table[at]
        new = codes < 0
        if new.any():
            fresh = np.unique(at[new])
            self._table[fresh] = np.arange(self._seen, self._seen + len(fresh), dtype=np.int32)
            self._seen += len(fresh)
            codes = self._table[at]
        return codes

    def _by_search(self, given: np.ndarray) -> np.ndarray:
        values, inverse = np.unique(given, return_inverse=True)
        at = np.searchsorted(self._known, values)
        if len(self._known):
            new = self._known[np.minimum(at, len(self._known) - 1)] != values
        else:
            new = np.ones(len(values), dtype=bool)
        if new.any():
            fresh = np.arange(len(self._known), len(self._known) + int(new.sum()), dtype=np.int32)
            self._known = np.insert(self._known, at[new], values[new])
            self._codes = np.insert(self._codes, at[new], fresh)
            at = np.searchsorted(self._known, values)
        return self._codes[at][inverse.reshape(-1)]

    def _leave_table(self) -> None:
        if self._table is not None:
            seen = np.flatnonzero(self._table >= 0)
            self._codes = self._table[seen]
            self._known = seen.astype(self._dtype) + self._dtype(self._base)
            self._table = None


class StringIds:
    """Any strings. Dense ids follow the strings' order, so that they do not depend on the order of the file.

    bytes: what the distinct ones take.
    """

    def __init__(self) -> None:
        # a new word gets the next number, in order of first sight; all of it in C, as there are many
        self._code: dict[str, int] = defaultdict(itertools.count().__next__)
        self.bytes = 0

    def encode(self, ids: pa.Array) -> np.ndarray:
        words, index = _distinct(ids)
        before = len(self._code)
        table = np.fromiter(map(self._code.__getitem__, words.to_pylist()), np.int32, len(words))
        self.bytes += int(pc.binary_length(words).to_numpy(zero_copy_only=False)[table >= before].sum())
        return table[index]

    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        strings = sorted(self._code)
        dense = np.empty(len(strings), dtype=np.int32)
        codes = np.fromiter(map(self._code.__getitem__, strings), np.int32, len(strings))
        dense[codes] = np.arange(len(strings), dtype=np.int32)
        return pa.array(strings, pa.string()), dense


class KnownIds:
    """Exactly the ids of a table: row = dense id."""

    def __init__(self, ids: pa.Array):
        self.ids = ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
        self._strings = pa.types.is_string(self.ids.type)
        if self._strings:
            self._code = {s: i for i, s in enumerate(self.ids.to_pylist())}
        else:
            values = self.ids.to_numpy(zero_copy_only=False)
            self._rows = np.argsort(values, kind="stable").astype(np.int32)
            self._known = values[self._rows]

    def encode(self, ids: pa.Array) -> np.ndarray:
        if self._strings:
            words, index = _distinct(ids)
            found = map(self._code.get, words.to_pylist(), itertools.repeat(-1))
            table = np.fromiter(found, np.int32, len(words))
            return table[index]
        values = ids.to_numpy(zero_copy_only=False)
        at = np.minimum(np.searchsorted(self._known, values), len(self._known) - 1)
        return np.where(self._known[at] == values, self._rows[at], np.int32(-1))

    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        return self.ids, None


class RowIds:
    """Integers that are row numbers already, counted from `first`: dense ids 0..n-1.

    n is the number of rows, or more where ids reach behind them; ids of `limit` rows and more are not known.
    """

    def __init__(self, rows: int, limit: int, first: int = 0):
        self.n, self.limit, self.first = rows, limit, first

    def encode(self, ids: pa.Array) -> np.ndarray:
        values = ids.to_numpy(zero_copy_only=False)
        known = (values >= self.first) & (values < self.first + self.limit)
        codes = np.where(known, values - values.dtype.type(self.first), 0).astype(np.int32)
        codes[~known] = -1
        self.n = max(self.n, int(codes.max(initial=-1)) + 1)
        return codes

    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        return pa.array(np.arange(self.first, self.first + self.n)), None


def new_ids(mode: str) -> Ids:
    """A map for ids that no table lists."""
    return StringIds() if mode == TEXT else IntegerIds(np.uint64 if mode == UNSIGNED else np.int64)


def _distinct(ids: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Distinct strings, and the position of each id among them."""
    if not pa.types.is_dictionary(ids.type):
        ids = pc.dictionary_encode(ids)
    return ids.dictionary, ids.indices.to_numpy(zero_copy_only=False)


def renumber(codes: np.ndarray, dense: np.ndarray | None, rows: int = 1 << 22) -> np.ndarray:
    """Replace int32 codes by dense ids in place, in blocks; returns `codes`."""
    if dense is not None:
        for start in range(0, len(codes), rows):
            codes[start : start + rows] = dense[codes[start : start + rows]]
    return codes
