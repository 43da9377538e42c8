"""Writes docs/screenshot-docs.png and docs/screenshot-report.png: the documentation's first page, and a report on the
made shop of examples/.

    pip install ".[docs,report]" && mkdocs build --strict && python docs/screenshots.py

Needs Chromium (`apt-get install chromium`). The diagram of the first page is drawn by mermaid, which a reader's browser
fetches from unpkg.com; this one fetches nothing, so give it the file: `npm pack mermaid@11`, unpack it, and
`python docs/screenshots.py package/dist/mermaid.min.js`.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import tempfile
from pathlib import Path

import browser
from PIL import Image, ImageChops

import m3dist

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))
_COLOURS, _SCALE = 256, 0.7  # of a picture, so that it is small


def write(source: Path, out: Path, size: tuple[int, int], columns: int = 1) -> None:
    """A picture of a page as a window of so many pixels shows it, cut into columns that stand side by side."""
    with tempfile.TemporaryDirectory() as folder:
        browser.pictured(source, Path(folder) / "page.png", size, _SCALE)
        with Image.open(Path(folder) / "page.png") as read:
            page = read.convert("RGB")
    paper = page.getpixel((0, page.height - 1))
    empty = Image.new("RGB", page.size, paper)
    bottom = ImageChops.difference(page, empty).getbbox()[3]
    cuts = [0]
    for column in range(1, columns):  # where nothing stands
        cut = bottom * column // columns
        while ImageChops.difference(page, empty).crop((0, cut, page.width, cut + 9)).getbbox():
            cut += 1
        cuts.append(cut)
    cuts.append(bottom)
    tall = max(end - start for start, end in itertools.pairwise(cuts))
    picture = Image.new("RGB", (page.width * columns, tall), paper)
    for at, (start, end) in enumerate(itertools.pairwise(cuts)):
        picture.paste(page.crop((0, start, page.width, end)), (at * page.width, 0))
    picture.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).save(out, optimize=True)
    print(f"{out.relative_to(ROOT)}: {out.stat().st_size:,} bytes")


def first_page(site: Path, mermaid: Path | None, folder: Path) -> Path:
    """A copy of the built site whose first page has mermaid beside it."""
    shutil.copytree(site, folder / "site")
    index = folder / "site" / "index.html"
    if mermaid is not None:
        shutil.copyfile(mermaid, index.with_name("mermaid.js"))
        index.write_text(index.read_text().replace("</head>", '<script src="mermaid.js"></script></head>', 1))
    return index


def report(folder: Path) -> Path:
    """A report on two runs of seconds on the shop."""
    import shop

    with contextlib.chdir(folder):  # whose runs the page names
        shop.make("made")
        shop.m3dist("prepare", "tables", "made", "shop", "--split", "random")
        for model in ("m3-invrl", "ultragcn"):
            m3dist.train(m3dist.Dataset("shop"), m3dist.Config(out=model, model=model, **shop.QUICK), quiet=True)
        shop.m3dist(
            "report", "m3-invrl", "ultragcn", "--out", "report.html", "--users", 1, "--pictures", "made/pictures"
        )
    return folder / "report.html"


def main(mermaid: Path | None) -> None:
    if not (ROOT / "site" / "index.html").is_file():
        sys.exit("no site/index.html: run `mkdocs build --strict` first")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(first_page(ROOT / "site", mermaid, folder), ROOT / "docs" / "screenshot-docs.png", (1250, 720))
        write(report(folder), ROOT / "docs" / "screenshot-report.png", (780, 6000), 3)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
