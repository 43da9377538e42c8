"""Tensor files of torch, read without unpickling anything but tensors."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3dist.data.dataset import DataError
from m3dist.data.importers import files

_PLAIN = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)


def load_pt(path: Path) -> np.ndarray | dict[Any, Any]:
    """The tensor of a .pt file as an array, or a dict whose tensors are arrays; bfloat16 becomes float32.

    Raises DataError.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                files.need_backing(path, sum(member.file_size for member in archive.infolist()), "its tensors")
        with files.bounded(path):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises all sorts; a hostile one UnpicklingError
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path.name}: not a plain tensor file ({type(error).__name__}); save the tensor alone with torch.save"
        ) from None
    if isinstance(content, dict) and content:
        return {key: _array(path, f"{key!r}", value) for key, value in content.items()}
    return _array(path, "it", content)


def _array(path: Path, name: str, value: Any) -> Any:
    """A tensor as an array; lists, which hold ids, stay."""
    if isinstance(value, (list, tuple)) and name != "it":
        return [v.item() if isinstance(v, torch.Tensor) and v.numel() == 1 else v for v in value]
    if not isinstance(value, torch.Tensor):
        raise DataError(
            f"{path.name}: expected one dense tensor [items, width], or a dict of tensors; {name} is "
            f"{type(value).__name__}"
        )
    odd = _odd(value)
    if odd:
        raise DataError(
            f"{path.name}: expected a dense tensor [items, width], {name} is {odd}; save tensor.float() or "
            "tensor.to_dense() instead"
        )
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _odd(value: torch.Tensor) -> str:
    """What makes a tensor no plain array of numbers; "" if nothing."""
    if value.is_nested:
        return "a nested tensor"
    if value.is_meta:
        return "a meta tensor, without values"
    if value.is_quantized:
        return "a quantised tensor"
    if value.layout != torch.strided:
        return "a sparse tensor"
    if value.dtype not in _PLAIN:
        return f"of {value.dtype}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "larger than its values (a view that repeats them)"
    return ""
