"""Pod templates of a manifest: the head, workers, the submitter, TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from m3dist.cluster import shape
from m3dist.cluster.settings import Cluster, Pod

FILES = "/etc/m3dist"  # where pods see the files that the command names
_CONTAINER = {"allowPrivilegeEscalation": False}
_RESTRICTED = {**_CONTAINER, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
_USER = 1000  # the image's user, who may write to a fresh volume then
_SMALL = {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}


@dataclass(frozen=True)
class Pods:
    """Makes pod templates for one job. volume: whether they mount the shared claim; files: the ConfigMap's items."""

    name: str
    cluster: Cluster
    volume: bool
    files: dict[str, str]  # key in the ConfigMap: path below FILES

    def ray(self, kind: str, each: dict[str, float], size: Pod, ports: dict[str, int] | None = None) -> dict[str, Any]:
        """Head or worker; each: what Ray's scheduler finds there."""
        amounts = shape.container_resources(each, size)
        container = self._container(f"ray-{kind}", {"requests": amounts, "limits": dict(amounts)})
        container["env"] = [{"name": "OMP_NUM_THREADS", "value": "1"}, *self._env()]
        container["volumeMounts"] = [*self._mounts(), {"name": "shm", "mountPath": "/dev/shm"}]
        if ports:
            container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
        memory = {"medium": "Memory", "sizeLimit": shape.share(amounts["memory"])}
        return self._template(container, [*self._volumes(), {"name": "shm", "emptyDir": memory}])

    def submitter(self) -> dict[str, Any]:
        """The pod that gives the job to the cluster; KubeRay puts its command there."""
        container = self._container("ray-job-submitter", _SMALL)
        return self._template(container, [], {"restartPolicy": "Never"})

    def tensorboard(self, logdir: str) -> dict[str, Any]:
        """TensorBoard of a folder, on port 6006."""
        container = self._container("tensorboard", {"requests": _SMALL["limits"], "limits": _SMALL["limits"]})
        container["command"] = ["tensorboard", f"--logdir={logdir}", "--port=6006", "--bind_all"]
        container["ports"] = [{"name": "http", "containerPort": 6006}]
        if env := self._env():
            container["env"] = env
        if self.volume:
            container["volumeMounts"] = [self._mount() | {"readOnly": True}]
        return self._template(container, self._volumes()[:1] if self.volume else [])

    def container_security(self) -> dict[str, Any]:
        """securityContext of a container: no privileges; with `restricted` no capabilities and no root either."""
        return dict(_RESTRICTED if self.cluster.restricted else _CONTAINER)

    def _container(self, name: str, resources: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {"name": name, "image": self.cluster.image, "resources": resources}
        out["securityContext"] = self.container_security()
        if self.cluster.env_from:
            out["envFrom"] = [dict(each) for each in self.cluster.env_from]
        return out

    def _template(
        self, container: dict[str, Any], volumes: list[dict[str, Any]], more: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        given = self.cluster
        security: dict[str, Any] = {"fsGroup": _USER}
        if given.restricted:
            seccomp = {"type": "RuntimeDefault"}
            security |= {"runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "seccompProfile": seccomp}
        spec: dict[str, Any] = {"containers": [container], "securityContext": security}
        spec |= {"volumes": volumes} if volumes else {}
        optional = {
            "nodeSelector": dict(given.node_selector), "tolerations": [dict(each) for each in given.tolerations],
            "serviceAccountName": given.service_account, "priorityClassName": given.priority_class,
            "imagePullSecrets": [{"name": each} for each in given.image_pull_secrets],
        }  # fmt: skip
        spec |= {key: value for key, value in optional.items() if value}
        metadata = {"labels": dict(given.labels)} if given.labels else {}
        metadata |= {"annotations": dict(given.annotations)} if given.annotations else {}
        return {**({"metadata": metadata} if metadata else {}), "spec": {**spec, **(more or {})}}

    def _env(self) -> list[dict[str, Any]]:
        return [{"name": name, "value": value} for name, value in self.cluster.env.items()]

    def _mount(self) -> dict[str, Any]:
        return {"name": "shared", "mountPath": self.cluster.storage.mount}

    def _mounts(self) -> list[dict[str, Any]]:
        files = [{"name": "files", "mountPath": FILES, "readOnly": True}] if self.files else []
        return ([self._mount()] if self.volume else []) + files

    def _volumes(self) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        if self.volume:
            claim = {"claimName": self.cluster.storage.claim}
            out.append({"name": "shared", "persistentVolumeClaim": claim})
        if self.files:
            items = [{"key": key, "path": path} for key, path in self.files.items()]
            out.append({"name": "files", "configMap": {"name": f"{self.name}-files", "items": items}})
        return out
