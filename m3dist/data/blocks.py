"""Blocks of feature rows on their way to disk: checked, cast, and counted.

Shapes: I items, d feature width, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np

from m3dist.data.dataset import DataError

ZERO_ROWS = ("keep", "missing", "error")  # what rows of zeros mean
_ROWS = 4096  # hashed at a time


def row_blocks(blocks: np.ndarray | Iterable[np.ndarray], rows: int = 65536) -> Iterator[np.ndarray]:
    """Blocks of at most `rows` rows of an array; blocks that are blocks already pass as they are."""
    if isinstance(blocks, np.ndarray):
        for start in range(0, max(len(blocks) if blocks.ndim else 0, 1), rows):
            yield blocks[start : start + rows] if blocks.ndim else blocks
    else:
        yield from blocks


def npy_header(out: IO[bytes], rows: int, width: int, dtype: np.dtype) -> None:
    """Write a .npy header at the start of `out`, at the same length for every number of rows."""
    head = np.lib.format.magic(1, 0)
    fields = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': ({rows}, {width}), }}".encode()
    out.seek(0)
    out.write(head + (118).to_bytes(2, "little") + fields.ljust(117) + b"\n")


def flags(present: np.ndarray, source: str) -> np.ndarray:
    """bool [I] of flags given as booleans or as 0 and 1. Raises DataError."""
    if present.ndim != 1 or present.dtype.kind not in "biuf" or not np.isin(present, (0, 1)).all():
        raise DataError(f"{source}: the flags of `present` must be one boolean per item, [items]")
    return present.astype(bool)


def finite(block: np.ndarray, dtype: np.dtype, start: int, present: np.ndarray | None, source: str) -> np.ndarray:
    """A feature block as contiguous `dtype`, rows of absent items zeroed. Raises DataError on NaN and infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        block = np.ascontiguousarray(block, dtype=dtype)
    if present is not None:
        if start + len(block) > len(present):
            raise DataError(f"{source}: more feature rows than the {len(present)} flags of `present`")
        block = np.where(present[start : start + len(block), None], block, dtype.type(0))
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        raise DataError(
            f"{source}: row {start + int(bad[0])} holds NaN or infinity as {dtype} ({len(bad)} such rows in this "
            "block); clean the features, or mark the items as lacking the modality"
        )
    return block


class ColumnStatistics:
    """Counts columns that tell nothing, over the rows of items that have the modality, from blocks as they pass.

    A column is constant if all its values are equal, and duplicate if it equals one before it bit by bit (seen by
    two 32-bit sums of its bits, weighted by row).
    """

    def __init__(self, width: int):
        self._low: np.ndarray = np.full(width, np.inf)
        self._high: np.ndarray = np.full(width, -np.inf)
        self._sums: np.ndarray = np.zeros((2, width), dtype=np.uint32)
        self._rng = np.random.Generator(np.random.Philox(key=0))

    def add(self, block: np.ndarray) -> None:
        """[b, d] of float32 or float16, rows that have the modality only."""
        if not len(block):
            return
        self._low = np.minimum(self._low, block.min(axis=0))
        self._high = np.maximum(self._high, block.max(axis=0))
        bits = np.ascontiguousarray(block).view(np.uint16 if block.dtype == np.float16 else np.uint32)
        for start in range(0, len(bits), _ROWS):
            part = bits[start : start + _ROWS].astype(np.uint32)
            for sums in self._sums:
                weight = self._rng.integers(1 << 32, size=(len(part), 1), dtype=np.uint32)
                sums += (part * weight).sum(axis=0, dtype=np.uint32)

    def counts(self) -> dict[str, Any]:
        """How many columns are constant, and how many of the others are duplicates."""
        constant = self._low >= self._high
        others = self._sums[:, ~constant]
        distinct = len(np.unique(others, axis=1).T) if others.size else 0
        return {"constant": int(constant.sum()), "duplicate": others.shape[1] - distinct}
