"""Stage outputs on disk: tensors as safetensors and plain values as JSON, moved into place when complete.

An artifact is a folder `<stage>-<key>`; the key hashes every config value, the data and the seed that made it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


class Store:
    """The artifacts of one run folder."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, stage: str, key: str) -> Path:
        return self.root / f"{stage}-{key}"

    def has(self, stage: str, key: str) -> bool:
        return (self.path(stage, key) / "meta.json").is_file()

    def save(self, stage: str, key: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        final = self.path(stage, key)
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, partial / "tensors.safetensors")
        (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)

    def load(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self.path(stage, key)
        try:
            return load_file(path / "tensors.safetensors"), json.loads((path / "meta.json").read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: damaged artifact ({error}); delete the folder and train again") from None


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)
