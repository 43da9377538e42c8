"""Checks in environments of their own: `pip install nox && nox`; `nox -s tests-3.13` for one, `nox -l` for the list."""

from __future__ import annotations

import os
import pathlib

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "docs", "package", "features", "tests"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.install(".[test]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy", "m3dist")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, under every supported Python that is there; arguments behind -- go to pytest."""
    session.install(".[test]")
    session.run("pytest", "-n", "2", "--dist", "loadfile", *session.posargs)


@nox.session
def features(session: nox.Session) -> None:
    """The tests of `m3dist features` with the packages of its models, which the other tests do without."""
    session.install(".[test,features]")
    session.run("pytest", "-m", "slow or not slow", *session.posargs, "tests/features")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a site in site/, warnings as errors; m3dist itself is read, not imported."""
    session.install(*nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["docs"])
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Execute the scripts of examples/ in Jupyter, and write them with what they print as notebooks beside them."""
    session.install(".[notebooks,search,export]")
    session.chdir("examples")
    for name in session.posargs or sorted(path.name for path in pathlib.Path().glob("[0-9]*.py")):
        session.run("jupytext", "--to", "ipynb", "--set-kernel", "python3", "--execute", name)


@nox.session
def package(session: nox.Session) -> None:
    """Wheel and source distribution, whose descriptions PyPI would take, and each of which installs."""
    session.install("build", "twine")
    made = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", made)
    files = sorted(os.path.join(made, name) for name in os.listdir(made))
    session.run("twine", "check", "--strict", *files)
    for file in files:
        session.install("--force-reinstall", "--no-deps", file)
