"""A KubeRay RayJob or RayCronJob (ray.io/v1) for a command, with what it needs: its files, TensorBoard.

One worker of the config is one pod. Nothing is exposed outside the Kubernetes cluster: services are ClusterIP. The
claim that holds results has a manifest of its own, so that deleting a job's manifest deletes no results.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import m3dist
from m3dist import config as configs
from m3dist.cluster import package, patch, shape
from m3dist.cluster.pods import FILES, Pods
from m3dist.cluster.settings import Cluster

_LONGEST = 42  # characters of a name: KubeRay allows a RayJob 47, and TensorBoard's objects add to it
_OF_A_MAP = 900 << 10  # bytes that a ConfigMap holds for sure
_OF_A_VARIABLE = 100 << 10  # bytes of an argument that Linux passes on for sure
_PLOTS = ("train", "tune")  # commands whose folder TensorBoard shows


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, so that people can read and edit them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


@dataclass(frozen=True)
class Plan:
    """A command with its name and settings. name: of the RayJob; default: made from the command, and unique."""

    job: package.Job
    cluster: Cluster
    name: str = ""

    @staticmethod
    def of(job: package.Job, cluster: Cluster, name: str | None = None) -> Plan:
        """Raises ValueError when the name or the command's paths do not suit Kubernetes."""
        _check_paths(job, cluster)
        if cluster.image is None and cluster.selector is None:
            raise ValueError(
                "image: give one that nodes can pull, such as --image registry.example.com/team/m3dist:0.1.0"
            )
        return Plan(job, cluster, _checked(name, cluster) if name else _unique(job))

    @property
    def volume(self) -> bool:
        """Whether the command touches the shared volume; not where all its paths are URIs."""
        return any("://" not in path for path in self.job.paths.values())


def _checked(name: str, cluster: Cluster) -> str:
    longest = _LONGEST - 11 if cluster.schedule else _LONGEST  # a RayCronJob's jobs add their time
    if len(name) > longest or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise ValueError(f"name {name!r}: expected lower case letters, digits and -, at most {longest}")
    return name


def _unique(job: package.Job) -> str:
    """train-ml1m-3f9c2a: the command, what it works on, and six random digits."""
    about = Path((job.dataset or next(iter(job.paths.values()), "")).partition("?")[0].rstrip("/")).name
    words = re.sub(r"[^a-z0-9]+", "-", f"{job.verb}-{about}".lower()).strip("-")[:24].strip("-")
    return f"{words}-{uuid.uuid4().hex[:6]}"


def _check_paths(job: package.Job, cluster: Cluster) -> None:
    mount = Path(cluster.storage.mount)
    for name, value in job.paths.items():
        on_volume = mount in (Path(value), *Path(value).parents)
        if "://" not in value and not on_volume and cluster.selector is None:  # whose pods mount what they mount
            raise ValueError(
                f"{name}={value}: not on the shared volume; give {name}={mount}/{Path(value).name} (or set "
                f"cluster.storage.mount), or a URI such as s3://bucket/{Path(value).name}"
            )


def manifest(plan: Plan, patches: Sequence[str] = ()) -> str:
    """YAML documents: ConfigMap of the command's files, the RayJob or RayCronJob, TensorBoard's Deployment and Service.

    patches: files that are merged into them, in order. Raises ValueError when files are too large or a patch is bad.
    """
    files, start, words = _files(plan)
    pods = Pods(plan.name, plan.cluster, plan.volume, {_key(path): path for path in files})
    own = plan.cluster.selector is None
    documents = [_config_map(plan, files)] if files and own else []
    documents.append(_job(plan, pods, package.entrypoint(plan.job, words, start, None), {} if own else files))
    if own and plan.job.verb in _PLOTS and "out" in plan.job.paths:
        documents += _tensorboard(plan, pods)
    for each in patches:
        patch.apply(documents, each)
    head = f"# {plan.name}: m3dist {m3dist.__version__} on KubeRay; kubectl apply -f THIS_FILE\n"
    if plan.volume and own:
        head += f"# Needs the claim {plan.cluster.storage.claim}: m3dist submit --format claim prints one\n"
    return head + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False)


