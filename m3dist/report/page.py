"""The page of a report: one HTML file that needs no network and no script.

Whatever comes from a run, a data set or a file's name is text to the template, which escapes it (Jinja2's autoescape);
the page forbids itself scripts and everything from elsewhere by a Content-Security-Policy.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from m3dist.storage.folders import Folder
from m3dist.terminal import printable


@dataclass(frozen=True)
class Request:
    """users: original ids of those whose lists are shown, else `count` of them; k: items of a list; pictures: a folder
    of pictures that are named by item id."""

    users: list[str] = field(default_factory=list)
    count: int = 3
    k: int = 8
    pictures: Path | None = None
    device: str = "auto"


def check_libraries() -> None:
    """Raises ValueError when what a report needs beside training is not installed."""
    for name in ("jinja2", "matplotlib", "PIL", "statsmodels"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ValueError(f'{name} is not installed; a report needs it: pip install "m3dist[report]"') from None


def write(roots: list[str], out: str, request: Request | None = None) -> int:
    """Write the page on finished runs of the same data to `out`, whole or not at all; its bytes.

    The first run is what the others are tested against. Raises ValueError on runs that cannot be reported or compared.
    """
    check_libraries()
    target = Folder(out)
    if len(set(roots)) < len(roots):
        raise ValueError(f"report: a run is named twice among {', '.join(roots)}; name each once")
    if target.is_local and not Path(target.path).parent.is_dir():
        raise ValueError(f"--out {out}: {Path(target.path).parent} is no folder")
    text = _html(roots, request or Request())
    try:
        with target.writing() as path:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error})") from None
    return len(text.encode())


def _html(roots: list[str], request: Request) -> str:
    from m3dist.report import content, drawn

    runs = [content.Reported.of(root, request.device) for root in roots]
    content.same_data(runs)
    dataset, user_n = runs[0].run.dataset, runs[0].user
    shown = content.examples(runs, content.chosen(dataset, user_n, request.users, request.count), request.k)
    titles = content.Titles.of(dataset)
    items = {item for each in shown for found in each.lists.values() for item, _ in found}
    items |= {item for each in shown for item in each.history}
    pictures, broken = drawn.pictures(request.pictures, titles, sorted(items))
    metric = runs[0].run.config.evaluation.metric
    groups = content.groups(dataset, user_n)
    return _template().render(
        runs=runs, dataset=dataset, metric=metric, n=len(user_n), titles=titles, pictures=pictures, broken=broken,
        differences=content.differences(runs), groups=groups, examples=shown, plots=[drawn.plots(one) for one in runs],
        by_group=[[content.Estimate.of(one.values[metric][group.at]) for one in runs] for group in groups],
    )  # fmt: skip


def _template() -> Any:
    import jinja2

    def text(value: Any) -> Any:
        return printable(value) if type(value) is str else value

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=text, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string((resources.files("m3dist.report") / "page.html").read_text(encoding="utf-8"))
