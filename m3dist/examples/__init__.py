"""Files that users copy and edit: an example config, searches (tune/) and places to run (cluster/). And the pages of
the documentation (docs/), which `m3dist docs` shows.

In a checkout the folders stand at the top; in an installed package they are beside this file.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def _root() -> Path:
    return _HERE if (_HERE / "cluster").is_dir() else _HERE.parent.parent


def files() -> dict[str, Path]:
    """Every example by the relative path it is copied to."""
    root = _root()
    out = {"config.yaml": _HERE / "config.yaml"}
    for name in ("tune", "cluster"):
        for path in sorted((root / name).glob("*")):
            if path.is_file() and not path.name.startswith((".", "__")):
                out[f"{name}/{path.name}"] = path
    return out


def pages() -> dict[str, Path]:
    """Every page of the documentation by its name: `data` of docs/data.md."""
    return {path.stem: path for path in sorted((_root() / "docs").glob("*.md"))}
