"""Prepares every case of the hostile corpus in a process of its own, and prints what happened as JSON, a line each.

python hostile_run.py FOLDER [PART OF A NAME]
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_corpus
import hostile_makers
import numpy as np
import pyarrow.parquet as pq
import scipy.sparse
import torch

from m3dist.data import importers
from m3dist.data.dataset import DataError
from m3dist.data.importers import common, featurefiles, tensors
from m3dist.data.importers.options import Options


def in_child(work: Callable[[], Any]) -> tuple[int, str, int]:
    """Exit status, what `work` returned or raised, and by how many bytes its memory grew at most."""
    read, write = os.pipe()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            said = str(work())
        except DataError as error:
            said = f"refused: {error}"
        except BaseException:
            said = "raised: " + traceback.format_exc()
        os.write(write, said.encode("utf-8", "replace")[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), said, max(0, usage.ru_maxrss * 1024 - before)


def prepare(importer: str, src: Path, dst: Path) -> str:
    source = importers.importer(importer).read(src, Options())
    common.write(source, dst, "drop")
    return "read"


def main(folder: Path, part: str) -> None:
    os.chdir(folder)
    in_child(lambda: warm(folder / "warm"))
    for number, (name, importer, make) in enumerate(hostile_corpus.PARTS[part]()):
        src, dst = folder / f"case{number}", folder / f"out{number}"
        src.mkdir()
        status, said, _ = in_child(lambda src=src, make=make: make(src) or "made")
        assert (status, said[:4]) == (0, "made"), (name, said)
        size = sum(path.stat().st_size for path in src.rglob("*") if path.is_file())
        status, said, grown = in_child(lambda i=importer, s=src, d=dst: prepare(i, s, d))
        left = [path.name for path in folder.iterdir() if path not in (src, dst)] + (
            [] if said == "read" else [dst.name][: dst.exists()]
        )
        print(
            json.dumps({"name": name, "status": status, "said": said, "size": size, "grown": grown, "left": left}),
            flush=True,
        )
        shutil.rmtree(src)
        shutil.rmtree(dst, ignore_errors=True)


def warm(folder: Path) -> str:
    """Load what is loaded late, so that no case pays for it."""
    folder.mkdir()
    hostile_makers.interactions(folder)
    prepare("tables", folder, folder.with_name("warmed"))
    shutil.rmtree(folder)
    shutil.rmtree(folder.with_name("warmed"))
    return str((np, pq, scipy.sparse, torch, featurefiles, tensors))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
