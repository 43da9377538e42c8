"""Config and search files are read in one way: whatever is wrong with one is one clear line, and exit code 2."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from m3dist import config as configs
from m3dist import pipeline
from m3dist.cli.main import main


@pytest.mark.parametrize("verb", ["train", "tune"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file; `m3dist init` copies examples"),
        (b"- a\n- b\n", "expected a mapping of keys to values"),
        (b"align: {lr: [1\n", "not valid YAML"),
        (b"seed: 1\nseed: 2\n", "found duplicate key seed"),
        (b"seed: ${nothing}\n", "Interpolation key 'nothing' not found"),
        (b"seed: \xff\n", "invalid start byte"),
    ],
    ids=["missing", "list", "torn", "twice", "interpolation", "bytes"],
)
def test_unreadable_files(
    verb: str, content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main([verb, str(path), f"out={tmp_path / 'out'}"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith(f"error: {path}")
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_an_override_needs_a_value(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("{}\n")
    with pytest.raises(SystemExit) as stop:
        main([verb, str(path), "align.lr"])
    assert stop.value.code == 2
    assert "'align.lr': expected key=value" in capsys.readouterr().err


def test_given_values_are_read_like_a_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('align: {lr: 1e-3, epochs: 4}\nmerge: {epochs: "${align.epochs}"}\n')
    values = {"align": {"lr": "1e-3", "epochs": 4}, "merge": {"epochs": "${align.epochs}"}}
    overrides = ["align.epochs=5", "backbone={dim: 8}"]
    read = configs.read(path, overrides)
    assert read == {"align": {"lr": 1e-3, "epochs": 5}, "merge": {"epochs": 5}, "backbone": {"dim": 8}}
    given = configs.read(values, overrides, "mine")
    assert configs.validate(given) == configs.validate(read)
    with pytest.raises(configs.ConfigError, match=r"^mine: Interpolation"):
        configs.read({"seed": "${nothing}"}, (), "mine")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("deepspeed.fp16.enabled=true", "deepspeed.fp16: is set by m3dist; use precision"),
        ("deepspeed.gradient_accumulation_steps=4", "use each stage's batch_size"),
        ("deepspeed.zero_optimization.stage=3", "use zero_stage"),
    ],
)
def test_deepspeed_values_that_m3dist_sets_are_refused(value: str, says: str) -> None:
    with pytest.raises(configs.ConfigError, match=says):
        configs.load(None, ["strategy=deepspeed", value])


def test_groups_need_shared_negatives() -> None:
    with pytest.raises(configs.ConfigError, match="backbone: groups share negatives"):
        configs.load(None, ["backbone.groups=2", "backbone.sampling=per_positive"])
    assert configs.load(None, ["backbone.sampling=per_positive"]).backbone.groups == 1  # not the default of shared ones


def test_values_that_change_numbers_change_keys() -> None:
    dataset = SimpleNamespace(fingerprint="f")

    def keys(*values: str) -> dict[str, str]:
        return pipeline.keys(configs.load(None, list(values)), dataset)  # type: ignore[arg-type]

    assert keys()["align"] == keys("strategy=deepspeed", "workers=2")["align"]
    clipped = keys("strategy=deepspeed", "deepspeed.gradient_clipping=1.0")
    for model, stage in (("m3-invrl", "align"), ("vbpr", "baseline")):
        assert len({keys(f"model={model}", *more)[stage] for more in ([], ["precision=bf16"])}) == 2
    assert clipped["align"] != keys()["align"]
