"""What CONTRIBUTING says of the code holds: who may import whom, short files, few parameters, a complete table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ROOT / "m3dist"
TABLE = ROOT / "docs" / "code.md"
LAYERS = (  # a module imports from its own name's row entry and from rows above; a module's name outranks its package's
    ("__init__", "seeding", "checksums", "credentials", "named", "section", "terminal", "method.registry", "examples"),
    ("cluster.settings", "method.fusions"),
    ("sections", "values"),
    ("config",),
    ("data", "losses"),
    ("models",),
    ("storage.safe",),
    ("storage.folders", "training.callbacks"),
    ("training.tracking",),
    ("distributed",),
    ("storage", "evaluation"),
    ("training",),
    ("method",),
    ("results", "plan"),
    ("run_folder",),
    ("pipeline", "explain"),
    ("serving", "search", "study", "cluster"),
    ("report",),
    ("api",),
    ("cli",),
    ("__main__",),
)
INSIDE = {  # imports inside functions that go up or sideways: what a job of a cluster runs, and what it must carry
    ("cluster.enter", "cli.main"),
    ("cluster.package", "cli.main"),
    ("cluster.package", "search.space"),
}
LINES, PARAMETERS = 350, 5


def name_of(path: Path) -> str:
    """`data.dataset` of m3dist/data/dataset.py, `data` of m3dist/data/__init__.py."""
    parts = path.relative_to(CODE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {name_of(path): path for path in sorted(CODE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Modules of m3dist that a module imports, and whether only inside a function or for a type checker."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            deeper = inside or checking or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            if isinstance(child, ast.ImportFrom):
                assert not child.level, "a relative import"
                yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
            yield from visit(child, deeper)

    for full, inside in visit(tree, False):
        if full.split(".")[0] == "m3dist":
            name = full.partition(".")[2] or "__init__"
            while name not in FILES:  # of a module's attribute
                name = name.rpartition(".")[0] or "__init__"
            yield name, inside


IMPORTS = {name: set(imports(tree)) for name, tree in TREES.items()}


def place(module: str) -> tuple[int, str]:
    """The row of a module and the entry of that row that it belongs to."""
    entries = {entry: row for row, names in enumerate(LAYERS) for entry in names}
    entry = module
    while entry not in entries:
        assert "." in entry, f"m3dist/{module}: give it a place in LAYERS of {Path(__file__).name}"
        entry = entry.rpartition(".")[0]
    return entries[entry], entry


def test_a_module_imports_from_below() -> None:
    wrong = []
    for module in FILES:
        row, entry = place(module)
        for other, inside in sorted(IMPORTS[module]):
            below, its = place(other)
            lazy = inside and (module == "__init__" or (module, other) in INSIDE)  # public names are loaded when asked
            if not lazy and below >= row and its != entry:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    open_: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in open_, f"import cycle: {' -> '.join([*open_[open_.index(module) :], module])}"
        if module not in done:
            open_.append(module)
            for other, inside in sorted(IMPORTS[module]):
                if not inside and other != module:
                    visit(other)
            done.add(open_.pop())

    for module in FILES:
        visit(module)


def test_exceptions_and_layers_are_in_use() -> None:
    used = {place(module)[1] for module in FILES}
    assert used == {entry for row in LAYERS for entry in row}
    assert {(module, other) for module in FILES for other, inside in IMPORTS[module] if inside} >= INSIDE


def test_the_table_names_every_module_and_nothing_else() -> None:
    named: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", TABLE.read_text(), re.M):
        folder = ""
        for path in re.findall(r"`([^`]+)`", row):
            folder = path.rpartition("/")[0] if "/" in path else folder  # as in: `data/dataset.py`, `sampling.py`
            named.add(path if "/" in path or not folder else f"{folder}/{path}")
    with_code = {path for path in FILES.values() if path.name != "__init__.py" or TREES[name_of(path)].body[1:]}
    there = {str(path.relative_to(CODE)).replace("/__init__.py", "/") for path in with_code}
    assert named == there


def test_files_are_short() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    offenders = [f"{name}: {count} lines" for name, count in lines.items() if count > LINES]
    assert not offenders, "\n".join(offenders)


def test_functions_take_few_parameters() -> None:
    def visit(node: ast.AST, in_class: bool) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                given = child.args
                static = any(ast.unparse(x) == "staticmethod" for x in getattr(child, "decorator_list", []))
                count = len(given.posonlyargs + given.args + given.kwonlyargs) - (in_class and not static)
                count += (given.vararg is not None) + (given.kwarg is not None)
                if count > PARAMETERS:
                    yield f"{getattr(child, 'name', 'lambda')}, line {child.lineno}, takes {count}"
            yield from visit(child, isinstance(child, ast.ClassDef))

    offenders = [f"{name}: {found}" for name, tree in TREES.items() for found in visit(tree, False)]
    assert not offenders, "\n".join(offenders)
