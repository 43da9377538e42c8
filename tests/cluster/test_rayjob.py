"""Manifests against KubeRay's CRD and Kubernetes' own schemas, sized from the config."""

from __future__ import annotations

import copy
import json
import shlex

import pytest
import yaml
from manifests import OUT, URI, limits, made, pods, spec_of, validate  # type: ignore[import-not-found]

from m3dist import config

CONFIGS = [  # the arguments after `train`
    ("data=synthetic", OUT),
    (OUT, "data=/mnt/m3dist/data", "use_gpu=true"),
    (OUT, "workers=3", "use_gpu=true", "resources_per_worker={CPU: 2.5, fast: 1}"),
    (OUT, "workers=[2,8]"),
    (OUT, "workers=2", "autoscaling=true", "cluster.autoscaler={idleTimeoutSeconds: 60, version: v2}"),
    (OUT, "workers=2", "actors=3", "actor_resources={CPU: 2, fast: 1}"),
    (OUT, "workers=4", "strategy=deepspeed", "zero_stage=3", "resources_per_worker={memory: 8000000000}"),
    (OUT, "workers=4", "embeddings=sharded", "resources_per_worker={object_store_memory: 2000000000}"),
    (URI, "data=gs://bucket/data", "workers=2"),
    (OUT, "cluster.selector=shared-cluster", "workers=2"),
    (OUT, "workers=2", "cluster.schedule='0 3 * * 1'"),
    (OUT, "workers=2", "cluster.queue={kind: kueue, name: team-a, priority: high}"),
    (OUT, "workers=2", "cluster.queue={kind: volcano, name: team-a, priority: high}"),
    (OUT, "workers=2", "cluster.auth_secret=ray-login", "cluster.restricted=false"),
    (OUT, "workers=2", "cluster.gcs_fault_tolerance={redisAddress: 'redis:6379', externalStorageNamespace: a}"),
]


@pytest.mark.parametrize("arguments", CONFIGS, ids=lambda each: " ".join(each)[:60])
def test_every_manifest_is_valid(arguments, crd):
    for document in made("train", *arguments).values():
        validate(document, crd)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].update(backofLimit=2),
        lambda job: job["spec"].update(ttlSecondsAfterFinished="3600"),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(contaners=[]),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(port=6379),
        lambda job: job["spec"]["rayClusterSpec"].update(authOptions={"mode": "tokens"}),
        lambda job: job["spec"]["submitterPodTemplate"]["spec"]["containers"][0].pop("name"),
    ],
)
def test_the_validation_finds_faults(spoil, crd):
    job = copy.deepcopy(made("train", OUT, "workers=2")["RayJob"])
    spoil(job)
    with pytest.raises(Exception, match=r"valid|required|expected|is not"):
        validate(job, crd)


# sizes


