"""Classes by their names: those of this package, and what installed packages add by an entry point."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

Kind = TypeVar("Kind")


class Named(Generic[Kind]):
    """kind: what they are, for messages. group: of the entry points. own: "module:attribute", imported when used."""

    def __init__(self, kind: str, group: str, own: dict[str, str]):
        self.kind, self.group, self.own = kind, group, dict(own)

    def names(self) -> list[str]:
        """Every name, those of installed packages included."""
        return [*self.own, *(point.name for point in entry_points(group=self.group))]

    def check(self, name: str) -> str:
        """The name. Raises ValueError, which names the nearest one, where nothing has it."""
        if name not in self.own and name not in (known := self.names()):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"no such {self.kind}; expected one of {', '.join(known)}{hint}")
        return name

    def __getitem__(self, name: str) -> Kind:
        """Raises ValueError as `check` does."""
        if self.check(name) in self.own:
            module, _, attribute = self.own[name].partition(":")
            return cast(Kind, getattr(importlib.import_module(module), attribute))
        return cast(Kind, next(point for point in entry_points(group=self.group) if point.name == name).load())
