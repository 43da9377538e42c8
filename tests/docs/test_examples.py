"""The notebooks of examples/: each runs from its first line to its last, as a script here and, slowly, in Jupyter."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import m3dist
from m3dist.method import registry

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(path.stem for path in EXAMPLES.glob("[0-9]*.py"))


def ran(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a notebook's names are in the end, run as a script in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(registry, "RECOMMENDERS", dict(registry.RECOMMENDERS))
    path = EXAMPLES / f"{name}.py"
    found: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(path.read_text(), str(path), "exec"), found)
    return found


@pytest.mark.slow
def test_from_csv_to_recommendations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ran("01_from_csv_to_recommendations", tmp_path, monkeypatch)
    assert m3dist.Dataset("made/data").modalities == {"picture": 192, "title": 19}
    assert found["run"].result["test"]["ndcg@10"] > 0.1  # a random order has about 0.01
    shown = found["Shelf"](found["shop"], ["item-0"], "one")._repr_html_()
    assert "data:image/png;base64," in shown
    assert "Red plain mug" in shown


def test_cold_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ran("02_cold_items", tmp_path, monkeypatch)
    assert found["cold"] > 2 * found["chance"]


@pytest.mark.slow
def test_comparing_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ran("04_comparing_methods", tmp_path, monkeypatch)["found"]
    assert {ndcg.shape for ndcg in found.values()} == {(2, 300)}
    assert not np.array_equal(found["plain"], found["M3-InvRL"])


@pytest.mark.slow
def test_own_recommender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = ran("05_own_recommender", tmp_path, monkeypatch)["runs"]
    assert runs["tasteful"].result["test"]["ndcg@10"] > 0.1
    text = (EXAMPLES / "05_own_recommender.py").read_text()
    own = text[text.index("@m3dist.recommender") : text.index("# %%\nshop")]
    assert len(own.strip().splitlines()) <= 40


@pytest.mark.slow
def test_serving_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed; pip install '.[export]'")
    found = ran("07_serving_with_an_index", tmp_path, monkeypatch)
    assert found["answer"] == found["same"]


def cells(notebook: dict[str, Any]) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def percent(text: str) -> list[tuple[str, str]]:
    """The cells of a script in jupytext's percent format."""
    found = []
    for part in re.split(r"^# %%", text, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        markdown = "[markdown]" in head
        body = body.strip("\n")
        found.append(("markdown", re.sub(r"^# ?", "", body, flags=re.M)) if markdown else ("code", body))
    return found


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.ipynb")))
def test_script_and_notebook_are_a_pair(name: str) -> None:
    """With what it printed when it was executed last, and without an error."""
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text())
    assert cells(notebook) == percent((EXAMPLES / f"{name}.py").read_text()), "run `nox -s notebooks`"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not re.search(r"(?<![\w+/.])/(tmp|home|root|var|Users)/", json.dumps(notebook))  # of whoever executed it
    assert name in (EXAMPLES / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_in_jupyter(name: str, tmp_path: Path) -> None:
    pytest.importorskip("jupytext", reason="jupytext is not installed; pip install '.[notebooks]'")
    pytest.importorskip("nbconvert", reason="nbconvert is not installed; pip install '.[notebooks]'")
    for file in (f"{name}.py", "shop.py"):
        shutil.copyfile(EXAMPLES / file, tmp_path / file)
    command = [sys.executable, "-m", "jupytext", "--to", "ipynb", "--set-kernel", "python3", "--execute", f"{name}.py"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert cells(json.loads((tmp_path / f"{name}.ipynb").read_text())) == percent((tmp_path / f"{name}.py").read_text())
