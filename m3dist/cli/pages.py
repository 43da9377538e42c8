"""Which page of the documentation helps with an error: the one about the module that raised it, or about the command.

`m3dist docs PAGE` shows it, from a checkout and from an installed package. The table below is the only place that says
so; a module without a row leaves it to whoever called it.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

PAGES = {  # a module of m3dist, or a package for all its modules
    "credentials": "security",
    "checksums": "security",
    "storage": "security",
    "config": "start",
    "sections": "start",
    "run_folder": "start",
    "plan": "start",
    "training": "start",
    "data": "data",
    "data.importers.idlists": "serving",
    "features": "data",
    "losses": "method",
    "models": "method",
    "method": "method",
    "method.registry": "extend",
    "method.warm": "serving",
    "evaluation": "method",
    "distributed": "workers",
    "distributed.devices": "gpu",
    "distributed.prepare": "data",
    "cluster": "cluster",
    "search": "search",
    "serving": "serving",
    "report": "serving",
    "study": "study",
    "cli.prepare": "data",
    "cli.features": "data",
    "cli.report": "serving",
    "cli.download": "data",
    "cli.train": "start",
    "cli.init": "start",
    "cli.evaluate": "serving",
    "cli.recommend": "serving",
    "cli.export": "serving",
    "cli.reproduce": "study",
    "cli.tune": "search",
    "cli.submit": "cluster",
    "cli.jobs": "cluster",
    "cli.doctor": "cluster",
    "cli.docs": "start",
}
OTHERS = "start"


def page(error: BaseException) -> str:
    """The command that shows the page that helps."""
    found = (PAGES[name] for module in _raised_in(error) for name in _named(module) if name in PAGES)
    return f"m3dist docs {next(found, OTHERS)}"


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
