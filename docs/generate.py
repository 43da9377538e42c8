"""Writes docs/api.md from the docstrings of everything public in `m3dist`: `python docs/generate.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

import m3dist

PAGE = Path(__file__).with_name("api.md")


def signature(name: str, value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except ValueError:
        text = "()"
    return f"{name}{text}".replace("'", "").replace("(self, ", "(").replace("(self)", "()")


def entry(name: str, value: object, depth: int) -> list[str]:
    shown = name if inspect.isclass(value) and issubclass(value, BaseException) else signature(name, value)
    return [f"{'#' * depth} `{shown}`", "", inspect.getdoc(value) or "", ""]


def members(kind: type) -> list[tuple[str, object]]:
    """Public methods and properties that the class itself defines, with their docstrings."""
    found = []
    for name, value in vars(kind).items():
        value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if not name.startswith("_") and inspect.isfunction(value) and value.__doc__:
            found.append((name, value))
    return found


def page() -> str:
    lines = ["# The Python API", "", "Everything that `import m3dist` offers, from the docstrings.", ""]
    for name in m3dist.__all__:
        value = getattr(m3dist, name)
        if name == "Config":
            lines += ["## `Config(**values)`", "", inspect.getdoc(value) or "", ""]
            lines += ['A section is given as a mapping: `Config(merge={"epochs": 10})`.', ""]
            continue
        lines += entry(f"m3dist.{name}", value, 2)
        if inspect.isclass(value) and not issubclass(value, BaseException):
            for method, function in members(value):
                lines += entry(f"{name}.{method}", function, 3)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
