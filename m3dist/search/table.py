"""A search in the terminal: a live table, or one line per trial where the output is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from m3dist.search.ledger import OPEN, Ledger, Trial
from m3dist.search.space import Plan
from m3dist.terminal import cells, printable

_ROWS = 20
_COLOURS = {"finished": "green", "stopped": "yellow", "cut": "yellow", "failed": "red", "running": "cyan"}


class Table:
    """A context manager around the search."""

    def __init__(self, plan: Plan, ledger: Ledger, quiet: bool = False):
        self.plan, self.ledger, self.quiet = plan, ledger, quiet
        self.console = Console(stderr=True, quiet=quiet)
        self.concurrency = 0
        self._live: Live | None = None
        self._shown = 0.0

    def __enter__(self) -> Table:
        if self.console.is_terminal and not self.quiet:
            self._live = Live(self._render(), console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
            self._live.stop()

    def say(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, soft_wrap=True, markup=False)

    def show(self) -> None:
        """Draw again, at most twice a second."""
        if self._live is not None and time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            self._live.update(self._render(), refresh=True)

    def ended(self, trial: Trial) -> None:
        if self._live is not None:
            self.show()
            return
        best = self.ledger.best()
        note = f" ({trial.reason})" if trial.reason else ""
        measured = f"{self.plan.metric} {trial.metric:.4f} in {trial.measured}" if trial.metric is not None else "-"
        reused = f", reused {'+'.join(trial.reused)}" if trial.reused else ""
        top = f", best {best.metric:.4f}" if best is not None else ""
        self.say(
            f"{trial.id} {trial.status}{note}: {measured}, {trial.epochs} epochs{reused}{top}; {self.ledger.epochs} "
            f"epochs in {self.ledger.seconds:.0f} s"
        )

    def _render(self) -> Group:
        plan, ledger = self.plan, self.ledger
        names = (name.replace(".", ".\n") for name in plan.space)
        table = RichTable()
        for head in cells("trial", "status", "stage", "epoch", plan.metric, "epochs", "reused", *names):
            table.add_column(head)
        best = ledger.best()
        trials = sorted(ledger.trials.values(), key=lambda t: (t.status in OPEN, t.id))[-_ROWS:]
        if best is not None and best not in trials:
            trials[0] = best
        for t in trials:
            style = "bold green" if t is best else _COLOURS.get(t.status, "")
            values = (_short(t.values.get(name)) for name in plan.space)
            metric = "" if t.metric is None else f"{t.metric:.4f}"
            row = cells(t.id, t.status, t.stage, t.epoch, metric, t.epochs, " ".join(t.reused), *values)
            table.add_row(*row, style=style)
        counts = ", ".join(f"{n} {status}" for status, n in sorted(ledger.counts().items()))
        line = f"{counts or 'starting'}; {ledger.epochs} epochs, {ledger.seconds:.0f} s, {self.concurrency} at once"
        if best is not None:
            line += f"; best {best.id}: {best.metric:.4f}"
        return Group(Text(line), table)


def _short(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
