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


def test_a_key_with_dots_in_a_file_says_how_it_is_written() -> None:
    with pytest.raises(configs.ConfigError) as error:
        configs.validate({"merge.epochs": 2, "mergr": {}})
    assert "merge.epochs: sections of a file are nested; write merge: {epochs: ...}" in str(error.value)
    assert "mergr: unknown key; did you mean merge?" in str(error.value)


def test_groups_need_shared_negatives() -> None:
    with pytest.raises(configs.ConfigError, match="backbone: groups share negatives"):
        configs.load(None, ["backbone.groups=2", "backbone.sampling=per_positive"])
    own = configs.load(None, ["backbone.loss=ultragcn", "backbone.sampling=per_positive"]).backbone
    assert own.groups == 1  # not the default of shared ones
    assert own.resolved.groups == 1


@pytest.mark.parametrize("loss", ["auto", "softmax"])
def test_negatives_of_ones_own_are_for_ultragcn(loss: str) -> None:
    """Refused in the config, not after a race that no other loss could win."""
    with pytest.raises(configs.ConfigError, match="backbone: sampling: per_positive is for loss=ultragcn"):
        configs.load(None, [f"backbone.loss={loss}", "backbone.sampling=per_positive"])


@pytest.mark.parametrize(
    ("values", "interactions", "epochs", "interval"),
    [
        (["epochs=auto"], 1_000_000, 10, 1),  # 489 steps an epoch
        (["epochs=auto"], 2048 * 150, 10, 1),  # 1,500 steps in 10 epochs
        (["epochs=auto"], 2048 * 149, 11, 1),  # one more where 10 have fewer
        (["epochs=auto"], 2048 * 4 + 1, 300, 30),  # 5 steps an epoch, of which the last is not full
        (["epochs=auto"], 7, 1500, 150),
        (["epochs=auto", "batch_size=100"], 1000, 150, 15),
        (["epochs=auto", "evaluate_every=2"], 7, 1500, 2),
        (["epochs=0"], 7, 0, 1),
        (["epochs=3"], 1_000_000, 3, 1),
        (["epochs=40"], 7, 40, 4),
        (["epochs=40", "evaluate_every=100"], 7, 40, 100),
    ],
)
def test_length_of_a_fit(values: list[str], interactions: int, epochs: int, interval: int) -> None:
    """10 epochs, or what makes 1,500 steps where that is more, and an evaluation every tenth of them."""
    fit = configs.load(None, [f"align.{value}" for value in values]).align
    assert (fit.length(interactions), fit.interval(interactions)) == (epochs, interval)


@pytest.mark.parametrize(("interactions", "epochs"), [(1_000_000, 20), (2048 * 75, 20), (2048 * 74, 21)])
def test_stage_3_is_longer(interactions: int, epochs: int) -> None:
    assert configs.load(None).merge.length(interactions) == epochs


@pytest.mark.parametrize("key", ["out", "artifacts"])
@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("/", "a folder of its own"),
        ("file:///", "a folder of its own"),
        (str(Path.home()), "a folder of its own"),
        (f"file://{Path.home()}", "a folder of its own"),
        ("s3:/bucket/mine", "a URI with two slashes"),
        ("gs:/mine", "a URI with two slashes"),
    ],
)
def test_a_run_gets_no_folder_that_is_everybodys(key: str, folder: str, said: str) -> None:
    with pytest.raises(configs.ConfigError, match=said):
        configs.load(None, [f"{key}={folder}"])


@pytest.mark.parametrize("key", ["epochs", "evaluate_every"])
@pytest.mark.parametrize("value", ["many", "-1", "2.5"])
def test_lengths_are_numbers_or_auto(key: str, value: str) -> None:
    with pytest.raises(configs.ConfigError, match=rf"merge\.{key}.*(auto|greater than)"):
        configs.load(None, [f"merge.{key}={value}"])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("merge.epochs=many", "merge.epochs: Input should be a valid integer or 'auto', got 'many'"),
        ("workers=two", "workers: Input should be a valid integer or a list in brackets, got 'two'"),
        ("workers=[2,a]", "workers.1: Input should be a valid integer, unable to parse string as an integer, got 'a'"),
        ("workers=[2]", "workers.1: Field required, got [2]"),
        ("use_gpu=maybe", "use_gpu: Input should be a valid boolean or 'auto', got 'maybe'"),
        ("evaluation.k=10", "evaluation.k: Input should be a list in brackets, got 10"),
        ("merge=3", "merge: Input should be a section of keys and values, got 3"),
        ("actor_resources.CPU=a", "actor_resources.CPU: Input should be a valid number, unable"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_key(value: str, said: str) -> None:
    """Also where it may be of two kinds."""
    with pytest.raises(configs.ConfigError) as error:
        configs.load(None, [value])
    head, *lines = str(error.value).splitlines()
    assert head == "command line:"
    assert [line.strip()[: len(said)] for line in lines] == [said]


@pytest.mark.parametrize(
    ("loss", "want"),
    [
        (
            "softmax",
            {
                "content": "add",
                "tau": 0.25,
                "kappa": 0,
                "nu": 0,
                "l2": 5e-2,
                "projection_l2": 1e-3,
                "projection_rate": 0.1,
            },
        ),
        (
            "ultragcn",
            {"content": "concat", "kappa": 1, "nu": 0.1, "l2": 3e-2, "projection_l2": 1e-2, "projection_rate": 1},
        ),
    ],
)
def test_values_of_a_backbone_follow_its_loss(loss: str, want: dict[str, object]) -> None:
    backbone = configs.load(None, [f"backbone.loss={loss}", "backbone.dim=24", "backbone.content_dim=12"]).backbone
    resolved = backbone.resolved
    assert {name: getattr(resolved, name) for name in want} == want
    assert all(value is not None for value in resolved.model_dump().values())
    given = {name: value for name, value in backbone.model_dump().items() if value is not None}
    assert given.keys().isdisjoint(want)
    assert {name: getattr(resolved, name) for name in given} == given
    assert resolved.content_columns == (12 if resolved.content == "concat" else 0)
    assert resolved.resolved == resolved


@pytest.mark.parametrize("loss", ["softmax", "ultragcn"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("content", "concat"), ("content", "add"), ("tau", 0.7), ("kappa", 0.0), ("kappa", 2.0), ("nu", 0.0),
        ("nu", 0.3), ("projection_l2", 0.0), ("projection_rate", 0.5),
    ],
)  # fmt: skip
def test_what_is_given_does_not_follow_the_loss(loss: str, key: str, value: object) -> None:
    """Zeros are given too."""
    resolved = configs.load(None, [f"backbone.loss={loss}", f"backbone.{key}={value}"]).backbone.resolved
    assert getattr(resolved, key) == value


def test_a_backbone_that_a_race_decides_has_no_values_yet() -> None:
    with pytest.raises(ValueError, match="auto is decided by the stage `race`"):
        _ = configs.load(None).backbone.resolved


def test_values_that_change_numbers_change_keys() -> None:
    dataset = SimpleNamespace(fingerprint="f")

    def keys(*values: str) -> dict[str, str]:
        return pipeline.keys(configs.load(None, list(values)), dataset)  # type: ignore[arg-type]

    assert keys()["align"] == keys("strategy=deepspeed", "workers=2")["align"]
    clipped = keys("strategy=deepspeed", "deepspeed.gradient_clipping=1.0")
    for model, stage in (("m3-invrl", "align"), ("vbpr", "baseline")):
        assert len({keys(f"model={model}", *more)[stage] for more in ([], ["precision=bf16"])}) == 2
    assert clipped["align"] != keys()["align"]
