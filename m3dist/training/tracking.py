"""Progress, metrics.jsonl and TensorBoard behind one interface; only rank 0's tracker has a folder."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from m3dist.storage.folders import Folder
from m3dist.terminal import printable
from m3dist.training.callbacks import Stopped

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunFailed(Exception):
    """Workers kept failing; the message is one line, and what they saved stays."""


class Display:
    """Bars and short lines in the terminal."""

    def __init__(self, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet)
        self._bars: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn("{task.description:<11}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False), TimeRemainingColumn(),
            console=self.console, disable=quiet or not self.console.is_terminal,
        )  # fmt: skip

    def open(self) -> None:
        self._bar.start()

    def close(self) -> None:
        self._bar.stop()

    def bar(self, stage: str, total: int, done: int, note: str) -> None:
        """Show a stage's bar at `done` of `total`."""
        if stage not in self._bars:
            self._bars[stage] = self._bar.add_task(stage, total=total, note="")
        self._bar.update(self._bars[stage], total=total, completed=done, note=note)

    def say(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, soft_wrap=True, markup=False)

    def values(self, stage: str, step: int, values: dict[str, float]) -> None:
        """One short line where bars make no sense, as in a log; everything is in metrics.jsonl."""
        if not self.console.is_terminal:
            short = {k: v for k, v in values.items() if k in ("loss", "interactions/s") or k.startswith("ndcg@")}
            if short:
                self.say(f"{stage} {step}: " + " ".join(f"{name} {value:.4g}" for name, value in short.items()))


class Heard(Protocol):
    """What a tracker tells callbacks, here or in another process; see callbacks.Callbacks."""

    def begin(self, stage: str) -> None: ...

    def step(self, stage: str, epoch: int, step: int) -> None: ...

    def __call__(self, stage: str, epoch: int, values: dict[str, float]) -> None: ...


class Tracker:
    """Writes what a run reports; a context manager that closes its files and bars.

    folder: where metrics.jsonl and tb/ go; None writes nothing, for workers other than rank 0. callbacks: told of
    stages, steps and epochs; may raise Stopped. display: by default a terminal's where there is a folder. stop: whether
    somebody asks the run to end.
    """

    def __init__(
        self,
        folder: Folder | Path | None,
        callbacks: Heard | None = None,
        display: Any = None,
        stop: Callable[[], bool] | None = None,
    ):
        self.display = display or Display(quiet=folder is None)
        self._callbacks, self._stop = callbacks, stop
        self.stopped = False  # by a callback, between steps
        self._key: dict[str, str] = {}
        self._board: SummaryWriter | None = None
        self._folder: Folder | None = None
        if folder is None:
            return
        self._folder = folder if isinstance(folder, Folder) else Folder(folder)
        if self._folder.is_local:
            self._here = Path(self._folder.path)
            self._here.mkdir(parents=True, exist_ok=True)
        else:  # written here and copied after every log
            self._temporary = tempfile.TemporaryDirectory()
            self._here = Path(self._temporary.name)
            if self._folder.exists("metrics.jsonl"):
                (self._here / "metrics.jsonl").write_text(self._folder.read_text("metrics.jsonl"))
        self._lines = (self._here / "metrics.jsonl").open("a")
        from torch.utils.tensorboard import SummaryWriter  # a second of imports, which only who writes needs

        self._board = SummaryWriter(str(self._here / "tb"))

    def __enter__(self) -> Tracker:
        self.display.open()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.display.close()
        if self._board is not None:
            self._lines.close()
            self._board.close()
            self._copy()

    def interrupted(self) -> bool:
        """Whether the run should save what it has and end."""
        return self._stop is not None and self._stop()

    def begin(self, stage: str, key: str, step: int = 0) -> None:
        """A stage starts at `step`; lines that an interrupted try with the same key wrote from there on are dropped."""
        self._key[stage] = key
        if self._callbacks is not None:
            self._callbacks.begin(stage)
        if self._board is None:
            return
        self._lines.close()
        path = self._here / "metrics.jsonl"
        kept, dropped = [], 0
        for text in path.read_text(errors="replace").splitlines(keepends=True):
            line = _line(text)
            again = not line or (line.get("stage") == stage and line.get("key") == key and line.get("step", 0) >= step)
            dropped += again
            kept += [] if again else [text]
        if dropped:
            Folder(self._here).write_text("metrics.jsonl", "".join(kept))
        self._lines = path.open("a")

    def progress(self, stage: str, total: int, done: int, note: str = "") -> None:
        self.display.bar(stage, total, done, note)

    def say(self, text: str) -> None:
        self.display.say(text)

    def step(self, stage: str, epoch: int, step: int) -> None:
        """An optimiser step was taken."""
        if self._callbacks is not None:
            try:
                self._callbacks.step(stage, epoch, step)
            except Stopped:
                self.stopped = True

    def log(self, stage: str, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, flushed, and one TensorBoard scalar per value."""
        if self._board is not None:
            head = {"time": time.time(), "stage": stage, "key": self._key.get(stage, ""), "step": step}
            self._lines.write(json.dumps({**head, **values}) + "\n")
            self._lines.flush()
            for name, value in values.items():
                self._board.add_scalar(f"{stage}/{name}", value, step)
            self._copy()
        self.display.values(stage, step, values)
        if self._callbacks is not None:
            self._callbacks(stage, step, values)

    def histogram(self, stage: str, name: str, step: int, values: Tensor) -> None:
        if self._board is not None:
            self._board.add_histogram(f"{stage}/{name}", values, step)

    def _copy(self) -> None:
        assert self._board is not None
        if self._folder is not None and not self._folder.is_local:
            self._board.flush()
            self._folder.upload(self._here / "metrics.jsonl", "metrics.jsonl")
            self._folder.upload(self._here / "tb", "tb")


def _line(text: str) -> dict[str, Any]:
    """A line of metrics.jsonl; empty for a killed writer's half line and a damaged one."""
    try:
        found = json.loads(text) if text.endswith("\n") else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a request that a loop looks for between steps; the second ends at once.

    A context manager; outside the main thread, where Python takes no signals, only `also` is asked.
    also: another reason to end.
    """

    def __init__(self, also: Callable[[], bool] = lambda: False) -> None:
        self.wanted, self.also = False, also
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.wanted or self.also()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