def test_the_head_trains_alone_without_workers():
    head, workers = pods(made("train", OUT, "use_gpu=true"))
    assert workers == []
    assert limits(head) == {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": 1}


def test_workers_are_pods_sized_by_the_config():
    given = ("workers=3", "use_gpu=true", "resources_per_worker={CPU: 2.5, fast: 1}", "cluster.worker.memory=32Gi")
    documents = made("train", OUT, *given)
    head, (workers,) = pods(documents)
    assert "nvidia.com/gpu" not in limits(head)
    assert limits(workers) == {"cpu": "2500m", "memory": "32Gi", "nvidia.com/gpu": 1}
    assert (workers["minReplicas"], workers["replicas"], workers["maxReplicas"]) == (3, 3, 3)
    assert json.loads(workers["rayStartParams"]["resources"].strip("'")) == {"fast": 1.0}
    assert "enableInTreeAutoscaling" not in spec_of(documents)["rayClusterSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # workers stay off the head


def test_rays_own_resources_become_the_containers():
    given = "resources_per_worker={memory: 7340032000, object_store_memory: 1000000000}"  # 7,000 MiB
    _, (workers,) = pods(made("train", OUT, "workers=2", given))
    assert limits(workers)["memory"] == "10000Mi"  # Ray's object store takes 30 % of it
    assert workers["rayStartParams"] == {"object-store-memory": "1000000000"}
    with pytest.raises(ValueError, match=r"cluster.worker.memory: 8Gi holds less than .*give 10000Mi"):
        made("train", OUT, "workers=2", given, "cluster.worker.memory=8Gi")


def test_head_and_workers_have_sizes_of_their_own():
    head = "cluster.head={cpu: 6, memory: 20Gi}"
    worker = "cluster.worker={cpu: 3.5, memory: 30Gi, gpu: 2, resources: {ephemeral-storage: 50Gi}}"
    first, (second,) = pods(made("train", OUT, "workers=2", head, worker))
    assert limits(first) == {"cpu": "6", "memory": "20Gi"}
    assert limits(second) == {"cpu": "3500m", "memory": "30Gi", "nvidia.com/gpu": 2, "ephemeral-storage": "50Gi"}


@pytest.mark.parametrize(("memory", "part"), [("8Gi", "2.4Gi"), ("65536Mi", "19660.8Mi"), ("10G", "3G")])
def test_the_object_stores_share_is_a_quantity(memory, part):
    _, (workers,) = pods(made("train", OUT, "workers=1", f"cluster.worker.memory={memory}"))
    volumes = workers["template"]["spec"]["volumes"]
    assert next(v["emptyDir"]["sizeLimit"] for v in volumes if v["name"] == "shm") == part


def test_elastic_workers_scale_between_their_bounds():
    documents = made("train", OUT, "workers=[2,8]", "cluster.autoscaler={idleTimeoutSeconds: 60}")
    _, (workers,) = pods(documents)
    assert (workers["minReplicas"], workers["maxReplicas"]) == (2, 8)
    cluster = spec_of(documents)["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] == 60
    assert cluster["autoscalerOptions"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_actors_beside_a_head_that_trains_alone():
    head, (actors,) = pods(made("train", OUT, "actors=3", "actor_resources={CPU: 2, fast: 1}"))
    assert (actors["groupName"], actors["replicas"], limits(actors)["cpu"]) == ("actors", 3, "2")
    assert actors["rayStartParams"]["resources"] == """'{"fast": 1.0}'"""
    assert "num-cpus" not in head["rayStartParams"]


# commands


def test_the_job_runs_the_config_that_travels_in_the_manifest(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 7\nmerge: {epochs: 3}\n")
    given = ("cluster.ttl=60", "cluster.backoff=5", "cluster.deadline=7200")
    documents = made("train", str(tmp_path / "c.yaml"), OUT, *given)
    travelled = tmp_path / "travelled.yaml"
    travelled.write_text(documents["ConfigMap"]["data"]["config.yaml"])
    expected = config.load(tmp_path / "c.yaml", [OUT, *given, "cluster.image=r.example.com/m3dist:1"])
    assert config.load(travelled) == expected
    spec = spec_of(documents)
    assert spec["entrypoint"].endswith("-- train config.yaml")
    assert (spec["ttlSecondsAfterFinished"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (60, 5, True)
    assert spec["activeDeadlineSeconds"] == 7200
    assert "--logdir=/mnt/m3dist/run/tb" in str(documents["Deployment"])
    assert documents["Service"]["spec"]["type"] == "ClusterIP"


def test_a_search_travels_with_its_base_and_runs_trials_at_once(tmp_path, monkeypatch, crd):
    (tmp_path / "search").mkdir()
    (tmp_path / "search/quick.yaml").write_text(
        "base: ../base.yaml\nspace: {merge.lr: {choice: [0.1, 0.2]}}\nbudget: {trials: 4}\n"
    )
    (tmp_path / "base.yaml").write_text("actors: 2\ncluster: {trials: 3, worker: {memory: 4Gi}}\n")
    monkeypatch.chdir(tmp_path)
    documents = made("tune", "search/quick.yaml", "out=/mnt/m3dist/search", "concurrency=5")
    for document in documents.values():
        validate(document, crd)
    assert set(documents["ConfigMap"]["data"]) == {"search-quick.yaml", "base.yaml"}
    head, (trials, actors) = pods(documents)
    assert (trials["replicas"], actors["replicas"]) == (5, 10)
    assert limits(trials) == {"cpu": "1", "memory": "4Gi"}
    items = {"search-quick.yaml": "search/quick.yaml", "base.yaml": "base.yaml"}
    volume = next(v for v in head["template"]["spec"]["volumes"] if v["name"] == "files")
    assert {item["key"]: item["path"] for item in volume["configMap"]["items"]} == items
    assert spec_of(documents)["entrypoint"].endswith("-- tune search/quick.yaml out=/mnt/m3dist/search concurrency=5")
    _, groups = pods(made("tune", "search/quick.yaml", "out=/mnt/m3dist/search"))
    assert groups[0]["replicas"] == 3


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        (("recommend", "/mnt/m3dist/run", "--out", "/mnt/m3dist/top.parquet"), 0),
        (("evaluate", "/mnt/m3dist/run"), 0),
        (("prepare", "mmrec", "/mnt/m3dist/raw", "/mnt/m3dist/data"), 0),
        (("reproduce", "table3", "--data", "/mnt/m3dist/d", "--out", "/mnt/m3dist/s", "--set", "workers=2"), 1),
        (("train", "--resume", "/mnt/m3dist/run", "workers=2"), 1),
    ],
)
def test_every_command_has_a_manifest(arguments, groups, crd):
    documents = made(*arguments)
    for document in documents.values():
        validate(document, crd)
    assert len(pods(documents)[1]) == groups
    assert spec_of(documents)["entrypoint"].endswith(shlex.join(["--", *arguments]))
    assert "ConfigMap" not in documents


def test_a_schedule_makes_a_cron_job(crd):
    cron = made("train", OUT, "workers=2", "cluster.schedule='0 3 * * 1'")["RayCronJob"]
    assert cron["spec"]["schedule"] == "0 3 * * 1"
    job = made("train", OUT, "workers=2")["RayJob"]
    assert cron["spec"]["jobTemplate"] == job["spec"]
    with pytest.raises(ValueError, match="five fields of cron"):
        made("train", OUT, "cluster.schedule=daily")


def test_a_job_on_a_cluster_that_exists_carries_its_files(tmp_path, monkeypatch):
    from m3dist.cluster import enter, package

    job = made("train", OUT, "seed=5", "cluster.selector=team")["RayJob"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": "team"}
    assert not {"rayClusterSpec", "shutdownAfterJobFinishes", "backoffLimit"} & set(job["spec"])
    carried = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"][package.CARRIED]
    monkeypatch.setenv(package.CARRIED, carried)
    monkeypatch.chdir(tmp_path)
    enter.start_in(None, ".")
    assert config.load("config.yaml").seed == 5
    assert set(made("train", "out=/nfs/theirs", "cluster.selector=team")) == {"RayJob"}
    with pytest.raises(ValueError, match=r"image, trials would have no effect"):
        made("train", OUT, "cluster.selector=team", "cluster.trials=3", "cluster.image=r.example.com/x:1")


# what surrounds the pods
