"""What the workers of a Ray Train run and the driver tell each other, through one small actor on the driver's node.

The actor's process imports this module and nothing else of m3dist, so that it starts without torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One worker: its rank, where it runs, its process, and the kernel's kills for want of memory seen there so far."""

    rank: int
    node: str  # Ray's node id
    host: str
    pid: int
    kills: int = 0

    @property
    def place(self) -> str:
        return f"{self.host} {self.node[:8]}"


@dataclass(frozen=True)
class Cause:
    """How one worker ended. kind: memory, preempted, died, silent, peer (another one was gone) or error."""

    rank: int
    kind: str
    text: str = ""  # of an error, in one line


class Relay:
    """The actor: events from rank 0 in order, the driver's request to stop, and how the run ended.

    Events: ("bar" | "say" | "values", ...) for the terminal, ("heard", what, ...) for callbacks,
    ("workers", members, placement group) when workers have started, ("failed", causes) when some have ended.
    """

    def __init__(self) -> None:
        self.events: list[tuple] = []
        self.sent = self.handled = 0
        self.request = ""  # "", "interrupt" or "stop"
        self.end: tuple[str, str] | None = None

    def push(self, event: tuple) -> int:
        """Add an event; its number, from 1."""
        self.events.append(event)
        self.sent += 1
        return self.sent

    def pull(self, handled: int) -> tuple[list[tuple], tuple[str, str] | None]:
        """The events since the last call, and how the run ended; handled: the events that the driver is done with."""
        self.handled = handled
        out, self.events = self.events, []
        return out, self.end

    def state(self) -> tuple[int, str]:
        return self.handled, self.request

    def ask(self, request: str) -> None:
        self.request = request

    def finish(self, kind: str, text: str) -> None:
        self.end = self.end or (kind, text)  # the first error is the cause of the others

    def ended(self) -> tuple[str, str] | None:
        return self.end
