"""What the settings of a cluster (`cluster:` and options) make of a manifest, and what is refused."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path

import pytest
import yaml
from manifests import OUT, URI, limits, made, pods, pods_of, spec_of, validate  # type: ignore[import-not-found]

from m3dist import config
from m3dist.cli import main as cli
from m3dist.cluster import rayjob, settings


def test_every_pod_is_shaped_by_the_settings():
    section = (
        "cluster={namespace: team, labels: {cost: '42'}, annotations: {note: x}, node_selector: {pool: gpu}, "
        "tolerations: [{key: gpu, operator: Exists}], service_account: trainer, image_pull_secrets: [registry], "
        "priority_class: low, env: {HTTPS_PROXY: 'http://proxy:3128'}, env_from: [{secretRef: {name: mlflow}}]}"
    )
    documents = made("train", OUT, "workers=2", section)
    for document in documents.values():
        assert document["metadata"]["namespace"] == "team"
        assert document["metadata"]["labels"]["cost"] == "42"
    assert documents["RayJob"]["metadata"]["annotations"] == {"note": "x"}
    for template in pods_of(documents):
        assert template["metadata"]["labels"]["cost"] == "42"
        spec, container = template["spec"], template["spec"]["containers"][0]
        assert spec["nodeSelector"] == {"pool": "gpu"}
        assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
        assert spec["serviceAccountName"] == "trainer"
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["priorityClassName"] == "low"
        assert container["envFrom"] == [{"secretRef": {"name": "mlflow"}}]
    head, _ = pods(documents)
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in head["template"]["spec"]["containers"][0]["env"]
    assert yaml.safe_load(spec_of(documents)["runtimeEnvYAML"])["env_vars"]["HTTPS_PROXY"] == "http://proxy:3128"


def test_pods_pass_the_restricted_policy():
    templates = pods_of(made("train", OUT, "workers=[1,2]"))
    assert len(templates) == 4  # head, workers, submitter, TensorBoard
    for template in templates:
        pod = template["spec"]["securityContext"]
        assert (pod["runAsNonRoot"], pod["runAsUser"], pod["seccompProfile"]) == (
            True,
            1000,
            {"type": "RuntimeDefault"},
        )
        for container in template["spec"]["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
        kinds = {kind for volume in template["spec"].get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"persistentVolumeClaim", "configMap", "emptyDir"}
    for template in pods_of(made("train", OUT, "cluster.restricted=false")):
        assert template["spec"]["securityContext"] == {"fsGroup": 1000}  # the image's user may write a fresh volume


def test_tokens_come_from_a_secret_that_the_operator_hands_out():
    cluster = spec_of(made("train", OUT, "cluster.auth_secret=ray-login"))["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-login"}
    assert "authOptions" not in spec_of(made("train", OUT))["rayClusterSpec"]


@pytest.mark.parametrize(
    ("kind", "labels", "suspended"),
    [
        ("kueue", {"kueue.x-k8s.io/queue-name": "q", "kueue.x-k8s.io/priority-class": "high"}, True),
        (
            "volcano",
            {"ray.io/scheduler-name": "volcano", "volcano.sh/queue-name": "q", "ray.io/priority-class-name": "high"},
            None,
        ),
    ],
)
def test_queues(kind, labels, suspended):
    job = made("train", OUT, "workers=2", f"cluster.queue={{kind: {kind}, name: q, priority: high}}")["RayJob"]
    assert labels.items() <= job["metadata"]["labels"].items()
    assert job["spec"].get("suspend") is suspended
    assert made("train", OUT, "cluster.suspend=true")["RayJob"]["spec"]["suspend"] is True
    with pytest.raises(ValueError, match="cannot be suspended or queued"):
        made("train", OUT, "cluster.selector=team", f"cluster.queue={{kind: {kind}, name: q}}")


def test_kueue_and_elastic_meet_with_a_warning(capsys):
    arguments = ["train", OUT, "workers=[1,2]", "cluster.queue={kind: kueue, name: q}"]
    documents = made(*arguments)
    assert documents["RayJob"]["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    assert _printed(capsys, *arguments)[1].startswith("warning: Kueue refuses jobs that grow")
    assert _printed(capsys, "train", OUT, "workers=2", "cluster.queue={kind: kueue, name: q}")[1] == ""


def test_options_without_effect_are_told(capsys):
    said = _printed(capsys, "train", OUT, "workers=2", "cluster.autoscaler={idleTimeoutSeconds: 60}")[1]
    assert "autoscaler has no effect" in said
    said = _printed(capsys, "train", OUT, "cluster.gcs_fault_tolerance={backend: rocksdb}")[1]
    assert "the command itself runs on the head" in said


def _printed(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(["submit", "--format", "rayjob", "--image", "r.example.com/m3dist:1", "--", *arguments])
    assert end.value.code == 0
    said = capsys.readouterr()
    return said.out, said.err


def test_packages_beside_the_image():
    environment = yaml.safe_load(spec_of(made("train", OUT, "cluster.runtime_env.uv=[mlflow]"))["runtimeEnvYAML"])
    assert environment["uv"] == ["mlflow"]
    with pytest.raises(ValueError, match="not to both"):
        made("train", OUT, "cluster.runtime_env={pip: [a], uv: [b]}")


def test_secrets_do_not_stand_in_settings():
    with pytest.raises(ValueError, match=r"env.WANDB_API_KEY: holds credentials") as raised:
        made("train", OUT, "cluster.env={WANDB_API_KEY: hunter22}")
    assert "hunter22" not in str(raised.value)


# storage


def test_results_outlive_the_jobs_manifest(capsys):
    documents = made("train", OUT, "cluster.storage={claim: team-data, mount: /mnt/m3dist}")
    assert "PersistentVolumeClaim" not in documents
    for template in pods_of(documents):
        claims = [
            volume["persistentVolumeClaim"]
            for volume in template["spec"].get("volumes", [])
            if "persistentVolumeClaim" in volume
        ]
        assert claims == ([] if "ray-job-submitter" in str(template) else [{"claimName": "team-data"}])
    with pytest.raises(SystemExit):
        cli.main(
            ["submit", "--format", "claim", "--claim", "team-data", "--set", "storage.size=2Ti", "--namespace", "t"]
        )
    claim = yaml.safe_load(capsys.readouterr().out)
    validate(claim, None)
    assert claim["metadata"]["name"] == "team-data"
    assert claim["metadata"]["namespace"] == "t"
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Ti"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_no_claim_where_all_paths_are_uris():
    documents = made("train", URI, "data=gs://bucket/data", "workers=2")
    assert "persistentVolumeClaim" not in str(documents)
    assert "persistentVolumeClaim" in str(made("train", URI, "data=/mnt/m3dist/data"))


def test_tensorboard_reads_below_a_uri_with_a_query():
    container = made("train", "out=s3://b/x?region=r")["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert "--logdir=s3://b/x/tb?region=r" in container["command"]


# names, the command line


def test_names_come_from_the_command_and_are_unique():
    one, two = (made("train", OUT, "data=/mnt/m3dist/ML_1m", name=None)["RayJob"]["metadata"]["name"] for _ in range(2))
    assert one != two
    assert one.startswith("train-ml-1m-")
    job = made("recommend", "/mnt/m3dist/run", "--out", "/mnt/m3dist/top.parquet", name=None)["RayJob"]
    assert job["metadata"]["name"].startswith("recommend-")
    assert len(made("train", f"{OUT}/{'long-' * 20}", name=None)["RayJob"]["metadata"]["name"]) <= 42
    for bad in ("Upper", "a" * 43, "-a", "a_b"):
        with pytest.raises(ValueError, match="expected lower case letters"):
            made("train", OUT, name=bad)


@pytest.mark.parametrize(
    ("options", "arguments", "said"),
    [
        ((), ["train", OUT], "image: give one that nodes can pull"),
        (("--image", "m3dist:0.1.0"), ["train", OUT], "m3dist:0.1.0 names no registry"),
        (("--image", "r.io/x:1"), ["train", "out=/home/me"], "out=/home/me: not on the shared volume"),
        (("--image", "r.io/x:1"), ["train", OUT, "data=/home/me"], "data=/home/me"),
        (("--image", "r.io/x:1"), ["evaluate", "/home/me"], "run=/home/me"),
        (("--image", "r.io/x:1"), ["train", OUT, "sed=1"], "seed"),
        (("--image", "r.io/x:1", "--set", "trails=1"), ["train", OUT], "did you mean trials"),
        (("--image", "r.io/x:1", "--no-wait"), ["train", OUT], "--no-wait has no effect with --format rayjob"),
        (("--image", "r.io/x:1", "--address", "http://x"), ["train", OUT], "--address has no effect"),
        (("--image", "r.io/x:1", "--version", "1"), ["train", OUT], "--version has no effect"),
        (("--image", "r.io/x:1", "--patch", "none.yaml"), ["train", OUT], "none.yaml: not a readable YAML file"),
    ],
)
def test_what_is_refused_is_one_line(options, arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["submit", "--format", "rayjob", *options, "--", *arguments])
    assert end.value.code == 2
    out = capsys.readouterr()
    assert said in out.err
    assert out.out == ""


@pytest.mark.parametrize("option", [["--patch", "x.yaml"], ["--image", "r.io/x:1"], ["--set", "ttl=3"]])
def test_options_of_manifests_are_refused_for_jobs(option, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["submit", "--address", "http://127.0.0.1:9", *option, "--", "train", "out=/mnt/x"])
    assert end.value.code == 2
    assert "needs --format rayjob" in capsys.readouterr().err


def test_settings_come_from_a_file_too(tmp_path):
    (tmp_path / "team.yaml").write_text("cluster: {image: r.example.com/m3dist:2, head: {memory: 64Gi}}\n")
    documents = made("evaluate", "/mnt/m3dist/run", settings=str(tmp_path / "team.yaml"), image=None)
    head, _ = pods(documents)
    assert limits(head)["memory"] == "64Gi"
    assert head["template"]["spec"]["containers"][0]["image"] == "r.example.com/m3dist:2"


def test_settings_change_no_key_of_a_run(tmp_path):
    from m3dist import pipeline

    tiny = [f"out={tmp_path}", "synthetic={users: 60, items: 40, interactions: 10}"]
    first = config.load(None, tiny)
    second = config.load(None, [*tiny, "cluster={image: r.io/x:1, ttl: 3, resize_seconds: 9}"])
    dataset = pipeline.open_data(first)
    assert pipeline.keys(first, dataset) == pipeline.keys(second, dataset)


def test_the_example_is_what_the_command_prints(capsys):
    lines = (Path(__file__).parents[2] / "cluster/rayjob.yaml").read_text().splitlines(keepends=True)
    head = [line for line in lines if line.startswith("#")]
    written = "".join(line.lstrip("# ").replace("\\\n", " ") for line in head[2:4])
    with pytest.raises(SystemExit) as end:
        cli.main(shlex.split(written.partition(">")[0])[1:])
    assert not end.value.code
    printed = capsys.readouterr().out
    assert "".join(lines).endswith(printed), "write it again with the command in its head"


def test_the_section_is_documented():
    text = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
    missing = [key for key in settings.Cluster.model_fields if f"`{key}`" not in text]
    assert not missing
    assert textwrap.indent(rayjob.claim(settings.Cluster()), "    ") in text