def _files(plan: Plan) -> tuple[dict[str, str], str, list[str]]:
    """(texts of the files that travel by their paths, the folder among them to start in, the command's words)."""
    if plan.job.verb == "train" and plan.job.config is not None and "--resume" not in plan.job.arguments:
        config = plan.job.config.model_copy(update={"cluster": plan.cluster})
        return {"config.yaml": configs.to_yaml(config)}, ".", ["train", "config.yaml"]
    with tempfile.TemporaryDirectory(prefix="m3dist-job-") as folder:
        start, words = package.stage(plan.job, Path(folder))
        there = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != package.KEEP]
        try:
            files = {str(path.relative_to(folder)): path.read_text() for path in there}
        except UnicodeDecodeError:
            raise ValueError(
                "a file that the command names is no text, as a manifest needs it; put it on storage"
            ) from None
    return files, start if files else ".", words


def claim(cluster: Cluster) -> str:
    """YAML of the claim for data and results. It is no part of any job, so that deleting a job keeps it."""
    spec: dict[str, Any] = {"accessModes": ["ReadWriteMany"]}
    spec |= {"storageClassName": cluster.storage.storage_class} if cluster.storage.storage_class else {}
    spec["resources"] = {"requests": {"storage": cluster.storage.size}}
    labels = {"app.kubernetes.io/name": "m3dist", **cluster.labels}
    metadata = {"name": cluster.storage.claim, "labels": labels}
    metadata |= {"namespace": cluster.namespace} if cluster.namespace else {}
    document = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


def warnings(plan: Plan) -> list[str]:
    """What a person should know before applying the manifest, a line each."""
    out = []
    queue, grows = plan.cluster.queue, shape.of(plan.job).grows
    if queue and queue.kind == "kueue" and grows:
        out.append(
            "Kueue refuses jobs that grow, unless its feature gate ElasticJobsViaWorkloadSlices is on; the manifest "
            "asks for it (kueue.x-k8s.io/elastic-job). Give a fixed number of workers and autoscaling=false otherwise"
        )
    if plan.cluster.autoscaler and not grows:
        out.append("autoscaler has no effect: workers is one number and autoscaling is false")
    if plan.cluster.gcs_fault_tolerance:
        out.append(
            "gcs_fault_tolerance keeps the cluster's state over a new head; the command itself runs on the head and is "
            "started again by `backoff`, from its checkpoints"
        )
    if plan.cluster.suspend and not plan.cluster.queue:
        out.append(
            'the job starts suspended: kubectl patch rayjob NAME --type merge -p \'{"spec": {"suspend": false}}\''
        )
    return out


def _key(path: str) -> str:
    return re.sub(r"[^-._a-zA-Z0-9]", "-", path)  # a ConfigMap's keys hold no slashes


def _meta(plan: Plan, name: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "m3dist", "app.kubernetes.io/instance": plan.name, **plan.cluster.labels}
    return {"name": name, **({"namespace": plan.cluster.namespace} if plan.cluster.namespace else {}), "labels": labels}


def _config_map(plan: Plan, files: dict[str, str]) -> dict[str, Any]:
    if (size := sum(len(text.encode()) for text in files.values())) > _OF_A_MAP:
        raise ValueError(
            f"the command's files have {size >> 10} KiB, more than a ConfigMap holds; put them on the volume"
        )
    data = {_key(path): text for path, text in files.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(plan, f"{plan.name}-files"), "data": data}


