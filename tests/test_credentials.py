"""Credentials are refused wherever they stand, before anything is printed or written, and never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import call

from m3dist import credentials
from m3dist.config import Config
from m3dist.storage.folders import Folder

SECRETS = [
    "s3://KEY:hunter22@bucket/x",
    "s3://bucket/x?region=r&secret_key=hunter22",
    "s3://bucket/x?session_token=hunter22",
    "abfs://c@acc.dfs.core.windows.net/x?client_secret=hunter22",
    "https://acc.blob.core.windows.net/x?sv=1&SIG=hunter22",
    "gs://bucket/x?X-Goog-Signature=hunter22",
    "https://ghp_hunter22hunter22hunter22@github.com/x",
    "Bearer hunter22",
    "s3://KEY:hunter22/with+slash@bucket/x",
    "s3://AKIAIOSFODNN7EXAMPLE:hunter22/bucket",
    "s3://bucket/x#token=hunter22",
    "https;AccountName=a;AccountKey=hunter22",
]
FINE = ["s3://bucket/x?region=r&endpoint_override=127.0.0.1:9", "hdfs://me@host:9000/x", "user:name@mail", "C:/x@y"]
FINE += [
    "http://head:8265/x@y",
    "http://[::1]:8265/x@y",
    "s3://b/run?endpoint_override=h:9000&scheme=http@0123456789abcdef",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "command",
    [
        ["train", "out=OUT", "data=SECRET"],
        ["train", "data=/nowhere", "out=SECRET"],
        ["train", "out=OUT", "baseline.options={x: [SECRET]}"],
        ["tune", "SECRET", "out=OUT"],
        ["evaluate", "SECRET"],
        ["recommend", "SECRET", "--out", "x"],
        ["recommend", "OUT", "--out", "SECRET"],
        ["reproduce", "table3", "--data", "SECRET"],
        ["prepare", "tables", "SECRET", "OUT"],
        ["nonsense", "SECRET"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_on_a_command_line(
    command: list[str], secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*[word.replace("SECRET", secret).replace("OUT", str(tmp_path / "out")) for word in command]) == 2
    said = "".join(capfd.readouterr())
    assert said.startswith("error: the command line: credentials ")
    assert said.count("\n") == 1
    assert "hunter22" not in said
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("text", ["data: SECRET\n", "baseline: {options: {'x': [1, 'SECRET']}}\n", "out: [SECRET\n"])
@pytest.mark.parametrize("verb", ["train", "tune"])
def test_in_a_file(
    verb: str,
    text: str,
    secret: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text.replace("SECRET", secret))
    assert call(verb, "mine.yaml") == 2
    said = "".join(capfd.readouterr())
    assert said.startswith("error: mine.yaml")
    assert "hunter22" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("key", ["password", "baseline.options.api_key", "deepspeed.token"])
def test_keys_that_are_named_like_one(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", f"out={tmp_path / 'out'}", f"{key}=hunter22") == 2
    said = capsys.readouterr().err
    assert key in said
    assert "hunter22" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("secret", SECRETS[:6])
def test_in_the_address_of_a_folder(secret: str) -> None:
    with pytest.raises(ValueError, match="holds credentials") as refused:
        Folder(secret)
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize("text", FINE)
def test_what_is_none(text: str) -> None:
    credentials.refuse_words([text])
    credentials.refuse_in("mine", {"a": [text]})


def test_names_of_secrets_of_a_cluster_are_none() -> None:
    words = ["auth_secret=ray-login", "--auth-secret", "cluster.image_pull_secrets=[registry]", "tokens.parquet"]
    credentials.refuse_keys(words)
    credentials.refuse_in("mine", {"cluster": {"auth_secret": "ray-login", "image_pull_secrets": ["registry"]}})
    assert Config.model_validate({"cluster": {"auth_secret": "ray-login"}}).cluster.auth_secret == "ray-login"
    with pytest.raises(ValueError, match=r"^auth_token: tokens"):
        credentials.refuse_keys(["auth_token=x"])
