"""What README.md, CONTRIBUTING.md and docs/ say holds: commands, config keys, Python, links and written pages."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from cli_helpers import call

import m3dist
from m3dist import config as configs
from m3dist import examples
from m3dist.cli.main import COMMANDS, cli
from m3dist.cluster.settings import Cluster
from m3dist.config import Config
from m3dist.method import registry
from m3dist.method.fusions import FUSIONS
from m3dist.search import space

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FILES = examples.files()


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Code blocks of a page, as (language, text); of indented blocks the language is empty."""
    text = page.read_text()
    yield from re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for block in re.findall(r"(?:(?<=\n\n)|\A)((?:    [^\n]*\n|\n(?=    ))+)", outside):
        yield "", re.sub(r"^    ", "", block, flags=re.M)


@dataclass(frozen=True)
class Line:
    """A command of a page: what follows `m3dist`."""

    page: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: m3dist {' '.join(self.arguments)}"


def lines(page: Path) -> Iterator[Line]:
    for language, text in blocks(page):
        if language not in ("", "bash", "sh"):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s)#\s.*", "", line)
            if not re.search(r"(^|&& |\| )m3dist ", line):
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&>")
            lexer.whitespace_split, lexer.commenters = True, ""
            words: list[str] = []
            for word in [*lexer, "&&"]:
                if not set(word) <= set("|&>"):
                    words.append(word)
                    continue
                if words[:1] == ["m3dist"]:
                    yield Line(str(page.relative_to(ROOT)), tuple(words[1:]))
                words = []
    if page.name == "README.md":  # whose table has a command in each row
        for command in re.findall(r"`m3dist ([a-z][^`]*)`", page.read_text()):
            yield Line("README.md", tuple(shlex.split(command)))


COMMAND_LINES = [line for page in PAGES for line in lines(page)]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What click makes of a command line. Raises click.UsageError."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        name = arguments.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"no such command: {name}"
        command = found
    return command.make_context("m3dist", arguments).params


def checked(arguments: list[str]) -> None:
    """Raises where a verb, an option, a config key or a value of one is not there."""
    verb = arguments[0]
    given = parsed(list(arguments))
    values = [*given.get("arguments", ())]
    files = [value for value in values if "=" not in value]
    overrides = [value for value in values if "=" in value]
    if verb in ("train", "doctor"):
        configs.load(FILES["config.yaml"] if files else None, overrides)
    if verb == "tune":
        space.read(FILES[given["search"]], given["overrides"])
    if verb == "reproduce":
        configs.load(None, given["overrides"])
    if verb == "submit":
        configs.validate(configs.read(None, given["overrides"]), "--set", Cluster)
        if values:
            checked(values)


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that docs/extend.md adds."""
    monkeypatch.setattr(registry, "RECOMMENDERS", {**registry.RECOMMENDERS, "two-towers": "m3dist.models.vbpr:VBPR"})
    monkeypatch.setattr(registry, "MODELS", dict(registry.MODELS))
    monkeypatch.setitem(registry.RECOMMENDERS, "yours", "m3dist.models.vbpr:VBPR")
    monkeypatch.setitem(FUSIONS.own, "best", "extending:Best")


@pytest.mark.parametrize("line", COMMAND_LINES, ids=str)
def test_a_command_of_the_docs_is_one(line: Line, own_names: None) -> None:
    checked(list(line.arguments))


def test_every_command_is_shown() -> None:
    """Which also says that the pages are read at all."""
    shown = {line.arguments[0] for line in COMMAND_LINES}
    assert shown == set(COMMANDS)
    assert len(COMMAND_LINES) > 40


QUICK = [
    line
    for line in COMMAND_LINES
    if {"--print-config", "--format", "init"} & set(line.arguments)
    and not {"...", "export"} & set(line.arguments)  # export needs a run
]


def test_quick_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(QUICK) >= 6
    for at, line in enumerate(QUICK):
        here = tmp_path / str(at)
        assert call("init", here) == 0
        monkeypatch.chdir(here)
        capsys.readouterr()
        assert call(*line.arguments) == 0, line
        printed = capsys.readouterr().out
        if "--format" in line.arguments:
            kinds = {document["kind"] for document in yaml.safe_load_all(printed)}
            assert kinds & {"RayJob", "PersistentVolumeClaim"}, line
        if "--print-config" in line.arguments:
            assert configs.validate(yaml.safe_load(printed)) == Config()


@pytest.mark.parametrize("name", NAMES)
def test_config_keys_of_a_page_are_keys(name: str) -> None:
    known, page = set(configs.known_keys()), ROOT / name
    sections = {key.split(".")[0] for key in known if "." in key}
    wrong = []
    for key in re.findall(r"`(?:m3dist train )?([a-z_0-9]+(?:\.[a-z_0-9]+)+)(?:=|: |`)", page.read_text()):
        free = key.startswith(("baseline.options.", "cluster.runtime_env.", "deepspeed."))
        if key.split(".")[0] in sections and key not in known and not free:
            wrong.append(key)
    assert not wrong
    for language, text in blocks(page):
        if language not in ("", "yaml"):
            continue
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError:
            continue
        if isinstance(values, dict) and set(values) <= {key for key in known if "." not in key}:
            configs.validate(values, name)


@pytest.mark.parametrize("name", NAMES)
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("name", [name for name in NAMES if name != "docs/code.md"])  # whose paths are in m3dist/
def test_files_that_a_page_names_are_there(name: str) -> None:
    path = r"`((?:tests|docs|cluster|tune|benchmarks|m3dist)/[\w./-]+\.\w+)`"
    assert not [found for found in re.findall(path, (ROOT / name).read_text()) if not (ROOT / found).exists()]


def test_code_beside_equations_is_there() -> None:
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs/method.md").read_text(), re.M)
    assert len(named) > 8
    for name in named:
        found: Any = m3dist
        for part in name.split(".")[1:]:
            if isinstance(found, ModuleType) and not hasattr(found, part):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)
        assert found.__doc__, name


def test_written_pages_are_up_to_date() -> None:
    script = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    told = set(re.findall(r"[\w/-]+\.md", text.partition("\nnav:")[2].partition("\nnot_in_nav:")[0]))
    there = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert {page for page in told if "/" not in page} == there
    assert all((ROOT / "docs" / page).exists() for page in told)


def test_pictures_of_the_docs_are_small_and_shown() -> None:
    text = "".join(page.read_text() for page in PAGES)
    pictures = sorted((ROOT / "docs").glob("*.png"))
    assert len(pictures) == 4
    assert not [one.name for one in pictures if one.stat().st_size > 150_000 or f"{one.name})" not in text]


def test_links_out_of_the_site_lead_to_the_repository_or_nowhere() -> None:
    spec = importlib.util.spec_from_file_location("outside", ROOT / "docs/outside.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="results/ml1m.md"))
    text = "[a](../data.md#x), [b](../../m3dist/api.py), ![c](../../c.png)"
    for repository, link in (
        (None, "b"),
        ("https://example.com/r/", "[b](https://example.com/r/blob/main/m3dist/api.py)"),
    ):
        made = hook.on_page_markdown(text, page, SimpleNamespace(repo_url=repository), [])
        assert made == f"[a](../data.md#x), {link}, ![c](../../c.png)"


def test_the_version_is_one() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == m3dist.__version__


NAMES_WITH_NUMBERS = r"NDCG@10|MovieLens \w+|H100|M3-InvRL"


def test_figures_of_the_readme_stand_in_the_docs() -> None:
    """Every number of the column "measured" is one of a page that its row links to."""
    rows = [line.split("|")[1:-1] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| [")]
    seen = 0
    for what, measured, _ in rows:
        text = " ".join((ROOT / page).read_text() for page in re.findall(r"\]\((docs/[\w/-]+\.md)", what + measured))
        for number in re.findall(r"\d[\d.,^]*\d|\d", re.sub(NAMES_WITH_NUMBERS, "", re.sub(r"\(.*?\)", "", measured))):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), f"{number} of {what.strip()[:30]}"
            seen += 1
    assert seen > 12


def _run(page: Path, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run all Python of a page, as one module of that name in a folder of its own."""
    monkeypatch.chdir(folder)
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name}", "exec"), module.__dict__)
    return module.__dict__


