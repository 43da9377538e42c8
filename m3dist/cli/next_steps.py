"""What `m3dist` alone shows: the next commands, by what is in the current folder."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote

from m3dist.terminal import printable

_FIRST = (
    ("m3dist train", "train on planted data, to see what a run is; no data needed"),
    ("m3dist prepare auto SRC data/mine --split random", "import your own data"),
    ("m3dist prepare download", "or a public data set: shows which"),
    ("m3dist init work", "an example config, searches and cluster files to edit"),
)
_ALWAYS = (
    ("m3dist -h", "all commands; m3dist COMMAND -h explains one"),
    ("m3dist docs start", "first steps; m3dist docs lists all pages"),
)


def shown(folder: Path) -> str:
    """Commands and what each is for, one a line, and what was found there."""
    sets, runs = _newest(folder, "dataset.json"), _newest(folder, "result.json")
    lines: list[tuple[str, str]] = []
    if sets:
        model = " model=ultragcn" if _has_ids_alone(folder / sets) else ""
        train = f"m3dist train {quote(f'data={sets}')} {quote(f'out=runs/{sets.name}')}{model}"
        lines += [
            (f"{train} --explain", "what each stage will do with these data, and its cost"),
            (train, "train on them"),
        ]
    if runs:
        run = quote(str(runs))
        lines += [
            (f"m3dist recommend {run} --out top.parquet", "ranked lists of all users"),
            (f"m3dist evaluate {run}", "its metrics again"),
            (f"m3dist export {run} vectors/", "vectors for an index of yours"),
        ]
    found = [f"data set {sets}"] * bool(sets) + [f"finished run {runs}"] * bool(runs)
    head = f"m3dist trains recommenders. Here: {', '.join(found) or 'no data set and no run yet'}. Next:"
    lines += [*(_FIRST if not sets else _FIRST[-1:]), *_ALWAYS]
    width = max(len(command) for command, _ in lines) + 2
    return printable("\n".join([head, "", *(f"  {command:<{width}}{what}" for command, what in lines)]))


def _has_ids_alone(data: Path) -> bool:
    """Whether a data set states that it has no modality, which M3-InvRL needs."""
    try:
        return json.loads((data / "dataset.json").read_text())["modalities"] == {}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _newest(folder: Path, name: str) -> Path | None:
    """The folder, at most two below this one, in which a file of that name was written last; a run's own data are part
    of the run."""
    files = [path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{name}")]
    files = [path for path in files if not (path.parents[1] / "config.yaml").exists()]
    return max(files, key=lambda path: path.stat().st_mtime).parent.relative_to(folder) if files else None
