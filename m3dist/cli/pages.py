"""Which page of the documentation helps with an error: the one about the module that raised it, or about the command.

The table below is the only place that says so; a module without a row leaves it to whoever called it.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

FOLDER = "docs"  # of the repository, where the pages are
PAGES = {  # a module of m3dist, or a package for all its modules
    "credentials": "security.md",
    "checksums": "security.md",
    "storage": "security.md",
    "config": "start.md",
    "sections": "start.md",
    "run_folder": "start.md",
    "plan": "start.md",
    "training": "start.md",
    "data": "data.md",
    "features": "data.md",
    "losses": "method.md",
    "models": "method.md",
    "method": "method.md",
    "method.registry": "extend.md",
    "method.warm": "serving.md",
    "evaluation": "method.md",
    "distributed": "workers.md",
    "distributed.devices": "gpu.md",
    "distributed.prepare": "data.md",
    "cluster": "cluster.md",
    "search": "search.md",
    "serving": "serving.md",
    "report": "serving.md",
    "study": "study.md",
    "cli.prepare": "data.md",
    "cli.features": "data.md",
    "cli.report": "serving.md",
    "cli.download": "data.md",
    "cli.train": "start.md",
    "cli.init": "start.md",
    "cli.evaluate": "serving.md",
    "cli.recommend": "serving.md",
    "cli.export": "serving.md",
    "cli.reproduce": "study.md",
    "cli.tune": "search.md",
    "cli.submit": "cluster.md",
    "cli.jobs": "cluster.md",
    "cli.doctor": "cluster.md",
}
OTHERS = "start.md"


def page(error: BaseException) -> str:
    """The page that helps, as a path in the repository."""
    found = (PAGES[name] for module in _raised_in(error) for name in _named(module) if name in PAGES)
    return f"{FOLDER}/{next(found, OTHERS)}"


def _raised_in(error: BaseException) -> Iterator[str]:
    """Modules of m3dist that the error came through, the one that raised it first; of a wrong command line, its own."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        context = error.ctx
        while context.parent is not None and context.parent.parent is not None:
            context = context.parent
        yield f"cli.{context.info_name}"
        return
    modules, at = [], error.__traceback__
    while at is not None:
        top, _, module = str(at.tb_frame.f_globals.get("__name__")).partition(".")
        if top == "m3dist":
            modules.append(module)
        at = at.tb_next
    yield from reversed(modules)


def _named(module: str) -> Iterator[str]:
    """A module and the packages that it is in, from the inside."""
    while module:
        yield module
        module = module.rpartition(".")[0]
