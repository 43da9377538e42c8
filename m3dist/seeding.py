"""Seeds derived from keys, never from the order of calls.

`derive(0, "align", "init")` is the same number in every process, on every worker count and after every
resume, so parallel work needs no shared generator state.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = int | str


def derive(root: int, *keys: Key) -> int:
    """A 63-bit seed for the purpose named by `keys` under the run's `root` seed."""
    text = "\x1f".join([str(root), *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_rng(root: int, *keys: Key) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=derive(root, *keys)))


def torch_rng(root: int, *keys: Key, device: str | torch.device = "cpu") -> torch.Generator:
    import torch  # here, so that tasks which prepare data do without it

    return torch.Generator(device=device).manual_seed(derive(root, *keys))
