"""Original ids to dense ids, in batches, in memory that follows the number of distinct ids.

Shapes: b ids of a batch, n interactions, V distinct ids.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class NotIntegers(Exception):
    """Ids that were read as integers hold something else; the reader starts over with strings."""

    def __init__(self, kind: str, where: str, value: object):
        super().__init__(f"{where}: {kind} id {value!r} is not an integer")
        self.kind = kind


class UnknownId(Exception):
    """The id at position `at` of a batch is not one of the known ones."""

    def __init__(self, at: int, message: str):
        super().__init__(message)
        self.at = at


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
    """Maps original ids to int32 codes. After the last batch, `order` says which dense id a code became."""

    def encode(self, ids: pa.Array) -> np.ndarray: ...
    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        """The original ids by dense id [V], and dense id by code, int32 [V] (None: codes are dense ids)."""
        ...


class IntegerIds:
    """Any integers. Dense ids follow the integers' order, so ids 0..V-1 that all occur stay what they are."""

    def __init__(self) -> None:
        self._known = np.empty(0, dtype=np.int64)  # sorted
        self._codes = np.empty(0, dtype=np.int32)  # of _known, in order of first sight

    def encode(self, ids: pa.Array) -> np.ndarray:
        values, inverse = np.unique(ids.to_numpy(zero_copy_only=False), return_inverse=True)
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

    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        dense = np.empty(len(self._codes), dtype=np.int32)
        dense[self._codes] = np.arange(len(dense), dtype=np.int32)
        return pa.array(self._known), dense


class StringIds:
    """Any strings. Dense ids follow the strings' order, so that they do not depend on the order of the file."""

    def __init__(self) -> None:
        self._code: dict[str, int] = {}

    def encode(self, ids: pa.Array) -> np.ndarray:
        batch = pc.dictionary_encode(ids)
        code = self._code
        # setdefault with the present length numbers new ids in order of first sight
        table = np.fromiter((code.setdefault(s, len(code)) for s in batch.dictionary.to_pylist()), dtype=np.int32)
        return table[batch.indices.to_numpy(zero_copy_only=False)]

    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        strings = sorted(self._code)
        dense = np.empty(len(strings), dtype=np.int32)
        dense[[self._code[s] for s in strings]] = np.arange(len(strings), dtype=np.int32)
        return pa.array(strings, pa.string()), dense


class KnownIds:
    """Exactly the ids of a table: row = dense id. Encoding an id that is not among them raises UnknownId."""

    def __init__(self, ids: pa.Array, source: str):
        self.ids, self.source = ids, source
        self._strings = pa.types.is_string(ids.type)
        if self._strings:
            self._code = {s: i for i, s in enumerate(ids.to_pylist())}
        else:
            values = ids.to_numpy(zero_copy_only=False)
            self._rows = np.argsort(values, kind="stable").astype(np.int32)
            self._known = values[self._rows]

    def encode(self, ids: pa.Array) -> np.ndarray:
        if self._strings:
            batch = pc.dictionary_encode(ids)
            table = np.fromiter((self._code.get(s, -1) for s in batch.dictionary.to_pylist()), dtype=np.int32)
            codes = table[batch.indices.to_numpy(zero_copy_only=False)]
        else:
            values = ids.to_numpy(zero_copy_only=False)
            at = np.minimum(np.searchsorted(self._known, values), len(self._known) - 1)
            codes = np.where(self._known[at] == values, self._rows[at], np.int32(-1))
        unknown = np.flatnonzero(codes < 0)
        if len(unknown):
            at = int(unknown[0])
            raise UnknownId(at, f"id {ids[at].as_py()!r} is not among the {len(self.ids)} ids of {self.source}")
        return codes

    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        return self.ids, None


class RowIds:
    """Integers that are row numbers already: 0..n-1. Anything else raises UnknownId."""

    def __init__(self, n: int, source: str):
        self.n, self.source = n, source

    def encode(self, ids: pa.Array) -> np.ndarray:
        values = ids.to_numpy(zero_copy_only=False)
        bad = np.flatnonzero((values < 0) | (values >= self.n))
        if len(bad):
            at = int(bad[0])
            raise UnknownId(at, f"id {int(values[at])} is out of range 0..{self.n - 1}, the rows of {self.source}")
        return values.astype(np.int32)

    def finish(self) -> tuple[pa.Array, np.ndarray | None]:
        return pa.array(np.arange(self.n)), None


def renumber(codes: np.ndarray, dense: np.ndarray | None, rows: int = 1 << 22) -> np.ndarray:
    """Replace int32 codes by dense ids in place, in blocks; returns `codes`."""
    if dense is not None:
        for start in range(0, len(codes), rows):
            codes[start : start + rows] = dense[codes[start : start + rows]]
    return codes
