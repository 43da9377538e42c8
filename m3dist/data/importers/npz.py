"""Arrays of a .npz file, none larger than what the file can honestly stand for; objects are refused."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from m3dist.data.dataset import DataError
from m3dist.data.importers import files


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays by name. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path.name}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.flag_bits & 1 for member in members):
                raise DataError(f"{path.name}: an encrypted zip; unpack it and save the arrays with numpy.savez")
            strange = [member.filename for member in members if not member.filename.endswith(".npy")]
            if strange or not members:
                raise DataError(
                    f"{path.name}: a zip of something else than arrays ({strange[0] if strange else 'it is empty'}); "
                    "save arrays with numpy.savez"
                )
            files.need_backing(path, sum(member.file_size for member in members), "its arrays")
            return {m.filename.removesuffix(".npy"): _array(path, m.filename, archive.read(m)) for m in members}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path.name}: not a .npz file of arrays ({files.first_line(error)})") from None


def _array(path: Path, name: str, data: bytes) -> np.ndarray:
    """An array of numbers or text from the bytes of a .npy file."""
    source = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(source)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(source)
    except files.NPY_ERRORS as error:
        raise DataError(f"{path.name}: {name} is no .npy array ({files.first_line(error)})") from None
    if dtype.kind not in "biufUS":
        raise DataError(f"{path.name}: {name} holds {dtype}, expected an array of numbers or text")
    count = math.prod(shape)
    if count * dtype.itemsize != len(data) - source.tell():
        raise DataError(f"{path.name}: {name} is damaged: its bytes do not fit its shape {shape}")
    flat = np.frombuffer(data, dtype, count, offset=source.tell()) if count else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
