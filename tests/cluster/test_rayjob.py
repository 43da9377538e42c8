"""KubeRay manifests against Kubernetes' own schemas and RayJob's, and sized from the config."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from m3dist import config
from m3dist.cli import main as cli
from m3dist.cluster import rayjob

SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
KUBERNETES = kubernetes_validate.latest_version() if hasattr(kubernetes_validate, "latest_version") else "1.33"
OUT = "out=/mnt/m3dist/run"


def validate(document: dict[str, Any]) -> None:
    """Raises a validation error when Kubernetes or KubeRay would refuse the document."""
    if document["kind"] != "RayJob":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.validate(document, SCHEMA)
    cluster = document["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        for container in group["template"]["spec"]["containers"]:  # what the schemas cannot say
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    assert isinstance(yaml.safe_load(document["spec"]["runtimeEnvYAML"]), dict)


def made(*arguments: str, **options: Any) -> dict[str, dict[str, Any]]:
    documents = list(yaml.safe_load_all(rayjob.manifest([*arguments], rayjob.Options(**options))))
    for document in documents:
        validate(document)
    return {document["kind"]: document for document in documents}


def groups(documents: dict[str, dict[str, Any]]) -> tuple[dict, list[dict]]:
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    return cluster["headGroupSpec"], cluster.get("workerGroupSpecs", [])


def limits(group: dict) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_the_head_trains_alone_without_workers():
    head, workers = groups(made(OUT, "use_gpu=true"))
    assert workers == []
    assert limits(head) == {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": 1}


def test_workers_are_pods_sized_by_the_config():
    documents = made(OUT, "workers=3", "use_gpu=true", "resources_per_worker={CPU: 2.5, fast: 1}", memory="32Gi")
    head, (workers,) = groups(documents)
    assert "nvidia.com/gpu" not in limits(head)
    assert limits(workers) == {"cpu": "2500m", "memory": "32Gi", "nvidia.com/gpu": 1}
    assert (workers["minReplicas"], workers["replicas"], workers["maxReplicas"]) == (3, 3, 3)
    assert json.loads(workers["rayStartParams"]["resources"].strip("'")) == {"fast": 1.0}
    assert "enableInTreeAutoscaling" not in documents["RayJob"]["spec"]["rayClusterSpec"]


def test_elastic_workers_scale_between_their_bounds():
    documents = made(OUT, "workers=[2,8]")
    _, (workers,) = groups(documents)
    assert (workers["minReplicas"], workers["maxReplicas"]) == (2, 8)
    assert documents["RayJob"]["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True


def test_the_job_runs_the_config_that_travels_in_the_manifest(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 7\nmerge: {epochs: 3}\n")
    documents = made(str(tmp_path / "c.yaml"), OUT, ttl=60, backoff=5, image="registry/m3dist:1")
    travelled = tmp_path / "travelled.yaml"
    travelled.write_text(documents["ConfigMap"]["data"]["config.yaml"])
    assert config.load(travelled) == config.load(tmp_path / "c.yaml", [OUT])
    spec = documents["RayJob"]["spec"]
    assert spec["entrypoint"].endswith("-- train /etc/m3dist/config.yaml")
    assert (spec["ttlSecondsAfterFinished"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (60, 5, True)
    assert "--logdir=/mnt/m3dist/run/tb" in str(documents["Deployment"])
    assert documents["Service"]["spec"]["type"] == "ClusterIP"
    assert documents["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "PersistentVolumeClaim" not in made(OUT, claim="mine")


def test_tokens_come_from_a_secret():
    text = rayjob.manifest([OUT], rayjob.Options(auth_secret="ray-login"))
    for document in yaml.safe_load_all(text):
        validate(document)
    assert "secretKeyRef" in text
    assert "secretKeyRef" not in rayjob.manifest([OUT], rayjob.Options())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].update(backofLimit=2),
        lambda job: job["spec"].update(ttlSecondsAfterFinished="3600"),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(contaners=[]),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(port=6379),
        lambda job: job.update(apiVersion="ray.io/v1alpha1"),
    ],
)
def test_the_validation_finds_faults(spoil):
    job = copy.deepcopy(made(OUT, "workers=2")["RayJob"])
    spoil(job)
    with pytest.raises(Exception, match=r"valid|required|expected|is not"):
        validate(job)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["out=runs/x"], "not on the shared volume"), ([OUT, "data=/home/me"], "data=/home/me"), ([OUT, "sed=1"], "seed")],
)
def test_folders_that_pods_do_not_see_are_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["submit", "--format", "rayjob", "--", *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_the_example_is_what_the_command_prints(capsys):
    lines = (Path(__file__).parents[2] / "cluster/rayjob.yaml").read_text().splitlines(keepends=True)
    head = [line for line in lines if line.startswith("#")]
    written = "".join(line.lstrip("# ").replace("\\\n", " ") for line in head[2:4])
    command = shlex.split(written.partition(">")[0])
    with pytest.raises(SystemExit) as end:
        cli.main(command[1:])
    assert not end.value.code
    printed = capsys.readouterr().out
    assert "".join(lines).endswith(printed), "write it again with the command in its head"
    for document in yaml.safe_load_all(printed):
        validate(document)


def test_actors_beside_a_head_that_trains_alone():
    head, (actors,) = groups(made(OUT, "actors=3", "actor_resources={CPU: 2, fast: 1}"))
    assert (actors["groupName"], actors["replicas"], limits(actors)["cpu"]) == ("actors", 3, "2")
    assert actors["rayStartParams"]["resources"] == """'{"fast": 1.0}'"""
    assert "num-cpus" not in head["rayStartParams"]  # it trains


def test_workers_stay_off_the_head_and_may_write_the_volume():
    head, (workers,) = groups(made(OUT, "workers=2"))
    assert head["rayStartParams"]["num-cpus"] == "0"
    pod = workers["template"]["spec"]
    assert pod["securityContext"] == {"fsGroup": 1000}
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"]["sizeLimit"] == "2.4Gi"  # of 8


@pytest.mark.parametrize(("memory", "share"), [("8Gi", "2.4Gi"), ("65536Mi", "19660.8Mi"), ("10G", "3G")])
def test_the_object_stores_share_is_a_quantity(memory, share):
    _, (workers,) = groups(made(OUT, "workers=1", memory=memory))
    volumes = workers["template"]["spec"]["volumes"]
    assert next(v["emptyDir"]["sizeLimit"] for v in volumes if v["name"] == "shm") == share


def test_a_bad_memory_is_one_line():
    with pytest.raises(ValueError, match="--memory lots: expected a Kubernetes quantity"):
        made(OUT, memory="lots")


def test_tensorboard_reads_below_a_uri_with_a_query():
    container = made("out=s3://b/x?region=r")["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert "--logdir=s3://b/x/tb?region=r" in container["command"]


def test_only_train_has_a_manifest(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["submit", "--format", "rayjob", "--", "tune", "x.yaml"])
    assert end.value.code == 2
    assert "prints a manifest for train, not for tune" in capsys.readouterr().err
