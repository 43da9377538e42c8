"""Errors of the machine end in one line, wherever they come from."""

from __future__ import annotations

import errno
from collections.abc import Callable

import click
import pytest
from cli_helpers import call

from m3dist.cli import main as cli

AWS = "When getting information for key 'x' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject: curlCode: 7"
ERRORS: dict[str, tuple[Callable[[], Exception], str]] = {
    "disk": (
        lambda: OSError(errno.ENOSPC, "No space left on device", "/data/x"),
        "/data/x: No space left on device; free",
    ),
    "disk without a name": (
        lambda: OSError(errno.ENOSPC, "No space left on device"),
        "No space left on device; free some",
    ),
    "folder": (lambda: NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: Not a directory"),
    "name": (lambda: OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9), "xxxxxxxxx: File name too long"),
    "permission": (
        lambda: PermissionError(errno.EACCES, "Permission denied", "/root/x"),
        "a folder that you may write to",
    ),
    "sockets": (
        lambda: OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /a/b"),
        "Ray's sockets need a shorter path",
    ),
    "store": (lambda: OSError(AWS + "\nmore"), "the store cannot be reached or refuses: When getting"),
    "nothing": (lambda: OSError(), "OSError"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_one_line(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = ERRORS[kind]

    @click.command()
    def broken() -> None:
        raise make()

    monkeypatch.setitem(cli.cli.commands, "broken", broken)
    monkeypatch.setattr(cli._Lazy, "get_command", lambda self, ctx, name: self.commands.get(name))
    assert call("broken") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(cli._Lazy, "get_command", lambda self, ctx, name: broken)
    with pytest.raises(KeyError):
        cli.main(["broken"])


@pytest.mark.parametrize("kind", [ValueError, click.UsageError])
def test_control_characters_are_shown_and_not_obeyed(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def broken() -> None:
        raise kind("user '\x1b[2J\x07\u202eé' is unknown")

    monkeypatch.setattr(cli._Lazy, "get_command", lambda self, ctx, name: broken)
    assert call("broken") == 2
    said = capsys.readouterr().err
    assert r"\x07\u202eé' is unknown" in said
    assert not set(said) & set("\x1b\x07\u202e")


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def broken() -> None:
        raise MemoryError("Unable to allocate 7.28 TiB\n for an array")

    monkeypatch.setattr(cli._Lazy, "get_command", lambda self, ctx, name: broken)
    assert call("broken") == 2
    assert "more memory is needed than there is (Unable to allocate 7.28 TiB for an array)" in capsys.readouterr().err
