"""Public data sets that may be downloaded: where each is, its licence, its size and its checksum.

Size and checksum (SHA-256) are stated here, so that a mirror serves as well as the source; what differs is refused.
Sources: GroupLens' page of every set (https://grouplens.org/datasets/movielens/), and for sizes and checksums the list
of TensorFlow Datasets (tensorflow_datasets/url_checksums/movielens.txt).
"""

from __future__ import annotations

import hashlib
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from m3dist.data.dataset import DataError

_BLOCK = 1 << 16
_SECONDS = 30  # without a byte before a source counts as out of reach
_CLOSED = (
    "GroupLens: research use; not to be redistributed or used commercially without permission; name the source in what "
    "you publish"
)
_OPEN = (
    "GroupLens: research use; may be redistributed under the same conditions; not to be used commercially without "
    "permission; name the source in what you publish"
)
_READ = (
    "GroupLens: research use; not to be used commercially without permission; its README says whether it may be "
    "redistributed; name the source in what you publish"
)


@dataclass(frozen=True)
class Public:
    """A zip file with one folder. size: bytes; sha256: of the file; terms: where the whole licence stands."""

    url: str
    size: int
    sha256: str
    about: str
    licence: str
    terms: str


def _movielens(name: str, size: int, sha256: str, about: str, licence: str) -> Public:
    base = f"https://files.grouplens.org/datasets/movielens/{name}"
    return Public(
        f"{base}.zip", size, sha256, about, licence, f"{base}-README.{'txt' if licence == _CLOSED else 'html'}"
    )


SETS = {
    "ml-latest-small": _movielens(
        "ml-latest-small", 978_202, "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        "MovieLens latest, small: 100,836 ratings of 9,742 films by 610 users, with times", _OPEN,
    ),
    "ml-100k": _movielens(
        "ml-100k", 4_924_029, "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        "MovieLens 100K: 100,000 ratings of 1,682 films by 943 users, with times", _CLOSED,
    ),
    "ml-1m": _movielens(
        "ml-1m", 5_917_549, "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        "MovieLens 1M: 1,000,209 ratings of 3,883 films by 6,040 users, with times", _CLOSED,
    ),
    "ml-20m": _movielens(
        "ml-20m", 198_702_078, "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
        "MovieLens 20M: 20,000,263 ratings of 27,278 films by 138,493 users, with times", _READ,
    ),
    "ml-25m": _movielens(
        "ml-25m", 261_978_986, "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
        "MovieLens 25M: 25,000,095 ratings of 62,423 films by 162,541 users, with times", _READ,
    ),
}  # fmt: skip


def download(name: str, folder: Path, mirror: str | None = None) -> Path:
    """Fetch and unpack one of SETS as `folder/name`, whole or not at all, and return that path; what is there already
    is left as it is.

    mirror: a URL under which NAME.zip lies, in place of the source. Raises DataError where the source cannot be reached
    or what it sends is not the stated file.
    """
    wanted, done = SETS[name], folder / name
    if done.exists():
        return done
    url = f"{mirror.rstrip('/')}/{name}.zip" if mirror else wanted.url
    if not url.startswith(("http://", "https://")):
        raise DataError(f"--mirror {mirror}: expected an address that begins with http:// or https://")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as temporary:
        file = Path(temporary) / "file.zip"
        with file.open("wb") as out:
            found = _fetch(url, wanted, out)
        if found != wanted.sha256:
            raise DataError(
                f"{url}: is not the file that was published (SHA-256 {found}, expected {wanted.sha256}); nothing was "
                "kept. Try again, or another --mirror"
            )
        _unpack(file, Path(temporary) / "unpacked", name).rename(done)
    return done


def _fetch(url: str, wanted: Public, out: IO[bytes]) -> str:
    """Copy what an address sends, and return its SHA-256. Stops behind the stated size."""
    digest, left = hashlib.sha256(), wanted.size + 1
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            while left > 0 and (block := answer.read(min(_BLOCK, left))):
                digest.update(block)
                out.write(block)
                left -= len(block)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DataError(
            f"{url}: cannot be fetched ({_reason(error)}). Without the internet: bring the file from another machine "
            f"(SHA-256 {wanted.sha256}), unpack it, and run `m3dist prepare auto FOLDER DST --split random`"
        ) from None
    return digest.hexdigest()


def _reason(error: Any) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__


def _unpack(file: Path, folder: Path, name: str) -> Path:
    """The one folder that a zip file holds; zipfile itself keeps every name below `folder`."""
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    if not (folder / name).is_dir():
        raise DataError(f"{name}.zip: holds no folder {name}")
    return folder / name
