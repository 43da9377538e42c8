"""Safetensors files with checksums of blocks of rows, so that a part of a tensor is checked by reading that part alone.

The checksums stand in the file's own metadata; files without any are read as they are.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import TracebackType

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from m3dist import checksums

_BLOCK = 8 << 20  # bytes of a block, at least a row


def write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Tensors on the CPU, contiguous, each with memory of its own. Returns what `Reader.digest` will be."""
    stated = json.dumps({name: _sums(name, x) for name, x in tensors.items()})
    save_file(tensors, path, {checksums.KEY: stated})
    return _digest(stated)


class Reader:
    """A file, open for reading; a context manager. Raises OSError or safetensors' error when it is none.

    names: of its tensors. digest: of all that it holds, names, shapes and values; "" where it has no checksums.
    """

    def __init__(self, path: Path):
        self._file = safe_open(path, "pt")

    def __enter__(self) -> Reader:
        self._open = self._file.__enter__()
        self.names: list[str] = list(self._open.keys())
        stated = (self._open.metadata() or {}).get(checksums.KEY)
        self._sums = None if stated is None else json.loads(stated)
        self.digest = "" if stated is None else _digest(stated)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor. Raises ValueError where its bytes changed since they were written."""
        x = self._open.get_tensor(name)
        if self._sums is not None and self._stated(name) != _sums(name, x):
            raise ValueError(f"the checksum of {name} does not fit its content")
        return x

    def rows(self, name: str, start: int, out_rd: Tensor) -> None:
        """Rows start.. of a tensor into `out_rd`, read and checked in blocks. Raises ValueError as `tensor` does."""
        part = self._open.get_slice(name)
        if self._sums is None:
            out_rd.copy_(part[start : start + len(out_rd)])
            return
        n, stated, end = part.get_shape()[0], self._stated(name), start + len(out_rd)
        height = _height(part[:0])
        for block in range(start // height, -(-end // height)):
            low = block * height
            x = part[low : min(low + height, n)]
            if block >= len(stated) or _sum(name, x, n) != stated[block]:
                raise ValueError(f"the checksum of {name} does not fit its content")
            first, last = max(low, start), min(low + len(x), end)
            out_rd[first - start : last - start] = x[first - low : last - low]

    def _stated(self, name: str) -> list[int]:
        assert self._sums is not None
        with contextlib.suppress(KeyError, TypeError):
            return list(self._sums[name])
        raise ValueError(f"{name} has no checksum")


def _digest(stated: str) -> str:
    return f"{checksums.of(stated.encode()):08x}"


def _height(x: Tensor) -> int:
    """Rows of a block."""
    row = x.element_size()
    for size in x.shape[1:]:
        row *= size
    return max(1, _BLOCK // max(1, row))


def _sums(name: str, x: Tensor) -> list[int]:
    """Of every block of rows; of a scalar, of the whole."""
    if x.ndim == 0:
        return [_sum(name, x.reshape(1), 1)]
    height = _height(x)
    return [_sum(name, x[low : low + height], len(x)) for low in range(0, max(1, len(x)), height)]


def _sum(name: str, x: Tensor, n: int) -> int:
    """Of a block of a tensor of n rows, its name, type and width included."""
    head = f"{name} {x.dtype} {n} {list(x.shape[1:])}"
    bytes_ = x.contiguous().view(-1).view(torch.uint8).numpy() if x.numel() else b""
    return checksums.of(bytes_, checksums.of(head.encode()))
