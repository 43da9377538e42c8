"""Arrays as tensors, without a copy."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor


def shared(array: np.ndarray) -> Tensor:
    """A tensor over an array's memory, which nothing may write to: it may be read-only, mapped, or others' too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
