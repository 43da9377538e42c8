"""Stage outputs on disk: tensors as safetensors and plain values as JSON, complete when their meta.json is there.

An artifact is a folder `<stage>-<key>`; the key hashes every config value, the data and the seed that made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from m3dist.storage.folders import Folder, Stored


class Store:
    """The artifacts of one run, or those that several runs share."""

    def __init__(self, root: Folder | str | Path):
        self.root = root if isinstance(root, Folder) else Folder(root)

    def path(self, stage: str, key: str) -> Folder:
        return self.root / f"{stage}-{key}"

    def has(self, stage: str, key: str) -> bool:
        return self.path(stage, key).exists("meta.json")

    def save(self, stage: str, key: str, tensors: Mapping[str, Stored], meta: dict[str, Any]) -> None:
        folder = self.path(stage, key)
        folder.remove("meta.json")
        folder.write_tensors("tensors.safetensors", tensors)
        folder.write_json("meta.json", meta)

    def load(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Raises ValueError when the artifact is damaged."""
        folder = self.path(stage, key)
        try:
            return folder.read_tensors("tensors.safetensors"), folder.read_json("meta.json")
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"{folder}: damaged artifact ({error}); delete the folder and train again") from None

    def meta(self, stage: str, key: str) -> dict[str, Any]:
        """Raises FileNotFoundError when there is no such artifact."""
        return self.path(stage, key).read_json("meta.json")
