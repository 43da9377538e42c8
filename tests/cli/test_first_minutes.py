"""What helps somebody who is new: `m3dist` alone, `--explain`, completion, and the page that an error names."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_helpers import call
from small_runs import small, trained

from m3dist import examples, pipeline
from m3dist.cli import pages
from m3dist.cli.main import COMMANDS, cli
from m3dist.data.writer import Writer
from m3dist.explain import explained
from m3dist.method import registry

ROOT = Path(__file__).parents[2]


def commands(said: str) -> list[list[str]]:
    """The commands that a text indents."""
    lines = [line.strip().partition("  ")[0] for line in said.splitlines() if line.startswith("  m3dist ")]
    return [shlex.split(line)[1:] for line in lines]


def test_m3dist_alone_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call() == 0
    said = capsys.readouterr().out
    assert "no data set and no run yet" in said
    assert commands(said)[0] == ["train"]

    (tmp_path / "data/films").mkdir(parents=True)
    (tmp_path / "data/films/dataset.json").write_text("{}")
    assert call() == 0
    assert ["train", "data=data/films", "out=runs/films", "--explain"] in commands(capsys.readouterr().out)

    (tmp_path / "data/films/dataset.json").write_text('{"modalities": {}}')
    assert call() == 0
    assert ["train", "data=data/films", "out=runs/films", "model=ultragcn"] in commands(capsys.readouterr().out)
    (tmp_path / "data/films/dataset.json").write_text("{}")

    (tmp_path / "data/my films").mkdir()
    (tmp_path / "data/my films/dataset.json").write_text("{}")
    os.utime(tmp_path / "data/films/dataset.json", (0, 0))
    assert call() == 0
    assert ["train", "data=data/my films", "out=runs/my films", "--explain"] in commands(capsys.readouterr().out)
    (tmp_path / "data/my films/dataset.json").unlink()

    (tmp_path / "default/planted").mkdir(parents=True)  # a run that made its data
    (tmp_path / "default/config.yaml").write_text("")
    (tmp_path / "default/planted/dataset.json").write_text("{}")
    assert call() == 0
    assert ["train", "data=data/films", "out=runs/films", "--explain"] in commands(capsys.readouterr().out)

    (tmp_path / "runs/films").mkdir(parents=True)
    (tmp_path / "runs/films/result.json").write_text("{}")
    assert call() == 0
    shown = commands(capsys.readouterr().out)
    assert ["recommend", "runs/films", "--out", "top.parquet"] in shown
    for words in shown:  # which are commands
        if not words[0].startswith("-") and words[0] != "prepare":
            command = cli.get_command(click.Context(cli), words[0])
            assert command is not None
            command.make_context("m3dist", words[1:])


@pytest.mark.parametrize(("given", "meant"), [("trian", "train"), ("reccomend", "recommend"), ("zzz", None)])
def test_a_mistyped_command_is_told(given: str, meant: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(given) == 2
    said = capsys.readouterr().err
    assert "No such command" in said
    assert ("Did you mean" in said) == bool(meant)
    assert not meant or f"Did you mean {meant}? (help: m3dist docs start)" in said


@pytest.mark.parametrize("options", [["--dry-run"], ["--explain"], []])
def test_what_cannot_be_trained_is_said_before(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a data set's own folder is not trained into: nothing could replace it any more."""
    (tmp_path / "pairs.csv").write_text("user,item\n" + "".join(f"{u},{i}\n" for u in range(12) for i in range(12)))
    data = tmp_path / "data"
    assert call("prepare", "tables", tmp_path / "pairs.csv", data, "--split", "random") == 0
    before = sorted(data.rglob("*"))
    assert call("train", f"data={data}", f"out={tmp_path / 'run'}", *options) == 2
    assert "has no item features, which m3-invrl needs; use model=ultragcn" in capsys.readouterr().err
    assert call("train", f"data={data}", "model=ultragcn", f"out={data}", *options) == 2
    assert f"out={data}: is a prepared data set; choose another folder" in capsys.readouterr().err
    assert call("train", f"out={data}", *options) == 2
    assert sorted(data.rglob("*")) == before


