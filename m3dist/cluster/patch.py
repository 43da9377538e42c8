"""Strategic merge of patches into a manifest, as kubectl and kustomize do it, for KubeRay's lists too.

Mappings merge key by key, null removes a key. Lists whose entries have a name merge entry by entry, others are
replaced. `$patch: delete` removes an entry of a list, `$patch: replace` takes a mapping as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from m3dist import credentials

_KEYS = {  # list: what names its entries
    "containers": "name", "initContainers": "name", "env": "name", "volumes": "name", "imagePullSecrets": "name",
    "ports": "containerPort", "volumeMounts": "mountPath", "workerGroupSpecs": "groupName",
}  # fmt: skip


def apply(documents: list[dict[str, Any]], file: str | Path) -> None:
    """Merge every document of a patch file into the document of the same kind (and name, where it gives one).

    Raises ValueError when the file is no YAML of mappings, or a patch meets no document.
    """
    try:
        patches = [each for each in yaml.safe_load_all(Path(file).read_text()) if each is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: not a readable YAML file: {error}") from None
    for each in patches:
        credentials.refuse_in(str(file), each)
        if not isinstance(each, dict) or "kind" not in each:
            raise ValueError(f"{file}: expected documents with a `kind`, such as RayJob, and what to change in it")
        name = (each.get("metadata") or {}).get("name")
        found = [at for at in documents if at["kind"] == each["kind"] and name in (None, at["metadata"]["name"])]
        if not found:
            known = ", ".join(f"{at['kind']} {at['metadata']['name']}" for at in documents)
            raise ValueError(f"{file}: no {each['kind']} {name or ''} to patch; the manifest has {known}")
        for document in found:
            _merge(document, each)


def _merge(into: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and value.get("$patch") == "replace":
            into[key] = {name: inner for name, inner in value.items() if name != "$patch"}
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, list) and key in _KEYS and isinstance(into.get(key), list):
            _merge_list(into[key], value, _KEYS[key])
        else:
            into[key] = value


def _merge_list(into: list[Any], patch: list[Any], key: str) -> None:
    for each in patch:
        same = [at for at in into if isinstance(at, dict) and isinstance(each, dict) and at.get(key) == each.get(key)]
        if isinstance(each, dict) and each.get("$patch") == "delete":
            into[:] = [at for at in into if at not in same]
        elif same:
            _merge(same[0], each)
        else:
            into.append(each)
