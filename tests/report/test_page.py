"""The page of a report: what it says, what it escapes, and what it refuses."""

from __future__ import annotations

import base64
import html.parser
import importlib.util
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import call
from small_runs import trained

from m3dist import Dataset, Options

for needed in ("jinja2", "matplotlib", "PIL", "statsmodels"):
    pytest.importorskip(needed, reason=f"{needed} is not installed; pip install '.[report]'")
EVIL = "<script>alert('x')</script>"


class Read(html.parser.HTMLParser):
    """Tags, what they refer to, and the text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(path.read_text())
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def one_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report's plots of masks alone, for drawing is what takes its time."""
    from m3dist.report import drawn

    monkeypatch.setattr(drawn, "PLOTS", {"masks": drawn.PLOTS["masks"]})


@pytest.fixture(scope="module")
def titled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on items whose ids and titles are HTML, and a folder of pictures."""
    from PIL import Image

    root = tmp_path_factory.mktemp("titled")
    rng = np.random.default_rng(0)
    ids = [f"{EVIL}{n}" if n % 2 else f"item {n}" for n in range(30)]
    pairs = sorted({(int(u), int(i)) for u, i in zip(rng.integers(0, 40, 500), rng.integers(0, 30, 500), strict=True)})
    Dataset.from_arrays(
        {"user": [f"<b>{u}" for u, _ in pairs], "item": [ids[i] for _, i in pairs]},
        {"visual": rng.normal(size=(30, 4)).astype(np.float32)},
        root / "data",
        Options.of(split="random", seed=0, cold=0.4),
        pa.table({"item_id": ids, "title": [f"<img src=http://x.example/{n}>" for n in range(30)]}),
    )
    trained(root / "run", f"data={root / 'data'}", "model=vbpr", "baseline.epochs=1")
    (root / "pictures").mkdir()
    for n in range(0, 30, 2):
        Image.new("RGB", (300, 200), (8 * n, 0, 0)).save(root / "pictures" / f"item {n}.png")
    (root / "pictures" / "item 0.png").write_bytes(b"no picture")
    return root


def test_several_runs_side_by_side(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "other", "model=vbpr", "baseline.epochs=1")
    out = tmp_path / "report.html"
    assert call("report", finished_run, tmp_path / "other", "--out", out, "--users", 2, "--k", 5) == 0
    page = Read(out)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert page.links
    assert all(link.startswith("data:image/") for link in page.links)
    for title in ("Training", "Masks", "Environments", "Fusion", "Paired tests", "Sparse users", "Recommendations"):
        assert title in page.text
    assert page.text.count("User ") == 2
    assert page.tags.count("ol") == 4
    assert "model=vbpr learns no masks" in page.text
    assert "plot.masks" not in page.text  # the words of an error in Python
    tables = [pq.read_table(run / "test_users.parquet") for run in (finished_run, tmp_path / "other")]
    first, other = (table["ndcg@10"].to_numpy().mean() for table in tables)
    assert re.search(rf"ndcg@10\s+{first:.4f} \[0\.\d{{4}}, 0\.\d{{4}}\]\s*{other:.4f} \[", page.text)
    assert re.search(rf"ndcg@10\s+{other - first:+.4f} \[".replace("+", r"\+", 1), page.text)
    weight = json.loads((finished_run / "result.json").read_text())["test"]["fusion weight 1"]
    assert re.search(rf"fusion weight of modality1\s+{weight:.4f}", page.text)
    assert list(tmp_path.glob(".*partial")) == []


@pytest.fixture(scope="module")
def shown(titled: Path) -> Path:
    """The report on it."""
    out = titled / "report.html"
    assert call("report", titled / "run", "--out", out, "--pictures", titled / "pictures", "--k", 30) == 0
    return out


def test_what_strangers_wrote_is_text(shown: Path) -> None:
    page = Read(shown)
    assert not {"script", "b"} & set(page.tags)
    assert EVIL in page.text
    assert "<img src=http://x.example/3>" in page.text
    assert all(link.startswith("data:image/") for link in page.links)
    assert [link for link in page.links if link.startswith("data:image/jpeg;base64,")]
    assert "item 0.png: no picture could be read" in page.text
    assert "default-src 'none'" in shown.read_text()


def test_every_picture_is_one_and_refers_to_nothing(shown: Path) -> None:
    from PIL import Image

    kinds = set()
    for link in Read(shown).links:
        kind, _, data = link.partition(";base64,")
        kinds.add(kind)
        if kind == "data:image/jpeg":
            Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()
            continue
        drawn = ElementTree.fromstring(base64.b64decode(data, validate=True))
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
        inside = [value for one in drawn.iter() for name, value in one.items() if name.endswith("href")]
        assert all(value.startswith("#") for value in inside)
    assert kinds == {"data:image/jpeg", "data:image/svg+xml"}
    assert "url(" not in shown.read_text()
    assert "@import" not in shown.read_text()


@pytest.fixture(scope="module")
def browser() -> Any:
    """docs/browser.py, where there is a Chromium for it."""
    path = Path(__file__).parents[2] / "docs/browser.py"
    spec = importlib.util.spec_from_file_location("browser", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    if module.found() is None:
        pytest.skip(f"no browser: none of {', '.join(module.NAMES)} is on the PATH; apt-get install chromium")
    return module


def test_a_browser_shows_all_and_asks_for_nothing(browser: Any, shown: Path, tmp_path: Path) -> None:
    """As it is; and without the line that forbids scripts and the network, so that it is known to need neither."""
    seen = browser.opened(shown)
    assert (seen.errors, seen.requests) == ([], [])
    (tmp_path / "seen.html").write_text(seen.dom)
    page = Read(tmp_path / "seen.html")
    for title in ("Runs", "Metrics on the test split", "Sparse users", "Cold items", "Inside", "Recommendations"):
        assert title in page.text
    assert page.text.count("User ") == 3
    text, removed = re.subn(r"<meta http-equiv=[^>]*>", "", shown.read_text())
    assert removed == 1
    measure = """<script>onload = () => { const root = document.documentElement; document.title = JSON.stringify({
        pictures: document.images.length, wide: root.scrollWidth - root.clientWidth,
        broken: [...document.images].filter(one => !one.naturalWidth || !one.offsetWidth).length}) }</script>"""
    (tmp_path / "open.html").write_text(text + measure)
    for width in (1100, 500):  # a desk's and a telephone's
        seen = browser.opened(tmp_path / "open.html", (width, 900))
        assert (seen.errors, seen.requests) == ([], [])
        measured = json.loads(re.findall("<title>(.*?)</title>", seen.dom)[0])
        assert measured == {"pictures": len(page.links), "wide": 0, "broken": 0}


def test_a_browser_would_tell(browser: Any, tmp_path: Path) -> None:
    """That is, errors of scripts and requests are seen where there are any."""
    page = tmp_path / "page.html"
    page.write_text('<p id=a></p><img src="https://x.example/1.png"><script>a.textContent = 1 + 1; none()</script>')
    seen = browser.opened(page)
    assert '<p id="a">2</p>' in seen.dom
    assert [("none is not defined" in line) for line in seen.errors] == [True]
    assert seen.requests == ["x.example:443"]


def test_cold_items_have_intervals(titled: Path, shown: Path) -> None:
    stated = json.loads((titled / "run" / "result.json").read_text())["test"]["ndcg@10/cold"]
    assert re.search(rf"ndcg@10/cold\s+{stated:.4f} \[0\.\d{{4}}, [01]\.\d{{4}}\]", Read(shown).text)


def test_names_are_no_formulas(finished_run: Path, tmp_path: Path, one_plot: None) -> None:
    """Nor do they end the report: a stranger's tables may hold anything."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    table = pq.read_table(run / "masks.parquet")
    names = pa.array([r"$\nothing$" if x == "common" else x for x in table["representation"].to_pylist()])
    pq.write_table(table.set_column(0, "representation", names), run / "masks.parquet")
    out = tmp_path / "report.html"
    assert call("report", run, "--out", out, "--users", 0) == 0
    assert "Masks: how far" in out.read_text()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run / "result.json").unlink(), "not a finished run"),
        (lambda run: (run / "test_users.parquet").unlink(), "has no test metrics"),
        (lambda run: pq.write_table(pa.table({"user": [3, 1]}), run / "test_users.parquet"), "damaged or of another"),
        (lambda run: (run / "masks.parquet").write_bytes(pa.BufferOutputStream().getvalue()), "masks"),
        (lambda run: pq.write_table(pa.table({"x": [1]}), run / "masks.parquet"), "plot.masks"),
    ],
)
def test_a_broken_run_is_one_line(
    break_it, said: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_plot: None
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    break_it(run)
    out = tmp_path / "report.html"
    code = call("report", run, "--out", out, "--users", 0)
    told = capsys.readouterr().err
    if code:
        assert (code, told.count("\n")) == (2, 1)
        assert said in told
        assert not out.exists()
    else:  # what cannot be read of the tables of plots alone is said in the page
        assert said == "masks"
        assert "Masks: how far" not in out.read_text()


def test_what_cannot_be_reported(
    finished_run: Path,
    titled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "report.html"
    for arguments, said in (
        ((finished_run, titled / "run", "--out", out), "which is other data"),
        ((finished_run, finished_run, "--out", out), "named twice"),
        ((finished_run, "--out", tmp_path / "none" / "x.html"), "is no folder"),
        ((finished_run, "--out", tmp_path), "cannot be written"),
        ((finished_run, "--out", out, "--user", "nobody"), "unknown"),
        ((finished_run, "--out", out, "--pictures", tmp_path / "none"), "no such folder"),
    ):
        assert call("report", *arguments) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert call("report", finished_run, "--out", out) == 2
    assert 'pip install "m3dist[report]"' in capsys.readouterr().err
    assert not out.exists()