def test_explain_says_what_a_run_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(tmp_path, "merge.masks=auto", "backbone.loss=auto", "race.steps=4", "race.share=0.1")
    rows = {row.name: row for row in explained(config, pipeline.open_data(config))}
    assert not any(row.done for row in rows.values())
    assert all(row.about for row in rows.values())
    result = pipeline.run(config, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    n = pipeline.open_data(config).size("train")
    for stage, members in (("align", 1), ("merge", 3)):
        epochs = sum(line["stage"] == stage for line in lines)
        assert rows[stage].visits == members * epochs * n
        assert f"{epochs} epochs" in rows[stage].work
    fits = sum("longer" not in name for name in result["stages"]["race"]["tried"])
    assert rows["race"].work.startswith("at most 7 fits")
    assert 5 <= fits <= 7
    assert rows["selection"].work.startswith(f"{len(result['stages']['selection']['tried'])} fits")
    assert [*rows] == [*result["keys"]]
    assert all(row.done for row in explained(config, pipeline.open_data(config)))


def test_explain_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--explain", f"out={tmp_path}", "synthetic.users=60", "synthetic.items=90") == 0
    said = capsys.readouterr().out
    for stage in registry.MODELS["m3-invrl"].stages:
        assert stage.name in said
    assert "total" in said
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_search_says_in_words_what_it_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("prepare", "synthetic", tmp_path / "data", "--users", 40, "--items", 90) == 0
    (tmp_path / "search.yaml").write_text(
        f"base: {{data: {tmp_path / 'data'}, model: ultragcn, backbone: {{loss: softmax}}, merge: {{epochs: 9}}}}\n"
        "space:\n  backbone.loss: {choice: [softmax, ultragcn]}\n"
        "  backbone.tau: {uniform: [0.1, 0.5], when: {backbone.loss: softmax}}\n"
        "budget: {trials: 4}\nscheduler: {grace: 2, reduction: 3}\n"
    )
    capsys.readouterr()
    assert call("tune", tmp_path / "search.yaml", f"out={tmp_path / 'search'}", "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "uniform 0.1, 0.5 when" in said
    assert "points: without end; epochs of a whole trial: 9 (merge 9)" in said
    assert "trials are compared in: merge after 2, 6" in said
    assert not set("[]{}'") & set(said)
    assert not (tmp_path / "search").exists()


def test_what_is_taken_over_is_said(tmp_path: Path) -> None:
    trained(tmp_path / "first", "model=ultragcn")
    config = small(tmp_path / "next", "model=ultragcn", f"warm_from={tmp_path / 'first'}", "merge.epochs=20")
    rows = {row.name: row for row in explained(config, pipeline.open_data(config))}
    assert rows["merge"].work.startswith("3 epochs")


def test_every_model_and_stage_is_explained(tmp_path: Path) -> None:
    for model in registry.names():
        config = small(tmp_path / model, f"model={model}", "backbone.loss=auto", "merge.masks=auto")
        assert all(row.about for row in explained(config, pipeline.open_data(config))), model


def test_ids_alone_are_explained(tmp_path: Path) -> None:
    import numpy as np

    with Writer(tmp_path / "ids") as out:
        pair = np.zeros(1, np.int32)
        out.interactions(2, 3, {"train": (pair, pair), "val": (pair, pair + 1), "test": (pair, pair + 2)})
        out.finish()
    config = small(tmp_path / "run", "model=ultragcn", f"data={tmp_path / 'ids'}", "backbone.loss=auto")
    race = next(row for row in explained(config, pipeline.open_data(config)) if row.name == "race")
    assert race.work.startswith("at most 4 fits")


@pytest.mark.parametrize(
    ("arguments", "page"),
    [
        (("train", "data=/nowhere"), "data"),
        (("train", "sed=1"), "start"),
        (("train", "--bogus"), "start"),
        (("prepare", "tables", "/nowhere", "x"), "data"),
        (("prepare", "tables"), "data"),
        (("tune", "/nowhere.yaml"), "search"),
        (("submit", "--"), "cluster"),
        (("reproduce", "table9"), "study"),
        (("bogus",), "start"),
        (("train", "out=s3://key:secret@bucket/x"), "security"),
    ],
)
def test_an_error_names_the_page_that_helps(
    arguments: tuple[str, ...], page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    assert capsys.readouterr().err.endswith(f" (help: m3dist docs {page})\n")


def test_a_page_is_shown_and_a_mistyped_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("docs") == 0
    listed = [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"start", "data", "method"} <= set(listed)
    for given in ("data", "docs/data.md"):
        assert call("docs", given) == 0
        assert capsys.readouterr().out.strip() == (ROOT / "docs/data.md").read_text().strip()
    assert call("docs", "dota") == 2
    assert "dota: no such page; did you mean data?" in capsys.readouterr().err


def test_pages_are_there_and_every_command_has_one() -> None:
    named = {*pages.PAGES.values(), pages.OTHERS}
    assert named <= set(examples.pages())
    assert {f"cli.{module}" for module in COMMANDS.values()} <= set(pages.PAGES)
    for module in pages.PAGES:
        path = ROOT / "m3dist" / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str, at: int) -> list[str]:
        environment = {"_M3DIST_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        call = [sys.executable, "-c", "from m3dist.cli.main import cli; cli(prog_name='m3dist')"]
        done = subprocess.run(
            call, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("m3dist t", 1) == ["train", "tune"]
    assert "--explain" in completed("m3dist train --", 2)
    assert completed("m3dist docs se", 2) == ["search", "security", "serving"]
