"""Chromium without a window: what it makes of a page, what the page asks the network for, and a picture of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAMES = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
_WAIT = 120  # seconds


@dataclass(frozen=True)
class Opened:
    """dom: the page as HTML after its scripts ran; errors: lines of the console, such as errors of scripts; requests:
    addresses that were asked for over the network, none of which was answered."""

    dom: str
    errors: list[str]
    requests: list[str]


def found() -> str | None:
    """The program, or None where none of `NAMES` is on the PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def opened(page: Path, size: tuple[int, int] = (1100, 900)) -> Opened:
    """What becomes of a file in a window of so many pixels."""
    done, requests = _ran(page, size, "--dump-dom")
    errors = re.findall(r"^\[[^\]]*CONSOLE[^\]]*\] (.*)$", done.stderr, re.M)
    return Opened(done.stdout, errors, requests)


def pictured(page: Path, out: Path, size: tuple[int, int], scale: float = 1.0) -> None:
    """Write a PNG of a file in a window of so many pixels, drawn at `scale`."""
    _ran(page, size, f"--screenshot={out.absolute()}", f"--force-device-scale-factor={scale}", "--hide-scrollbars")


def _ran(page: Path, size: tuple[int, int], *options: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    program = found()
    if program is None:
        raise RuntimeError(f"no browser: expected one of {', '.join(NAMES)} on the PATH")
    with _Listener() as listener, tempfile.TemporaryDirectory() as folder:
        command = [
            program, "--headless", "--disable-gpu", f"--user-data-dir={folder}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # which root has to say
            "--disable-background-networking", "--allow-file-access-from-files", "--enable-logging=stderr",
            f"--proxy-server=127.0.0.1:{listener.server_port}", "--proxy-bypass-list=<-loopback>",
            f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=5000", *options, page.absolute().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_WAIT)
        return done, list(listener.asked)


class _Listener(ThreadingHTTPServer):
    """Stands in for the network as a proxy that notes what is asked for, and refuses it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Refusal)

    def __enter__(self) -> _Listener:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Refusal(BaseHTTPRequestHandler):
    def _refuse(self) -> None:
        assert isinstance(self.server, _Listener)
        self.server.asked.append(self.path)
        self.send_error(403)

    do_GET = do_POST = do_HEAD = do_OPTIONS = do_CONNECT = _refuse

    def log_message(self, *_: object) -> None:
        pass