def _job(plan: Plan, pods: Pods, entry: list[str], carried: dict[str, str]) -> dict[str, Any]:
    """RayJob or RayCronJob. carried: files that travel in the job's environment, where no pods mount them."""
    given = plan.cluster
    runtime = package.runtime_env(given)
    if carried:
        runtime["env_vars"][package.CARRIED] = json.dumps(carried)
        if len(json.dumps(runtime)) > _OF_A_VARIABLE:
            raise ValueError(
                "the command's files are too large to travel to a cluster that exists; put them on its storage"
            )
    elif pods.files:
        entry = [*entry[:3], "--files", FILES, *entry[3:]]
    metadata = {"name": plan.name, "stages": plan.job.stages, "dataset": plan.job.dataset}
    metadata |= {"out": plan.job.paths.get("out", plan.job.paths.get("resume", "")), "m3dist": m3dist.__version__}
    spec: dict[str, Any] = {
        "entrypoint": shlex.join([*entry[:3], "--version", m3dist.__version__, *entry[3:]]),
        "runtimeEnvYAML": yaml.safe_dump(runtime),
        "metadata": {key: value for key, value in metadata.items() if value},
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": pods.submitter(),
    }
    spec |= {"activeDeadlineSeconds": given.deadline} if given.deadline else {}
    if given.selector:
        submitter = pods.submitter()
        submitter["spec"]["containers"][0].pop("image")  # KubeRay takes that of the cluster's head
        spec |= {"clusterSelector": {"ray.io/cluster": given.selector}, "submitterPodTemplate": submitter}
    else:
        spec |= {
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": given.ttl,
            "backoffLimit": given.backoff,  # the next pods go on from the run folder's checkpoints
            "rayClusterSpec": _cluster(plan, pods),
        }
    kueue = given.queue is not None and given.queue.kind == "kueue"
    if given.suspend or (given.suspend is None and kueue):
        spec["suspend"] = True
    meta = _meta(plan, plan.name)
    meta["labels"] |= _queue_labels(given)
    annotations = dict(given.annotations)
    annotations |= {"kueue.x-k8s.io/elastic-job": "true"} if kueue and shape.of(plan.job).grows else {}
    meta |= {"annotations": annotations} if annotations else {}
    kind, body = "RayJob", spec
    if given.schedule:
        kind, body = "RayCronJob", {"schedule": given.schedule, "jobTemplate": spec}
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": meta, "spec": body}


def _queue_labels(given: Cluster) -> dict[str, str]:
    if given.queue is None:
        return {}
    if given.queue.kind == "kueue":
        out = {"kueue.x-k8s.io/queue-name": given.queue.name}
        return out | ({"kueue.x-k8s.io/priority-class": given.queue.priority} if given.queue.priority else {})
    out = {"ray.io/scheduler-name": "volcano", "volcano.sh/queue-name": given.queue.name}
    return out | ({"ray.io/priority-class-name": given.queue.priority} if given.queue.priority else {})


def _cluster(plan: Plan, pods: Pods) -> dict[str, Any]:
    import ray

    given, wanted = plan.cluster, shape.of(plan.job)
    head = dict(wanted.head)
    head["CPU"] = head.get("CPU", 1.0) + 1  # Ray's own processes and the command's
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
    # the host is the pod's; the service is inside the cluster only. Workers stay off the head: a pod each
    start = {"dashboard-host": "0.0.0.0"} | ({} if wanted.head else {"num-cpus": "0"})
    cluster: dict[str, Any] = {"rayVersion": ray.__version__}
    if given.auth_secret:  # the operator gives the token to the submitter and the autoscaler too
        cluster["authOptions"] = {"mode": "token", "secretName": given.auth_secret}
    if given.gcs_fault_tolerance:
        cluster["gcsFaultToleranceOptions"] = dict(given.gcs_fault_tolerance)
    if wanted.grows:
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {"securityContext": pods.container_security(), **given.autoscaler}
    template = pods.ray("head", head, given.head, ports)
    cluster["headGroupSpec"] = {"serviceType": "ClusterIP", "rayStartParams": start, "template": template}
    if wanted.groups:
        cluster["workerGroupSpecs"] = [_group(group, pods, given) for group in wanted.groups]
    return cluster


def _group(group: shape.Group, pods: Pods, given: Cluster) -> dict[str, Any]:
    sizes = {"replicas": group.least, "minReplicas": group.least, "maxReplicas": group.most}
    template = pods.ray("worker", group.each, given.worker)
    start = shape.start_parameters(group.each)
    return {"groupName": group.name, **sizes, "rayStartParams": start, "template": template}


def _tensorboard(plan: Plan, pods: Pods) -> list[dict[str, Any]]:
    """TensorBoard of the run folder, readable while the job runs and after; kubectl port-forward reaches it."""
    name = f"{plan.name}-tb"
    labels = {"app.kubernetes.io/name": "tensorboard", "app.kubernetes.io/instance": plan.name}
    out, mark, query = plan.job.paths["out"].partition("?")  # a URI's query stays last
    template = pods.tensorboard(f"{out.rstrip('/')}/tb{mark}{query}")
    metadata = template.setdefault("metadata", {})
    metadata["labels"] = {**metadata.get("labels", {}), **labels}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(plan, name),
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }
    port = {"name": "http", "port": 6006, "targetPort": 6006}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(plan, name),
        "spec": {"type": "ClusterIP", "selector": labels, "ports": [port]},
    }
    return [deployment, service]
