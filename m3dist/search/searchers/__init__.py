"""Searchers by name: what proposes the points that a search tries.

A new one here is a file with a subclass of `base.Searcher` and a line in SEARCHERS. One of another package is put
beside them with `@register("name")`, or found by its entry point in the group `m3dist.searchers` once installed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from m3dist.search.searchers.base import Searcher

S = TypeVar("S", bound="type[Searcher]")

_GROUP = "m3dist.searchers"
SEARCHERS = {  # the value of `searcher`: its class, imported when used
    "random": "m3dist.search.searchers.random:Random",
    "grid": "m3dist.search.searchers.grid:Grid",
    "optuna": "m3dist.search.searchers.tpe:TPE",
}
_registered: dict[str, type[Searcher]] = {}


def register(name: str) -> Callable[[S], S]:
    """A decorator of a searcher class: makes it the one that `searcher: name` asks for."""

    def add(searcher: S) -> S:
        _registered[name] = searcher
        return searcher

    return add


def find(name: str) -> type[Searcher]:
    """The searcher of a name. Raises ValueError, with the nearest name, where there is none."""
    if name in _registered:
        return _registered[name]
    known = {one: EntryPoint(one, value, _GROUP) for one, value in SEARCHERS.items()}
    if name not in known:
        known |= {point.name: point for point in entry_points(group=_GROUP)}
    if name not in known:
        names = sorted([*known, *_registered])
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no such searcher; expected one of {', '.join(names)}{hint}")
    return known[name].load()
