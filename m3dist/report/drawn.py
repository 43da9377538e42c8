"""Pictures of a report as data URIs, so that the page needs no other file: plots of runs and pictures of items."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from m3dist.report.content import Reported, Titles

PLOTS = {  # method of `Run.plot`: what the page calls it
    "curves": "Training: loss of every stage and the validation metric",
    "masks": "Masks: how far every dimension is kept",
    "environments": "Environments: training interactions of each after every round",
    "fusion": "Fusion: weights of modalities over the users who are tested",
}
_SIDE = 96  # pixels of a picture at most
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def plots(one: Reported) -> dict[str, str]:
    """Plots of a run by their titles, as SVG in data URIs; what it has none of becomes a note of the run.

    Raises ValueError where matplotlib is missing, or the run folder's files are not what a run writes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    out = {}
    with matplotlib.rc_context({"text.parse_math": False, "svg.fonttype": "path"}):  # names are text, not formulas
        for name, title in PLOTS.items():
            try:
                figure = getattr(one.run.plot, name)()[0].figure
                drawn = io.BytesIO()
                figure.savefig(drawn, format="svg", metadata={"Date": None})
                out[title] = _uri("svg+xml", drawn.getvalue())
            except ValueError as error:
                one.notes.append(" ".join(str(error).split()).removeprefix(f"plot.{name}: "))
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise ValueError(
                    f"{one.name}: plot.{name}: its files are not what a run writes ({error!r}); train it again"
                ) from None
            finally:
                pyplot.close("all")
    return out


def pictures(folder: Path | None, titles: Titles, items: list[int]) -> tuple[dict[int, str], list[str]]:
    """Small pictures of items by dense id, from files named by item id in `folder`; and notes on broken ones.

    A file is found by listing the folder, so that no id leads out of it; every picture is drawn anew.
    Raises ValueError where there is no such folder.
    """
    if folder is None:
        return {}, []
    if not folder.is_dir():
        raise ValueError(f"--pictures {folder}: no such folder; expected pictures named by item id, such as B001.jpg")
    by_id = {path.stem: path for path in sorted(folder.iterdir()) if path.is_file()}
    out: dict[int, str] = {}
    notes = []
    for item in items:
        if (path := by_id.get(titles.id[item])) is None:
            continue
        try:
            out[item] = _small(path)
        except Exception as error:  # a decoder may raise anything on a broken file
            notes.append(f"{path.name}: no picture could be read ({type(error).__name__})")
    return out, notes


def _small(path: Path) -> str:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as picture:
            picture.thumbnail((_SIDE, _SIDE))
            drawn = io.BytesIO()
            picture.convert("RGB").save(drawn, "JPEG", quality=80)
    return _uri("jpeg", drawn.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
