"""The `cluster:` section of a config: how a run becomes pods, what surrounds them, and what a platform asks of both.

Nothing here changes a result, so nothing here is part of an artifact's key. Names follow Kubernetes and KubeRay.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, StringConstraints

from m3dist.section import Section

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?([kKMGTP]i?)?$")]  # of memory or disk, such as 8Gi
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]  # of a Kubernetes object
_SECRET = re.compile(r"(?:^|_)(?:TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS?|(?:API|ACCESS|SECRET|PRIVATE)_KEY)$")
_OF_PODS = (  # without effect where the cluster exists already
    "image", "image_pull_secrets", "node_selector", "tolerations", "priority_class", "env_from", "head", "worker",
    "restricted", "gcs_fault_tolerance", "autoscaler", "storage", "auth_secret", "backoff", "trials",
)  # fmt: skip


class Pod(Section):
    """Size of a pod of the head, or of each worker. What is not given here comes from what the config asks of Ray."""

    cpu: PositiveFloat | None = None
    memory: Quantity | None = None  # default: 8Gi, or what resources_per_worker.memory needs
    gpu: PositiveInt | None = None
    resources: dict[str, str | int] = Field(default={})  # further ones, in Kubernetes' names: ephemeral-storage


class Storage(Section):
    """The volume that pods share, where data or results are not URIs."""

    claim: Name = "m3dist"  # a PersistentVolumeClaim that many nodes can write; --format claim prints one
    mount: Annotated[str, StringConstraints(pattern=r"^/.+")] = "/mnt/m3dist"  # where pods see it
    size: Quantity = "100Gi"  # of a new claim
    storage_class: Name | None = None  # of a new claim; default: the cluster's own


class Queue(Section):
    """A queue that admits jobs."""

    kind: Literal["kueue", "volcano"]
    name: Name
    priority: Name | None = None  # Kueue's WorkloadPriorityClass, or the PriorityClass that Volcano reads


class RuntimeEnv(Section):
    """Packages that Ray installs for a job on every node, beside those of the image."""

    pip: tuple[str, ...] = ()
    uv: tuple[str, ...] = ()  # the same, installed by uv

    @pydantic.model_validator(mode="after")
    def _one(self) -> RuntimeEnv:
        if self.pip and self.uv:
            raise ValueError("give packages to pip or to uv, not to both")
        return self


class Cluster(Section):
    """One section for both ways to a cluster: jobs of a running one, and manifests for KubeRay."""

    image: str | None = None  # registry.example.com/team/m3dist:0.1.0, as cluster/Dockerfile makes it
    image_pull_secrets: tuple[Name, ...] = ()
    namespace: Name | None = None
    labels: dict[str, str] = Field(default={})  # of every object and pod
    annotations: dict[str, str] = Field(default={})  # of the job and its pods
    node_selector: dict[str, str] = Field(default={})
    tolerations: tuple[dict[str, Any], ...] = ()  # in Kubernetes' words
    service_account: Name | None = None
    priority_class: Name | None = None
    env: dict[str, str] = Field(default={})  # plain values; secrets come through env_from
    env_from: tuple[dict[str, Any], ...] = ()  # in Kubernetes' words, such as {secretRef: {name: mlflow}}
    head: Pod = Pod()
    worker: Pod = Pod()
    trials: PositiveInt = 2  # that a search runs at once, where its own `concurrency` is auto
    restricted: bool = True  # pods pass Kubernetes' "restricted" policy
    queue: Queue | None = None
    suspend: bool | None = None  # start suspended; default: only with Kueue, which admits jobs by resuming them
    deadline: PositiveInt | None = None  # seconds that the job may take
    ttl: NonNegativeInt = 3600  # seconds that the pods outlive the job
    backoff: NonNegativeInt = 2  # further tries, each on new pods, from the run folder's checkpoints
    auth_secret: Name | None = None  # a Secret with key auth_token: turns Ray's token login on
    gcs_fault_tolerance: dict[str, Any] = Field(default={})  # KubeRay's gcsFaultToleranceOptions
    autoscaler: dict[str, Any] = Field(default={})  # KubeRay's autoscalerOptions
    selector: Name | None = None  # a RayCluster that exists: the job runs there, and no pods are made
    schedule: str | None = None  # cron: a RayCronJob that runs the command again and again
    storage: Storage = Storage()
    runtime_env: RuntimeEnv = RuntimeEnv()
    resize_seconds: Annotated[float, Field(gt=0)] = 60.0  # between looks whether an elastic run can grow

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Cluster:
        if secret := next((name for name in self.env if _SECRET.search(name.upper())), None):
            raise ValueError(f"env.{secret}: secrets do not belong in a config; put it in a Secret and use env_from")
        if self.schedule is not None and len(self.schedule.split()) != 5:
            raise ValueError(f"schedule: expected five fields of cron, such as '0 3 * * 1', got {self.schedule!r}")
        fields = type(self).model_fields
        useless = [key for key in _OF_PODS if getattr(self, key) != fields[key].default]
        if self.selector and useless:
            raise ValueError(f"selector: the cluster exists, so {', '.join(useless)} would have no effect; remove them")
        if self.selector and (self.suspend or self.queue):
            raise ValueError("selector: a job of a cluster that exists cannot be suspended or queued; drop those keys")
        if self.image is not None and not _names_registry(self.image):
            raise ValueError(f"image: {self.image} names no registry; give registry.example.com/team/m3dist:0.1.0")
        return self


def _names_registry(image: str) -> bool:
    """Whether an image's first part is a host: without one, nodes would look for it on Docker Hub."""
    host, slash, _ = image.partition("/")
    return bool(slash) and ("." in host or ":" in host or host == "localhost")