def test_first_steps_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(ROOT / "docs/start.md", "starting", tmp_path, monkeypatch)["run"]
    assert (tmp_path / "runs/python/result.json").exists()
    assert run.recommend(k=3).num_rows == 100 * 3


def test_an_index_that_answers(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first Python of docs/serving.md, on an export of the tests' run."""
    pytest.importorskip("faiss", reason="faiss is not installed; pip install '.[export]'")
    assert call("export", finished_run, tmp_path / "index", "--format", "faiss") == 0
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    first = next(text for language, text in blocks(ROOT / "docs/serving.md") if language == "python")
    exec(compile(first, "serving.md", "exec"), found)
    ours = m3dist.load(finished_run, "cpu").recommend([7], k=20, rules=m3dist.Rules(include_seen=True))
    assert found["answer"].to_pylist() == ours["item"].to_pylist()


@pytest.mark.timeout(600)
def test_extending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_names: None) -> None:
    """The recommender trains as the page says; its fusion and its stage train by their names."""
    found = _run(ROOT / "docs/extend.md", "extending", tmp_path, monkeypatch)
    assert found["run"].config.model == "two-towers"
    assert found["dataset"].user_ids[3].as_py() == "user3"
    assert found["dataset"].size("train") == 600
    small = ["synthetic.users=100", "synthetic.items=80", "backbone.loss=softmax", "merge.epochs=2", "align.epochs=1"]
    values = [*small, "merge.masks=learned", "invariance.rounds=1", "merge.fusion=best", f"out={tmp_path / 'best'}"]
    best = m3dist.train(None, configs.load(None, values), quiet=True)
    rows = best.recommend(k=1).to_pylist()
    weights = {tuple(value for name, value in row.items() if name.startswith("weight_")) for row in rows}
    assert [sorted(one) for one in weights] == [[0.0, 0.0, 1.0]]  # of all users the same member's
    leaning = m3dist.train(None, configs.load(None, [*small, "model=leaning", f"out={tmp_path / 'lean'}"]), quiet=True)
    stages = leaning.result["stages"]
    assert stages["lean"]["validation"]["ndcg@10"] >= stages["merge"]["validation"]["ndcg@10"]
