"""`m3dist prepare download`: from a server of this process, and without the internet."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cli_helpers import call

from m3dist.data import downloads
from m3dist.data.dataset import Dataset

RATINGS = "userId,movieId,rating,timestamp\n" + "".join(
    f"{u},{i},4.0,{1000 * u + i}\n" for u in range(1, 9) for i in range(1, 16)
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of ml-latest-small.zip, whose size and checksum are those of the small file that it has."""
    served = tmp_path / "served"
    served.mkdir()
    file = served / "ml-latest-small.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ml-latest-small/ratings.csv", RATINGS)
        archive.writestr(
            "ml-latest-small/movies.csv", "movieId,title\n" + "".join(f"{i},Film {i}\n" for i in range(1, 16))
        )
    stated = replace(
        downloads.SETS["ml-latest-small"],
        size=file.stat().st_size,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(downloads.SETS, "ml-latest-small", stated)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    monkeypatch.setattr(server, "handle_error", lambda *_: None)  # a client that has read enough hangs up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_set_is_fetched_checked_and_prepared(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("prepare", "download", "ml-latest-small", "raw", "--mirror", mirror) == 0
    said = capsys.readouterr().out
    assert said.index("licence: GroupLens") < said.index("as published")
    assert "m3dist prepare auto raw/ml-latest-small data/ml-latest-small --split random" in said
    assert call("prepare", "auto", "raw/ml-latest-small", "data/ml-latest-small", "--split", "random") == 0
    data = Dataset("data/ml-latest-small")
    assert (data.n_users, data.n_items) == (8, 15)
    assert sorted(path.name for path in Path("raw").iterdir()) == ["ml-latest-small"]
    assert call("prepare", "download", "ml-latest-small", "raw", "--mirror", "http://127.0.0.1:9/none") == 0
    assert "was there already" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["longer", "other"])
def test_another_file_is_refused_and_nothing_is_kept(
    change: str, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "served/ml-latest-small.zip"
    file.write_bytes(file.read_bytes() + b"x" * 10**6 if change == "longer" else b"x" * file.stat().st_size)
    assert call("prepare", "download", "ml-latest-small", "--mirror", mirror) == 2
    said = capsys.readouterr().err
    assert "is not the file that was published" in said
    assert said.count("\n") == 1
    assert not list(Path("data/raw").iterdir())


@pytest.mark.parametrize(
    ("mirror_of_nobody", "says"),
    [
        ("http://127.0.0.1:9", "cannot be fetched"),
        ("http://nowhere.invalid", "cannot be fetched"),
        ("file:///etc", "expected an address that begins with http"),
    ],
)
def test_without_the_internet_one_line_says_what_to_do(
    mirror_of_nobody: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("prepare", "download", "ml-1m", "--mirror", mirror_of_nobody) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1
    if says.startswith("cannot"):
        assert "bring the file from another machine" in said
        assert downloads.SETS["ml-1m"].sha256 in said


def test_what_there_is_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("prepare", "download") == 0
    said = capsys.readouterr().out
    for name, there in downloads.SETS.items():
        assert f"{name}: {there.about}; {there.size / 1e6:.1f} MB\n  licence: {there.licence} ({there.terms})" in said
