"""Arrays as tensors, without a copy, and counts of them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 18  # numbers that are counted at once


def shared(array: np.ndarray) -> Tensor:
    """A tensor over an array's memory, which nothing may write to: it may be read-only, mapped, or others' too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def counted(x_n: Tensor, least: int = 0) -> Tensor:
    """How often 0, 1, 2, ... occur, int64, at least of `least` numbers; in chunks, as torch counts a copy in int64."""
    size = max(least, int(x_n.max()) + 1 if len(x_n) else 0)
    out = torch.zeros(size, dtype=torch.int64, device=x_n.device)
    for chunk in x_n.split(_CHUNK):
        out += torch.bincount(chunk, minlength=size)
    return out
