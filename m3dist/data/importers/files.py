"""Files as streams of bytes: decompressed where they are compressed, and no larger than what backs them.

Sizes that a file states are believed only as far as its bytes back them, so that a small file cannot fill the memory.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import resource
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from m3dist.data.dataset import DataError

FREE = 32 << 20  # bytes that any file may ask for
RATIO = 40  # bytes that a byte of a file may stand for; a compressed table of interactions stays under 20
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
_OPENERS: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
# what numpy raises for a .npy header that is damaged; its parser of old headers raises the first
NPY_ERRORS: tuple[type[Exception], ...] = (
    *(tokenize.TokenError, ValueError, OSError, EOFError, SyntaxError, TypeError, KeyError, OverflowError),
    *(RecursionError, MemoryError),
)
COMPRESSED = (".gz", ".bz2", ".zst", ".xz", ".zip")


def need_content(path: Path) -> None:
    """Raise DataError for what stands in a file's place: a pipe or device, which may never end, or a stand-in."""
    if not path.is_file():
        raise DataError(f"{path.name}: is no regular file; store its content in one")
    start = head(path, 64).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path.name}: a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
    if start.startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{path.name}: a web page, not the file itself; download it again")
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path.name}: a spreadsheet; save it as CSV")


def need_backing(path: Path, size: int, what: str, held: int | None = None) -> None:
    """Raise DataError where `size` bytes are more than a file can honestly stand for.

    what: what asks for them; held: the size of the file, or of all files of a table.
    """
    held = path.stat().st_size if held is None else held
    if size > allowance(held):
        raise DataError(
            f"{path.name}: {what} would take {size:,} bytes, out of a file of {held:,}: it is damaged, or not what it "
            "seems; if it is right, store it plainly (uncompressed, ids numbered from 0)"
        )


def allowance(held: int) -> int:
    """How many bytes of memory files of `held` bytes may ask for."""
    return FREE + RATIO * held


@contextlib.contextmanager
def bounded(path: Path, ratio: int = RATIO) -> Iterator[None]:
    """Limit what this process may allocate while a parser of others builds objects out of a file.

    The parser gets MemoryError in place of the machine's memory. Does nothing where /proc is not there.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + 4 * FREE + ratio * path.stat().st_size
    if soft != resource.RLIM_INFINITY and soft < limit:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def head(path: Path, size: int = 16) -> bytes:
    """The first bytes of a file. Raises DataError."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None


def compression(path: Path) -> str:
    """How a file is compressed, by its first bytes; "" if it is not."""
    start = head(path)
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


def real(path: Path) -> Path:
    """What a path leads to; a link that leads nowhere, to itself, is what it is."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def stem(path: Path) -> str:
    """A file's name without the suffixes of its format and its compression: ratings.csv.gz is `ratings`."""
    return Path(bare(path)).stem


def bare(path: Path) -> str:
    """A file's name without the suffix of its compression."""
    return path.name[: -len(path.suffix)] if path.suffix.lower() in COMPRESSED else path.name


def suffix(path: Path) -> str:
    """The suffix that says what is in a file: `.csv` for ratings.csv.gz, in small letters."""
    return Path(bare(path)).suffix.lower()


@contextlib.contextmanager
def stream(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file. Raises DataError, also while the block reads."""
    kind = compression(path)
    try:
        with contextlib.ExitStack() as stack:
            if not kind:
                yield stack.enter_context(path.open("rb"))
            elif kind == "zip":
                yield stack.enter_context(_only_member(path, stack))
            elif kind == "zstd":
                source = stack.enter_context(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
                yield io.BufferedReader(_Raw(source), 1 << 20)
            else:
                yield stack.enter_context(_OPENERS[kind](path, "rb"))
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        what = f"damaged {kind} file" if kind else "cannot be read"
        raise DataError(f"{path.name}: {what} ({first_line(error)})") from None


def _only_member(path: Path, stack: contextlib.ExitStack) -> IO[bytes]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith(("__MACOSX/", "."))]
    if len(members) != 1:
        names = ", ".join(m.filename for m in members[:5]) + (", ..." if len(members) > 5 else "")
        raise DataError(
            f"{path.name}: a zip of {len(members)} files ({names or 'none'}); unpack it and give the folder"
        )
    if members[0].flag_bits & 1:
        raise DataError(f"{path.name}: an encrypted zip; unpack it first")
    return archive.open(members[0])


class _Raw(io.RawIOBase):
    """An Arrow stream as one of Python's, for its buffering."""

    def __init__(self, source: pa.NativeFile):
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
