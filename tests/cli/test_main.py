"""Exit codes of the command line."""

from __future__ import annotations

import click
import pytest

from m3dist.cli import main
from m3dist.cluster.place import ClusterFailed
from m3dist.training.tracking import RunFailed


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("seed: expected a number"), 2, "error: seed: expected a number"),
        (click.UsageError("no such option"), 2, "no such option"),
        (RunFailed("worker 1 was killed"), 3, "error: worker 1 was killed"),
        (ClusterFailed("nothing answers"), 3, "error: nothing answers"),
        (FloatingPointError("align: the loss is nan"), 4, "error: align: the loss is nan"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
)
def test_errors_become_exit_codes_and_one_line(error, code, said, capsys):
    def work() -> None:
        raise error

    assert main.ended(work) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_programming_error_keeps_its_traceback():
    def work() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        main.ended(work)


def test_what_a_command_returns():
    assert [main.ended(lambda value=value: value) for value in (None, 0, 7, "text")] == [0, 0, 7, 0]


def test_a_diverging_run_ends_with_code_4(tmp_path, capsys):
    tiny = ["synthetic={users: 60, items: 40, interactions: 10}", "align.lr=1e30", "align.epochs=4"]
    with pytest.raises(SystemExit) as end:
        main.main(["train", f"out={tmp_path}", *tiny])
    assert end.value.code == 4
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: align: the loss is")
