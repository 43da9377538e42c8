"""Steps of a fit on a device: the learning rate, the sums of what steps report, and CUDA graphs.

Nothing here makes the host wait: a step reads its number on the device, and what it reports is read once an epoch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from m3dist.distributed.engine import Engine

_WARM = 3  # steps that run before one is captured: they make the optimiser's state and the libraries' workspaces


class Rate:
    """A learning rate on the device, `now`, which is what it was given times how much of it is left.

    float32 scalars; `fall` sets it from where a fit stands, without the host.
    """

    def __init__(self, lr: float, device: torch.device):
        self.lr, self.now = lr, torch.full((), lr, device=device)

    def scale(self, left: Tensor) -> None:
        torch.mul(left, self.lr, out=self.now)


class Sums:
    """Sums over an epoch's steps of the terms that they report, on the device."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._total_T: Tensor | None = None
        self._before: dict[str, float] = {}

    def start(self, before: dict[str, float]) -> None:
        """A new epoch. before: the sums of its earlier steps, where it was interrupted."""
        self._before = before
        if self._total_T is not None:
            self._total_T.zero_()

    def add(self, terms: dict[str, Tensor]) -> None:
        """Scalars, under the same names in every step."""
        terms_T = torch.stack([*terms.values()]).double()
        if self._total_T is None:
            self.names, self._total_T = [*terms], torch.zeros_like(terms_T)
        self._total_T.add_(terms_T)

    def read(self) -> dict[str, float]:
        """The sums so far; waits for the device."""
        if self._total_T is None:
            return self._before
        return {
            name: x + self._before.get(name, 0.0) for name, x in zip(self.names, self._total_T.tolist(), strict=True)
        }


class Stepper:
    """Takes steps, on a GPU as one captured CUDA graph. why_not: the reason why steps are not captured, or "".

    The first steps run one by one, and are steps like the others.
    """

    def __init__(self, step: Callable[[], None], engine: Engine, why_not: str = ""):
        self.step, self.engine, self.why_not = step, engine, why_not
        self._graph: torch.cuda.CUDAGraph | None = None
        self._taken = 0
        if engine.device.type != "cuda":
            self.why_not = "steps are captured on CUDA devices alone"
        elif engine.world > 1:
            self.why_not = "several workers train together"
        else:
            self._stream = torch.cuda.Stream(engine.device)

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        with self.engine.fast_products():
            self._take()

    def _take(self) -> None:
        if self.why_not:
            self.step()
        elif self._taken < _WARM:
            self._beside(self.step)
            self._taken += 1
        else:
            self._capture()

    def close(self) -> None:
        """Give a captured step's memory back."""
        if self._graph is not None:
            torch.cuda.synchronize()
            self._graph.reset()
            self._graph = None

    def _beside(self, step: Callable[[], None]) -> None:
        """On a stream of its own, as capturing asks of the steps before."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            step()
        torch.cuda.current_stream().wait_stream(self._stream)

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph):
                self.step()
        except RuntimeError as error:
            self.why_not = f"capturing a step failed: {str(error).splitlines()[0]}"
            torch.cuda.synchronize()
            self.step()
            return
        self._graph = graph
        graph.replay()
