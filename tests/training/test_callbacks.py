"""What a user's own code hears of a run, in which order, and how it ends one that then goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from small_runs import trained

from m3dist.training.callbacks import Callback, Stopped

STEPS = 4  # of an epoch: 1,920 interactions in batches of 512


class Told(Callback):
    """Notes what it hears; `ends` says at which of it the run shall stop."""

    def __init__(self, ends: Callable[..., bool] = lambda *event: False):
        self.events: list[tuple] = []
        self.ends = ends

    def _note(self, *event: Any) -> None:
        self.events.append(event)
        if self.ends(*event):
            raise Stopped

    def on_stage_begin(self, stage: str) -> None:
        self._note("begin", stage)

    def on_step(self, stage: str, epoch: int, step: int) -> None:
        self._note("step", stage, epoch, step)

    def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        self._note("epoch", stage, epoch, values)

    def on_evaluate(self, stage: str, epoch: int, metrics: dict[str, float]) -> None:
        self._note("evaluate", stage, epoch, metrics)

    def on_end(self, result: dict[str, Any]) -> None:
        self._note("end", result)


def lines(out: Path) -> list[tuple[str, int]]:
    return [(x["stage"], x["step"]) for x in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]


def test_a_callback_hears_everything_in_order(tmp_path: Path) -> None:
    told = Told()
    result = trained(tmp_path, "align.evaluate_every=1", "merge.evaluate_every=2", callbacks=[told])
    *events, (end, given) = told.events
    assert (end, given) == ("end", result)
    expected: list[tuple] = []
    for stage, evaluated in (("align", (0, 1)), ("merge", (1,))):
        expected.append(("begin", stage))
        for epoch in range(2):
            expected += [("step", stage, epoch, step + 1) for step in range(STEPS)]
            expected.append(("epoch", stage, epoch))
            expected += [("evaluate", stage, epoch)] if epoch in evaluated else []
        if stage == "align":
            expected += [("begin", "invariance"), ("epoch", "invariance", 0), ("epoch", "invariance", 1)]
    expected += [("begin", "test"), ("epoch", "test", 0), ("evaluate", "test", 0)]
    assert [event[:3] if event[0] in ("epoch", "evaluate") else event for event in events] == expected
    heard = {event[:3]: event[3] for event in events if event[0] in ("epoch", "evaluate")}
    assert heard["evaluate", "test", 0] == {name: x for name, x in result["test"].items() if "@" in name}
    assert "loss" in heard["epoch", "merge", 1]
    assert "loss" not in heard["evaluate", "merge", 1]
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in written:
        values = {name: x for name, x in line.items() if name not in ("time", "stage", "key", "step")}
        assert heard["epoch", line["stage"], line["step"]] == values
    assert len(written) == 2 + 2 + 2 + 1


def test_several_callbacks_hear_the_same(tmp_path: Path) -> None:
    one, two = Told(), Told()
    trained(tmp_path, "model=ultragcn", callbacks=[one, two])
    assert one.events == two.events != []


@pytest.mark.parametrize(
    ("where", "batch"),
    [
        (("step", "align", 1, 2), 512),  # inside an epoch
        (("step", "align", 0, 4), 512),  # at its last step
        (("step", "align", 0, 1), 5000),  # at its only one
        (("step", "align", 1, 4), 512),  # at the last of the stage
        (("epoch", "align", 0), 512),
        (("evaluate", "align", 0), 512),
        (("epoch", "invariance", 0), 512),
        (("step", "merge", 1, 1), 512),
        (("epoch", "merge", 1), 512),  # the last
        (("begin", "merge"), 512),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_numbers(where: tuple, batch: int, tmp_path: Path) -> None:
    values = ("align.evaluate_every=1", f"align.batch_size={batch}")
    straight = trained(tmp_path / "straight", *values)
    told = Told(lambda *event: event[: len(where)] == where)
    with pytest.raises(Stopped):
        trained(tmp_path / "stopped", *values, callbacks=[told])
    steps = [event for event in told.events if event[0] == "step"]
    at = next(at for at, event in enumerate(told.events) if event[: len(where)] == where)
    assert {event[0] for event in told.events[at + 1 :]} <= {"epoch", "evaluate"}, "the run went on"  # of that epoch
    after = Told()
    result = trained(tmp_path / "stopped", *values, callbacks=[after])
    for split in ("validation", "test"):
        assert result[split] == straight[split]
    assert [key for key, _ in groupby(lines(tmp_path / "stopped"))] == lines(tmp_path / "straight")
    again = [event for event in after.events if event[0] == "step"]
    assert not {event for event in again if where[0] == "step"} & set(steps), "a step was taken twice"


def test_errors_of_a_callback_are_not_hidden(tmp_path: Path) -> None:
    class Broken(Callback):
        def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
            raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        trained(tmp_path, "model=ultragcn", callbacks=[Broken()])
