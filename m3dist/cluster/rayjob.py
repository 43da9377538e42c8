"""A KubeRay RayJob (ray.io/v1) for a config, with all it needs: the config, shared storage, TensorBoard.

One worker of the config is one pod. Nothing is exposed outside the Kubernetes cluster: services are ClusterIP.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import m3dist
from m3dist import config as configs
from m3dist.config import Config

_MAP = "config"  # volume of the ConfigMap
_AT = "/etc/m3dist"
_USER = {"fsGroup": 1000}  # the image's user, who may write to a fresh volume then


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, so that people can read and edit them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


@dataclass(frozen=True)
class Options:
    name: str = "m3dist"
    image: str = f"m3dist:{m3dist.__version__}"
    mount: str = "/mnt/m3dist"  # where pods see the shared volume
    claim: str | None = None  # an existing claim; without one, one is asked for
    storage: str = "100Gi"  # of the claim that is asked for
    memory: str = "8Gi"  # of each pod
    ttl: int = 3600  # seconds that the cluster outlives the job
    backoff: int = 2  # further tries, each on a new cluster
    auth_secret: str | None = None  # a Secret with key auth_token: turns token login on


def manifest(arguments: list[str], options: Options) -> str:
    """YAML documents: ConfigMap, claim, RayJob, TensorBoard's Deployment and Service.

    Raises ValueError when the config's folders are not on the shared volume or URIs.
    """
    path = arguments[0] if arguments and "=" not in arguments[0] else None
    config = configs.load(path, arguments[1:] if path else arguments)
    _check(config, options)
    documents = [_config_map(config, options)]
    if options.claim is None:
        documents.append(_claim(options))
    documents += [_job(config, options), *_tensorboard(config, options)]
    head = f"# {options.name}: m3dist {m3dist.__version__} on KubeRay; kubectl apply -f THIS_FILE\n"
    return head + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False)


def _check(config: Config, options: Options) -> None:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", options.name):
        raise ValueError(f"name {options.name!r}: expected lower case letters, digits and -, at most 42")
    for key in ("out", "data", "artifacts"):
        value = getattr(config, key)
        if not value or "://" in value or (key == "data" and value == "synthetic"):
            continue
        if Path(value) != Path(options.mount) and Path(options.mount) not in Path(value).parents:
            raise ValueError(
                f"{key}={value}: not on the shared volume; give {key}={options.mount}/{Path(value).name} (or --mount), "
                f"or a URI such as s3://bucket/{Path(value).name}"
            )


def _meta(name: str, options: Options) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "m3dist", "app.kubernetes.io/instance": options.name}
    return {"name": name, "labels": labels}


def _config_map(config: Config, options: Options) -> dict[str, Any]:
    data = {"config.yaml": configs.to_yaml(config)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(f"{options.name}-config", options), "data": data}


def _claim(options: Options) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _meta(f"{options.name}-shared", options),
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": options.storage}}},
    }


def _volumes(options: Options) -> list[dict[str, Any]]:
    claim = options.claim or f"{options.name}-shared"
    return [
        {"name": "shared", "persistentVolumeClaim": {"claimName": claim}},
        {"name": _MAP, "configMap": {"name": f"{options.name}-config"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _share(options.memory)}},
    ]


def _pod(kind: str, cpus: float, gpus: float, options: Options, ports: dict[str, int] | None = None) -> dict[str, Any]:
    size: dict[str, Any] = {"cpu": _quantity(cpus), "memory": options.memory}
    if gpus:
        size["nvidia.com/gpu"] = math.ceil(gpus)  # Kubernetes gives whole ones only
    container: dict[str, Any] = {
        "name": f"ray-{kind}",
        "image": options.image,
        "resources": {"requests": size, "limits": dict(size)},
        "env": _environment(options),
        "volumeMounts": [
            {"name": "shared", "mountPath": options.mount},
            {"name": _MAP, "mountPath": _AT, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    if ports:
        container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    return {"spec": {"containers": [container], "securityContext": dict(_USER), "volumes": _volumes(options)}}


def _share(memory: str) -> str:
    """What Ray's object store takes of a pod's memory, 30 %; with less in /dev/shm it goes to the disk."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMGTP]i?|)", memory)
    if found is None:
        raise ValueError(f"--memory {memory}: expected a Kubernetes quantity, such as 8Gi")
    return f"{0.3 * float(found[1]):.3f}".rstrip("0").rstrip(".") + found[2]


