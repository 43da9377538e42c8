"""Patches of a manifest: strategic merge, also of KubeRay's lists, and kustomize's reading of the example."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from manifests import OUT, made, pods, pods_of, validate  # type: ignore[import-not-found]

CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.fixture
def patched(tmp_path):
    """The documents of a job with these patch files."""

    def build(*texts: str) -> dict:
        files = []
        for number, text in enumerate(texts):
            files.append(str(tmp_path / f"{number}.yaml"))
            Path(files[-1]).write_text(text)
        return made("train", OUT, "workers=2", "actors=1", patches=files)

    return build


def test_lists_merge_by_name_and_null_removes(patched, crd):
    documents = patched(
        """\
kind: RayJob
spec:
  backoffLimit: 7
  ttlSecondsAfterFinished: null
  rayClusterSpec:
    workerGroupSpecs:
      - groupName: workers
        template:
          spec:
            containers:
              - name: ray-worker
                env: [{name: NCCL_DEBUG, value: INFO}]
                volumeMounts: [{mountPath: /scratch, name: scratch}]
            volumes: [{name: scratch, emptyDir: {}}]
""",
        "kind: RayJob\nspec: {backoffLimit: 9}\n---\nkind: Deployment\nspec: {replicas: 0}\n",
    )
    for document in documents.values():
        validate(document, crd)
    spec = documents["RayJob"]["spec"]
    assert spec["backoffLimit"] == 9  # the last file wins
    assert "ttlSecondsAfterFinished" not in spec
    _, (workers, actors) = pods(documents)
    assert workers["replicas"] == 2  # untouched
    container = workers["template"]["spec"]["containers"][0]
    assert [each["name"] for each in container["env"]] == ["OMP_NUM_THREADS", "NCCL_DEBUG"]
    assert {each["name"] for each in workers["template"]["spec"]["volumes"]} == {"shared", "files", "shm", "scratch"}
    assert "NCCL_DEBUG" not in str(actors)
    assert documents["Deployment"]["spec"]["replicas"] == 0


def test_delete_and_replace(patched):
    documents = patched(
        """\
kind: RayJob
spec:
  rayClusterSpec:
    workerGroupSpecs:
      - {groupName: actors, $patch: delete}
      - {groupName: spare, minReplicas: 0, maxReplicas: 1, template: {}}
  metadata: {$patch: replace, team: a}
"""
    )
    _, groups = pods(documents)
    assert [group["groupName"] for group in groups] == ["workers", "spare"]
    assert documents["RayJob"]["spec"]["metadata"] == {"team": "a"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: CronJob\n", "no CronJob  to patch; the manifest has ConfigMap job-files"),
        ("kind: RayJob\nmetadata: {name: other}\n", "no RayJob other to patch"),
        ("spec: {}\n", "expected documents with a `kind`"),
        ("a: [\n", "not a readable YAML file"),
    ],
)
def test_bad_patches(patched, text, said):
    with pytest.raises(ValueError, match=said):
        patched(text)


def test_kustomize_changes_the_example_for_a_team(crd):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which brings kustomize, is not installed")
    command = ["kubectl", "kustomize", str(CLUSTER)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    documents = {document["kind"]: document for document in yaml.safe_load_all(printed)}
    for document in documents.values():
        validate(document, crd)
        assert document["metadata"]["namespace"] == "recommenders"
        assert document["metadata"]["labels"]["cost-centre"] == "42"
    assert documents["RayJob"]["spec"]["backoffLimit"] == 5
    _, (workers,) = pods(documents)
    assert workers["template"]["spec"]["nodeSelector"] == {"pool": "gpu"}
    board = pods_of(documents)[-1]["spec"]["containers"][0]
    assert board["image"] == "registry.example.com/team/m3dist:0.1.0"
    assert board["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
