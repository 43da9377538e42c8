"""Manifests of commands as documents, and their validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from m3dist.cluster import package, rayjob

OUT = "out=/mnt/m3dist/run"
URI = "out=s3://bucket/run"
KUBERNETES = kubernetes_validate.latest_version() if hasattr(kubernetes_validate, "latest_version") else "1.33"


def made(*arguments: str, name: str | None = "job", image: str | None = "r.example.com/m3dist:1", **more: Any) -> dict:
    """The documents of a command's manifest by their kind. more: settings, overrides, patches."""
    job = package.plan(arguments)
    overrides = list(more.get("overrides", ()))
    if image and not any(each.startswith("cluster.selector=") for each in (*arguments, *overrides)):
        overrides.append(f"image={image}")
    settings = package.settings(job, overrides, more.get("settings"))
    text = rayjob.manifest(rayjob.Plan.of(job, settings, name), more.get("patches", ()))
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def validate(document: dict[str, Any], crd: Any) -> None:
    """Raises a validation error when Kubernetes or KubeRay would refuse the document. crd: as the fixture gives it."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    spec = document["spec"]
    if document["kind"] == "RayCronJob":
        assert set(spec) == {"schedule", "jobTemplate"}
        spec = spec["jobTemplate"]
    crd.validator.validate({**document, "kind": "RayJob", "spec": spec})
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"]), dict)
    for template in pods_of({"RayJob": {"spec": spec}}):
        for container in template["spec"]["containers"]:  # what the schemas cannot say
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= {volume["name"] for volume in template["spec"].get("volumes", [])}
        if not crd.pods:
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@dataclass(frozen=True)
class Definition:
    """A custom resource definition. pods: whether it describes pods too, or leaves them to Kubernetes' own schemas."""

    validator: Any
    pods: bool

    @staticmethod
    def of(schema: dict[str, Any], pods: bool) -> Definition:
        return Definition(jsonschema.Draft202012Validator(closed(schema)), pods)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI schema of a CRD in which unknown fields are faults, as they are to `kubectl apply` by default."""
    out = {key: value for key, value in schema.items() if key not in ("properties", "items")}
    if "properties" in schema:
        out["properties"] = {name: closed(inner) for name, inner in schema["properties"].items()}
        out.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
        if not schema["properties"]:
            out.pop("additionalProperties")
    if "items" in schema:
        out["items"] = closed(schema["items"])
    return out


def spec_of(documents: dict) -> dict[str, Any]:
    return documents["RayJob"]["spec"]


def pods(documents: dict) -> tuple[dict, list[dict]]:
    """(the head's group, the groups of workers)."""
    cluster = spec_of(documents)["rayClusterSpec"]
    return cluster["headGroupSpec"], cluster.get("workerGroupSpecs", [])


def pods_of(documents: dict) -> list[dict]:
    """Every pod template of the documents."""
    spec = spec_of(documents)
    out = [spec["submitterPodTemplate"]]
    if "rayClusterSpec" in spec:
        head, groups = pods(documents)
        out += [head["template"], *(group["template"] for group in groups)]
    if "Deployment" in documents:
        out.append(documents["Deployment"]["spec"]["template"])
    return out


def limits(group: dict) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]["resources"]["limits"]
