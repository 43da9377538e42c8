"""Pickled arrays, dicts and sparse matrices, read without running anything that the file asks for.

The published data sets come as object .npy files and scipy pickles. An ordinary unpickler would call whatever
the file names; this one knows a dozen names, and maps even numpy's and scipy's to small classes of ours that
only hold data. Everything else is refused, as is a pickle that is damaged.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import re
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np

from m3dist.data.dataset import DataError
from m3dist.data.importers import files, sparse

_CONTAINERS = (set, frozenset, list, dict, tuple, int, float, bool, complex)
_SPARSE = re.compile(r"(csr|csc|coo)_(matrix|array)")


class Dtype:
    """What a pickle says about a numpy dtype: numbers and objects only."""

    __slots__ = ("value",)

    def __init__(self, code: str, align: object = False, copy: object = False):
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([biufc]\d{1,2}|[?O]|O[48]|b1)", code):
            raise pickle.UnpicklingError(f"dtype {code!r}")
        self.value = np.dtype("O" if "O" in code else code)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, ...): structured types have no place here
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("a structured dtype")
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class Array:
    """A numpy array of a pickle; `value` is built by this class, from checked parts."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, raw = state[-4:]
        self.value = _build(shape, dtype, raw, "F" if fortran else "C")


class Sparse:
    """A scipy sparse matrix of a pickle: its format and its attributes."""

    kind = ""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a sparse matrix without attributes")
        self.state = state


def load_pickle(path: Path) -> Any:
    """The content of a pickle file: containers, numbers, Array and Sparse. Raises DataError."""
    with path.open("rb") as file:
        return _load(file, path)


def load_npy(path: Path) -> np.ndarray:
    """A .npy array; elements of an object array are what `load_pickle` gives. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path.name}: no such file")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f".npy version {version}")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            if dtype != np.dtype(object):
                if math.prod(shape) * dtype.itemsize > path.stat().st_size - file.tell():
                    raise ValueError(f"it is too short for its shape {shape}")
                return np.load(path, allow_pickle=False)
            content = _load(file, path)
    except files.NPY_ERRORS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name}: not a .npy file ({str(error).splitlines()[0]})") from None
    if not isinstance(content, Array) or content.value.dtype != object or content.value.shape != shape:
        raise DataError(f"{path.name}: its pickle is not the object array of shape {shape} that its header promises")
    return content.value


def as_array(value: Any) -> np.ndarray:
    """A list, tuple, set, array or number of a pickle as an array."""
    if isinstance(value, Array):
        return value.value
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        flat_or_error(value)
    return np.array(sorted(value) if isinstance(value, (set, frozenset)) else value)


def flat_or_error(values: Collection[Any]) -> None:
    """Raise TypeError unless all values are numbers or text.

    Lists that share their elements can stand for more values than any memory holds.
    """
    odd = next((v for v in values if not isinstance(v, (int, float, complex, str, bytes, np.generic))), None)
    if odd is not None:
        raise TypeError(f"expected numbers, got {type(odd).__name__}")


def coordinates(matrix: Sparse, source: str) -> sparse.Entries:
    """Rows and columns of the entries that are not zero, int64 [n] each, and the shape. Raises DataError."""
    state = dict(matrix.state)
    if matrix.kind == "coo" and isinstance(state.get("coords"), tuple) and len(state["coords"]) == 2:
        state["row"], state["col"] = state["coords"]
    try:
        parts = {name: as_array(state[name]) for name in ("data", "indptr", "indices", "row", "col") if name in state}
    except (TypeError, ValueError):
        parts = {}
    return sparse.coordinates(matrix.kind, parts, state.get("_shape"), source)


def _build(shape: Any, dtype: Any, raw: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, Dtype) or not isinstance(shape, tuple) or order not in ("C", "F"):
        raise pickle.UnpicklingError("a damaged array")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError("a damaged array shape")
    n = math.prod(shape)
    if dtype.value == np.dtype(object):
        if not isinstance(raw, list) or len(raw) != n:
            raise pickle.UnpicklingError("a damaged object array")
        out = np.empty(n, dtype=object)
        for i, value in enumerate(raw):  # one by one: numpy would look inside lists
            out[i] = value
        return out.reshape(shape, order=order)
    raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    if len(raw) != n * dtype.value.itemsize:
        raise pickle.UnpicklingError("an array whose bytes do not fit its shape")
    return np.frombuffer(raw, dtype=dtype.value).reshape(shape, order=order)


def _allowed() -> dict[tuple[str, str], Any]:
    """Every name that a pickle may use. Built for each load: what a pickle does to these ends with it."""

    def reconstruct(kind: object, shape: object, code: object) -> Array:
        return Array()

    def scalar(dtype: Any, raw: Any) -> Any:
        return _build((1,), dtype, raw, "C")[0].item()

    def frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Array:
        if axes is not None:
            raise pickle.UnpicklingError("a permuted array")
        out = Array()
        out.value = _build(shape, dtype, raw, order)
        return out

    def encode(text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("an encoding")
        return text.encode("latin1")

    def reconstructor(kind: Any, base: object, state: object) -> Any:
        if not (isinstance(kind, type) and issubclass(kind, Sparse)):
            raise pickle.UnpicklingError("an object that is not a sparse matrix")
        return kind()

    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): Dtype,
        ("_codecs", "encode"): encode,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "defaultdict"): collections.defaultdict,
    }
    for core in ("numpy.core", "numpy._core"):
        for module in ("multiarray", "_multiarray_umath"):
            names[f"{core}.{module}", "_reconstruct"] = reconstruct
            names[f"{core}.{module}", "scalar"] = scalar
        names[f"{core}.numeric", "_frombuffer"] = frombuffer
    for builtins in ("builtins", "__builtin__"):
        names[builtins, "object"] = "object"
        names.update({(builtins, kind.__name__): kind for kind in _CONTAINERS})
    for copyreg in ("copyreg", "copy_reg"):
        names[copyreg, "_reconstructor"] = reconstructor
    return names


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="latin1")  # what Python 2 wrote
        self.allowed = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        if (module == "scipy.sparse" or module.startswith("scipy.sparse.")) and _SPARSE.fullmatch(name):
            kind = type(name, (Sparse,), {"kind": name[:3]})
            return self.allowed.setdefault((module, name), kind)
        raise pickle.UnpicklingError(f"it uses {module}.{name}")


def _load(file: IO[bytes], path: Path) -> Any:
    try:
        with files.bounded(path):
            return _Unpickler(io.BytesIO(file.read())).load()
    except Exception as error:  # a damaged or hostile pickle raises anything, MemoryError and RecursionError too
        raise DataError(
            f"{path.name}: refused to unpickle it ({files.first_line(error)}); only arrays, dicts, lists, sets and "
            "csr, csc or coo matrices are read. Save the data again as .npz or as a table"
        ) from None
