"""Progress, metrics.jsonl and TensorBoard behind one interface."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

Listener = Callable[[str, int, dict[str, float]], None]


class Stopped(Exception):
    """Raised by a listener to end a run early; what was reported stays."""


class Tracker:
    """Writes what a run reports; a context manager that closes its files and bars.

    listener: called with (stage, step, values) after every `log`, by searches and distributed runs.
    """

    def __init__(self, folder: Path, quiet: bool = False, listener: Listener | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._listener = listener
        self.console = Console(stderr=True, quiet=quiet)
        self._lines = (folder / "metrics.jsonl").open("a")
        self._board = SummaryWriter(str(folder / "tb"))
        self._bar = Progress(
            TextColumn("{task.description:<11}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(), console=self.console, disable=quiet or not self.console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Tracker:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        self._lines.close()
        self._board.close()

    def start(self, stage: str, total: int) -> TaskID:
        return self._bar.add_task(stage, total=total, note="")

    def advance(self, bar: TaskID, note: str = "") -> None:
        self._bar.update(bar, advance=1, note=note)

    def finish(self, bar: TaskID) -> None:
        self._bar.update(bar, total=self._bar.tasks[bar].completed)

    def log(self, stage: str, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, flushed, and one TensorBoard scalar per value."""
        self._lines.write(json.dumps({"time": time.time(), "stage": stage, "step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)
        if not self.console.is_terminal:  # a log: one short line; everything is in metrics.jsonl
            short = {k: v for k, v in values.items() if k in ("loss", "interactions/s") or k.startswith("ndcg@")}
            shown = " ".join(f"{name} {value:.4g}" for name, value in short.items())
            self.console.print(f"{stage} {step}: {shown}", highlight=False, soft_wrap=True)

        if self._listener is not None:
            self._listener(stage, step, values)

    def histogram(self, stage: str, name: str, step: int, values: Tensor) -> None:
        self._board.add_histogram(f"{stage}/{name}", values, step)