def _quantity(cpus: float) -> str:
    return f"{cpus:g}" if cpus == int(cpus) else f"{round(cpus * 1000)}m"


def _environment(options: Options) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = [{"name": "OMP_NUM_THREADS", "value": "1"}]
    if options.auth_secret:
        secret = {"secretKeyRef": {"name": options.auth_secret, "key": "auth_token"}}
        env += [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": secret}]
    return env


def _job(config: Config, options: Options) -> dict[str, Any]:
    import ray

    from m3dist.distributed import ray_train as launch

    each = launch.per_worker(config)
    elastic = isinstance(config.workers, tuple)
    least = launch.least_workers(config)
    most = config.workers[1] if isinstance(config.workers, tuple) else config.workers
    alone = most == 0  # the head trains
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001}
    head = _pod("head", each["CPU"] + 1 if alone else 2, each.get("GPU", 0) if alone else 0, options, ports)
    cluster: dict[str, Any] = {
        "rayVersion": ray.__version__,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            # the host is the pod's; the service is inside the cluster only. Workers stay off the head: a pod each
            "rayStartParams": {"dashboard-host": "0.0.0.0"} | ({} if alone else {"num-cpus": "0"}),
            "template": head,
        },
    }
    if not alone:
        cluster["workerGroupSpecs"] = [_group("workers", least, most, each, options)]
    if elastic or config.autoscaling:
        cluster["enableInTreeAutoscaling"] = True
    if config.actors:
        actors = _group("actors", config.actors, config.actors, {"CPU": 1.0, **config.actor_resources}, options)
        cluster["workerGroupSpecs"] = [*cluster.get("workerGroupSpecs", []), actors]
    entry = ["python", "-m", "m3dist.cluster.enter", "--place", f"out={config.out}"]
    if config.data != "synthetic":
        entry += ["--place", f"data={config.data}"]
    entry += ["--version", m3dist.__version__, "--", "train", f"{_AT}/config.yaml"]
    metadata = {"name": options.name, "stages": ",".join(config.stage_names), "dataset": config.data, "out": config.out}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _meta(options.name, options),
        "spec": {
            "entrypoint": shlex.join(entry),
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}}),
            "metadata": metadata,
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": options.ttl,
            "backoffLimit": options.backoff,  # the next cluster goes on from the run folder's checkpoints
            "rayClusterSpec": cluster,
        },
    }


def _json(value: dict[str, float]) -> str:
    import json

    return json.dumps(value)


def _group(name: str, least: int, most: int, each: dict[str, float], options: Options) -> dict[str, Any]:
    """Pods of one kind, one for each worker of the config or actor of stage 2."""
    other = {key: amount for key, amount in each.items() if key not in ("CPU", "GPU")}
    start = {"resources": f"'{_json(other)}'"} if other else {}
    sizes = {"replicas": least, "minReplicas": least, "maxReplicas": most}
    pod = _pod("worker", each["CPU"], each.get("GPU", 0), options)
    return {"groupName": name, **sizes, "rayStartParams": start, "template": pod}


def _tensorboard(config: Config, options: Options) -> list[dict[str, Any]]:
    """TensorBoard of the run folder, readable while the job runs and after; kubectl port-forward reaches it."""
    name = f"{options.name}-tensorboard"
    labels = {"app.kubernetes.io/name": "tensorboard", "app.kubernetes.io/instance": options.name}
    size = {"cpu": "500m", "memory": "1Gi"}
    out, mark, query = config.out.partition("?")  # a URI's query stays last
    container = {
        "name": "tensorboard",
        "image": options.image,
        "command": ["tensorboard", f"--logdir={out.rstrip('/')}/tb{mark}{query}", "--port=6006", "--bind_all"],
        "ports": [{"name": "http", "containerPort": 6006}],
        "resources": {"requests": size, "limits": dict(size)},
        "volumeMounts": [{"name": "shared", "mountPath": options.mount, "readOnly": True}],
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    spec = {"containers": [container], "securityContext": dict(_USER), "volumes": _volumes(options)[:1]}
    pod = {"metadata": {"labels": labels}, "spec": spec}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(name, options),
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }
    port = {"name": "http", "port": 6006, "targetPort": 6006}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(name, options),
        "spec": {"type": "ClusterIP", "selector": labels, "ports": [port]},
    }
    return [deployment, service]
