"""Writes docs/api.md and docs/code.md from docstrings: `python docs/generate.py`; with --check it only compares.

api.md: everything public in `m3dist`. code.md: every module in the words of its docstring's first paragraph, which is
read without importing it.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import m3dist

DOCS = Path(__file__).parent
CODE = Path(m3dist.__file__).parent

_ABOUT = """# The code

Every module of `m3dist/`, from its docstring. Which package may import which is `LAYERS` of
[tests/test_structure.py](../tests/test_structure.py), which also reads this page; `python docs/generate.py` writes it.
"""

_LONGEST = 400  # of a signature that is shown


def signature(name: str, value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except ValueError:
        text = "()"
    if len(text) > _LONGEST:
        text = "(...)"
    return f"{name}{text}".replace("'", "").replace("(self, ", "(").replace("(cls, ", "(").replace("(self)", "()")


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


def api() -> str:
    """Everything that `import m3dist` offers."""
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


def modules() -> Iterator[tuple[str, str]]:
    """Every module with code of its own, as its path in m3dist/, and what it says of itself in one line."""
    for path in sorted(CODE.rglob("*.py"), key=lambda path: (len(path.relative_to(CODE).parts) > 1, path)):
        tree = ast.parse(path.read_text())
        if path.name == "__init__.py" and not tree.body[1:]:
            continue
        name = path.relative_to(CODE).as_posix()
        told = " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split()).rstrip(".:")
        yield name if name == "__init__.py" else name.replace("/__init__.py", "/"), told.replace("|", "\\|")


def code() -> str:
    """A table of modules for each package."""
    lines, package = [_ABOUT], None
    for name, told in modules():
        here = name.partition("/")[0] if "/" in name else ""
        if here != package:
            lines += [f"\n## `m3dist/{here}{'/' if here else ''}`\n", "| module | what it is |", "|---|---|"]
            package = here
        lines.append(f"| `{name}` | {told} |")
    return "\n".join(lines) + "\n"


PAGES = {"api.md": api, "code.md": code}

if __name__ == "__main__":
    written = {name: page() for name, page in PAGES.items()}
    if sys.argv[1:] == ["--check"]:
        old = [name for name, text in written.items() if (DOCS / name).read_text() != text]
        sys.exit(f"docs/{', docs/'.join(old)}: not up to date; run `python docs/generate.py`" if old else 0)
    for name, text in written.items():
        (DOCS / name).write_text(text)
