"""What a run reports while it goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from m3dist.training.tracking import Display, Tracker


def test_tensorboard_reads_while_the_run_goes_on(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Tracker(tmp_path, display=Display(quiet=True)) as tracker:
        for step, loss in enumerate((2.0, 1.0, 0.5)):
            tracker.log("align", step, {"loss": loss})
        board, shown, until = events.EventAccumulator(str(tmp_path / "tb")), [], time.monotonic() + 60
        while len(shown) < 3 and time.monotonic() < until:  # a thread writes, and not later than every two minutes
            board.Reload()
            if "align/loss" in board.Tags()["scalars"]:
                shown = [event.value for event in board.Scalars("align/loss")]
        assert shown == [2.0, 1.0, 0.5]


def test_tensorboard_shows_every_stage(finished_run: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = events.EventAccumulator(str(finished_run / "tb"))
    board.Reload()
    scalars, histograms = set(board.Tags()["scalars"]), set(board.Tags()["histograms"])
    fit = ("loss", "softmax", "l2", "lr", "interactions/s", "ndcg@10")
    assert {f"{stage}/{name}" for stage in ("align", "merge") for name in fit} <= scalars
    assert {f"align/{name}" for name in ("loss", "recommendation", "contrastive", "club", "club_nll", "tau")} <= scalars
    rounds = ("moved", "environment 0", "environment 2", "fit", "variance", "size", "effect", "mask")
    assert {f"invariance/{r}/{name}" for r in range(4) for name in rounds} <= scalars
    assert "invariance/interactions/s" in scalars
    assert {f"merge/fusion weight {m}" for m in range(3)} <= scalars & histograms
    assert {f"invariance/mask {r}" for r in range(4)} <= histograms


def test_damaged_lines_of_the_log_are_dropped_and_do_not_end_a_run(tmp_path: Path) -> None:
    with Tracker(tmp_path, display=Display(quiet=True)) as tracker:
        tracker.begin("align", "k")
        for step in range(3):
            tracker.log("align", step, {"loss": 1.0})
    log = tmp_path / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b"\xff" + lines[1] + b"[1]\n" + lines[2][:-3])
    with Tracker(tmp_path, display=Display(quiet=True)) as tracker:
        tracker.begin("align", "k", 1)
        tracker.log("align", 1, {"loss": 2.0})
    assert [json.loads(line)["loss"] for line in log.read_text().splitlines()] == [1.0, 2.0]


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup."""
    Display().say("data [red]mine[/red] [/]")
    assert capsys.readouterr().err == "data [red]mine[/red] [/]\n"
