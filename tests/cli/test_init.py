"""`m3dist init` and the examples it copies, from a checkout and from a built wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from m3dist import config, examples
from m3dist.cli import main as cli

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(x) for x in arguments])
    return int(end.value.code or 0)


def test_init_copies_all_and_overwrites_nothing(tmp_path, capsys):
    assert run("init", tmp_path / "new") == 0
    copied = {str(p.relative_to(tmp_path / "new")) for p in (tmp_path / "new").rglob("*") if p.is_file()}
    assert copied == set(examples.files())
    assert {"config.yaml", "cluster/local.sh"} <= copied
    assert os.access(tmp_path / "new/cluster/local.sh", os.X_OK)

    (tmp_path / "new/config.yaml").write_text("mine")
    (tmp_path / "new/cluster/local.sh").unlink()
    assert run("init", tmp_path / "new") == 2
    assert "config.yaml" in capsys.readouterr().err
    assert (tmp_path / "new/config.yaml").read_text() == "mine"
    assert not (tmp_path / "new/cluster/local.sh").exists()


def test_the_example_config_has_the_defaults():
    assert config.load(examples.files()["config.yaml"]) == config.Config(out="runs/example")


def test_a_wheel_carries_the_examples_and_the_pages(tmp_path):
    source = tmp_path / "source"
    kept = ("m3dist", "cluster", "tune", "docs", "pyproject.toml", "setup.py", "README.md")
    source.mkdir()
    for name in kept:  # a link would be built in place and leave build/ in the checkout
        if (ROOT / name).exists():
            subprocess.run(["cp", "-r", str(ROOT / name), str(source / name)], check=True)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"  # no pip: uv has none
    subprocess.run([sys.executable, "-c", build], check=True, cwd=source, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")

    def installed(*words: object) -> str:
        command = [sys.executable, "-m", "m3dist", *map(str, words)]
        path = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
        return subprocess.run(command, check=True, cwd=tmp_path, env=path, capture_output=True, text=True).stdout

    installed("init", tmp_path / "new")
    for name, path in examples.files().items():
        assert (tmp_path / "new" / name).read_bytes() == path.read_bytes(), name
    assert installed("docs", "data").strip() == (ROOT / "docs/data.md").read_text().strip()
    assert not list((tmp_path / "installed/m3dist/examples/docs").glob("*.py"))
