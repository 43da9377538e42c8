"""Folders on any filesystem that pyarrow knows: a local or NFS path, or a URI such as s3://bucket/run.

Every file appears whole or not at all. Local files are written beside their place and moved; objects of a store
appear when their upload is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from m3dist import checksums, credentials
from m3dist.data.place import Place

if TYPE_CHECKING:  # what only looks at files, as Ray's controller and checks of storage do, needs no torch
    from torch import Tensor

_LARGEST = 256 << 20  # bytes of a text file of a run


def refuse_other_kinds(out: str) -> None:
    """Raises ValueError where the name of a Parquet file to write says that it is a file of another kind."""
    stem, _, kind = out.rpartition(".")
    if kind.lower() in ("csv", "tsv", "txt", "json", "jsonl", "xlsx", "npy"):
        raise ValueError(f"{out}: would be a Parquet file, which pandas.read_parquet reads; name it {stem}.parquet")


class Folder:
    """A folder by path or URI; names are relative to it and may hold slashes.

    Raises ValueError when the URI names no filesystem that is known here, or carries credentials.
    """

    def __init__(self, uri: str | Path):
        self.uri = str(uri).rstrip("/") or str(uri)
        if credentials.found(self.uri):
            raise ValueError(f"a URI of {self.uri.partition('://')[0]}: holds credentials; {credentials.INSTEAD}")
        if "://" in self.uri:
            try:
                self.fs, self.path = fs.FileSystem.from_uri(self.uri)
            except (OSError, ValueError, NotImplementedError) as error:
                raise ValueError(
                    f"{self.uri}: cannot be opened ({error}); expected a path or a URI like s3://"
                ) from None
        else:
            self.fs, self.path = fs.LocalFileSystem(), str(Path(self.uri).absolute())
        self.is_local = isinstance(self.fs, fs.LocalFileSystem)

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Folder:
        below = object.__new__(Folder)
        below.uri, below.fs, below.path = f"{self.uri}/{name}", self.fs, f"{self.path}/{name}"
        below.is_local = self.is_local
        return below

    def exists(self, name: str = "") -> bool:
        return self.fs.get_file_info(self._at(name)).type != fs.FileType.NotFound

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted; none when it does not exist."""
        found = self.fs.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def make(self) -> None:
        self.fs.create_dir(self.path)

    def remove(self, name: str = "") -> None:
        """Delete a file or a folder with all that is in it; nothing happens when there is none."""
        kind = self.fs.get_file_info(self._at(name)).type
        with contextlib.suppress(FileNotFoundError):
            if kind == fs.FileType.Directory:
                self.fs.delete_dir(self._at(name))
            elif kind == fs.FileType.File:
                self.fs.delete_file(self._at(name))

    def read_text(self, name: str) -> str:
        """Raises FileNotFoundError, and ValueError where it is larger than text of ours gets, as a device is."""
        with self.fs.open_input_stream(self._at(name)) as stream:
            data = stream.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"{self}/{name}: is larger than {_LARGEST >> 20} MiB, and none of ours")
        return data.decode()

    def write_text(self, name: str, text: str) -> None:
        with self.writing(name) as path:
            path.write_text(text)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """With a checksum under a key of its own."""
        self.write_text(name, json.dumps(checksums.stamped(value), indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """What `write_json` was given. Raises FileNotFoundError, or ValueError when the file is damaged."""
        try:
            return checksums.checked(json.loads(self.read_text(name)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self}/{name}: damaged ({error})") from None

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        """Under `name`, as safetensors with checksums. Tensors may share memory, which the file does not.

        Returns a digest of them, by which `read_tensors` knows the file again.
        """
        from m3dist.storage import safe

        whole: dict[str, Tensor] = {}
        seen: set[int] = set()
        for key, x in tensors.items():
            x = x.detach().cpu().contiguous()
            start = x.untyped_storage().data_ptr()
            whole[key] = x.clone() if start in seen or x.untyped_storage().nbytes() > x.nbytes else x
            seen.add(start)
        with self.writing(name) as path:
            return safe.write(path, whole)

    def read_tensors(self, name: str, digest: str | None = None) -> dict[str, Tensor]:
        """On the CPU. Raises OSError, ValueError or safetensors' error when it is missing, damaged, or not the file of
        this digest."""
        from m3dist.storage import safe

        with self.local(name) as path, safe.Reader(path) as file:
            if digest is not None and file.digest != digest:
                raise ValueError(f"{name} is not the file that was written beside meta.json")
            return {key: file.tensor(key) for key in file.names}

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A local path to read a file from: the file itself, or a copy that is gone afterwards."""
        if self.is_local:
            yield Path(self._at(name))
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            fs.copy_files(self._at(name), str(path), self.fs, fs.LocalFileSystem())
            yield path

    @contextlib.contextmanager
    def writing(self, name: str = "") -> Iterator[Path]:
        """A local path to write to; when the block ends without error it becomes the file `name`, by default this.

        A link that is this is followed; one inside of a folder, which may be a stranger's, is replaced. Raises OSError
        where a folder, a device or a pipe is in the way, which nothing replaces.
        """
        if self.is_local:
            final = Path(self._at(name))
            if not name and final.is_symlink():
                final = Path(os.path.realpath(final))
                if final.is_symlink():
                    raise OSError(f"{final} is a link to itself")
            if final.exists() and not final.is_file():
                raise OSError(f"{final} is {'a folder' if final.is_dir() else 'no regular file'}")
            final.parent.mkdir(parents=True, exist_ok=True)
            partial = final.with_name(f".{final.name}.partial")
            try:
                yield partial
                partial.replace(final)
            finally:
                partial.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(self._at(name)).name
            yield path
            self.upload(path, name)

    def upload(self, source: Path, name: str = "") -> None:
        """Copy a local file, or all that is in a local folder, to `name`."""
        target = self._at(name)
        if source.is_dir():
            self.fs.create_dir(target)
        else:
            self.fs.create_dir(target.rsplit("/", 1)[0])
        fs.copy_files(str(source), target, fs.LocalFileSystem(), self.fs)

    def here(self) -> Path:
        """A prepared data set as a local path. A remote one is copied once to this node's cache, by what it holds."""
        if self.is_local:
            return Path(self.path)
        what = [self.uri, self.read_text("dataset.json") if self.exists("dataset.json") else ""]
        root = Path(tempfile.gettempdir()) / f"m3dist-cache-{os.getuid()}"
        cache = root / hashlib.sha256("\0".join(what).encode()).hexdigest()[:16] / self.path.rstrip("/").split("/")[-1]
        if not cache.exists():
            place = Place(cache)
            place.open()  # clears what a killed process left of the same data set
            try:
                fs.copy_files(self.path, str(place.tmp), self.fs, fs.LocalFileSystem())
                if not cache.exists():  # else another process of this node was first
                    place.move()
            finally:
                place.close()
        return cache

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path
