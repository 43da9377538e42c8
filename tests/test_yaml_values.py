"""What configs may make m3dist look up, expand or repeat: nothing."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from cli_helpers import call

from m3dist import config as configs
from m3dist.config import ConfigError
from m3dist.values import read, read_own

LOOKUPS = [
    "${oc.env:HOME}",
    "s3://x/${oc.env:HOME}",
    "${ oc.env : HOME}",
    "${oc.decode:1}",
    "${${a}:HOME}",
    "a${b.${c}}",
]


@pytest.mark.parametrize("value", LOOKUPS)
def test_a_users_own_config_looks_nothing_up_outside_itself(value: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f'data: "{value}"\n')
    with pytest.raises(ConfigError, match=r"mine.yaml: data: \$\{...\} names another key of the config and nothing"):
        read(path)
    with pytest.raises(ConfigError, match=r"command line: baseline\.options\.x: "):
        read(None, [f'baseline.options={{x: "{value}"}}'])


def test_another_key_may_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('align: {epochs: 4}\nmerge: {epochs: "${align.epochs}"}\n')
    assert read(path)["merge"] == {"epochs": 4}


@pytest.mark.parametrize("value", ["${seed}", "${oc.env:HOME}", "${x"])
def test_a_run_folders_config_holds_plain_values(value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f'seed: 1\ndata: "{value}"\n')
    with pytest.raises(ConfigError, match=r"^run/config.yaml: holds \$\{...\}, which no run folder does"):
        read_own(path, "run/config.yaml")


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "RUN"],
        ["recommend", "RUN", "--out", "x.parquet"],
        ["train", "--resume", "RUN"],
        ["train", "out=RUN"],
    ],
)
def test_a_strangers_run_folder_is_not_asked_what_to_look_up(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINE", "hunter22")
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text("{}")
    (run / "config.yaml").write_text("data: http://127.0.0.1:9/${oc.env:MINE}\n")
    assert call(*[word.replace("RUN", str(run)) for word in command]) == 2
    said = capsys.readouterr().err
    assert f"{run}/config.yaml: holds ${{...}}" in said
    assert said.count("\n") == 1
    assert "hunter22" not in said
    assert "hunter22" not in "".join(path.read_text() for path in run.rglob("*") if path.is_file())


def test_values_that_go_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text in ("a: &x {b: *x}\n", 'seed: "${x}"\nx: "${seed}"\n', "a: " + "[" * 5000 + "]" * 5000 + "\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"^[^\n]*mine.yaml: [^\n]*$"):
            configs.load(path)


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    path.write_text("\n".join(lines))
    tracemalloc.start()
    with pytest.raises(ConfigError, match="stands for more than 100,000 values"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    path.write_text("a: " + "x" * (5 << 20))
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        read(path)


@pytest.mark.parametrize("out", ["/", "//", "~", "~/", "/tmp/.."])
@pytest.mark.parametrize("key", ["out", "artifacts"])
def test_a_run_wants_a_folder_of_its_own(key: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if (key, out) != ("artifacts", "~"):  # YAML's word for nothing, which is the default
        with pytest.raises(ConfigError, match=f"{key}: "):
            configs.load(None, [f"{key}={out}"])
    assert not [*tmp_path.iterdir()]


def test_a_home_is_what_the_shell_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = configs.load(None, ["out=~/runs/a", "data=~/mine"])
    assert (config.out, config.data) == ("/home/me/runs/a", "/home/me/mine")
