"""What travels with a job: the library, and the small files its command names. Data does not travel.

Files keep their places relative to each other and to the folder the command was given in, so a relative path in a
config means the same on the cluster.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

import m3dist
from m3dist import config as configs

LARGEST = 10 << 20  # bytes of one file; what is larger is data
STOP = 45  # seconds for a stopped job to save and to let go of its workers; Ray kills after 3, which leaves some behind
_CODE = (".yaml", ".yml", ".json", ".toml", ".txt", ".py")
_PLACES = ("data", "out", "artifacts")  # config keys that name folders which every node must reach
EXCLUDES = ["**/__pycache__", "*.pyc"]


@dataclass(frozen=True)
class _Path:
    """What a path among a command's arguments must be on the cluster."""

    shared: str = ""  # what every node must reach: "" nothing, "itself", or the "parent" of what is not there yet
    uri: bool = True  # whether the command takes a URI
    default: str = ""  # where the command writes when it is not given


_PATHS = {  # by verb, by the name of click's parameter; train and tune have theirs in a config
    "prepare": {"src": _Path(uri=False), "dst": _Path("parent", uri=False)},
    "train": {"resume": _Path("itself")},
    "evaluate": {"run": _Path()},
    "recommend": {"run": _Path(), "out": _Path("parent")},
    "reproduce": {
        "data": _Path("itself", uri=False),
        "temporal": _Path("itself", uri=False),
        "out": _Path("itself", uri=False, default="studies/NAME"),
    },
}


@dataclass
class Job:
    """A command for the cluster."""

    arguments: list[str]  # the verb and what follows, as given
    files: list[Path] = field(default_factory=list)  # absolute paths that travel
    places: dict[str, str] = field(default_factory=dict)  # name: folder or URI that every node must reach
    config: configs.Config | None = None  # where the verb is `train`
    stages: str = ""
    dataset: str = ""

    @property
    def verb(self) -> str:
        return self.arguments[0]


def plan(arguments: Sequence[str]) -> Job:
    """Find what a command needs. Raises ValueError: unknown verb, a bad config, or places that nodes cannot reach."""
    from m3dist.cli.main import COMMANDS

    job = Job(list(arguments))
    if not job.arguments or job.verb not in COMMANDS:
        raise ValueError(f"expected a command after --, such as: -- train config.yaml; one of {', '.join(COMMANDS)}")
    if job.verb in ("submit", "jobs", "doctor", "init"):
        raise ValueError(f"{job.verb}: runs on this machine, not in a job")
    given = _given(job.arguments)
    written = [given.get(name) for name, path in _PATHS.get(job.verb, {}).items() if path.shared == "parent"]
    for argument in job.arguments[1:]:
        if "=" not in argument and argument not in written and Path(argument).is_file():
            _travel(Path(argument).resolve(), job.files)
    _places(job, given)
    if job.verb == "train" and "--resume" not in job.arguments:
        words = [word for word in job.arguments[1:] if not word.startswith("-")]
        path = words[0] if words and "=" not in words[0] else None
        job.config = configs.load(path, words[1:] if path else words)
        job.stages, job.dataset = ",".join(job.config.stage_names), job.config.data
        job.places = {k: v for k in _PLACES if (v := getattr(job.config, k)) and v != "synthetic"}
    if job.verb == "tune":
        _search(job)
    job.dataset = job.dataset or job.places.get("data", "")
    for name, value in job.places.items():
        _reachable(name, value)
    return job


def _reachable(name: str, value: str, uri: bool = True, default: bool = False) -> None:
    """Raises ValueError when a node other than this machine cannot find the path."""
    if "://" in value and not uri:
        raise ValueError(
            f"{name}={value}: this command takes no URI here; give the absolute path of a folder that every node mounts"
        )
    if "://" not in value and not os.path.isabs(value):
        raise ValueError(
            f"{name}={value}{' (the default)' if default else ''}: a relative path is lost with the job's temporary "
            f"folder on the cluster; give an absolute path that every node mounts, such as "
            f"/mnt/shared/{Path(value).name}" + (f", or a URI such as s3://bucket/{Path(value).name}" if uri else "")
        )


def _search(job: Job) -> None:
    """What a search needs; its own folder has a default that would be lost with the job."""
    from m3dist.search import space

    words = [word for word in job.arguments[1:] if not word.startswith("-")]
    if not words or "=" in words[0]:
        raise ValueError("tune: expected a search file, such as: -- tune search.yaml out=/mnt/shared/search")
    search, base = space.read(words[0], words[1:])
    job.stages, job.dataset = ",".join(base.stage_names), base.data
    given = {"data": base.data, "out": search.out or f"runs/search-{Path(words[0]).stem}", "artifacts": base.artifacts}
    job.places = {name: value for name, value in given.items() if value and value != "synthetic"}


def _travel(path: Path, files: list[Path]) -> None:
    """Add a file and, for YAML, the small files that its values name relative to it or to the current folder."""
    if path in files:
        return
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path}: {size >> 20} MiB is data, which does not travel; put it on shared storage")
    files.append(path)
    if path.suffix not in (".yaml", ".yml"):
        return
    for value in _strings(_yaml(path)):
        for base in (path.parent, Path.cwd()):
            there = base / value
            if len(value) < 4096 and there.suffix in _CODE and there.is_file():
                _travel(there.resolve(), files)
                break


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for each in inner for text in _strings(each)]


def _places(job: Job, given: dict[str, Any]) -> None:
    """Folders named by key=value, or by the arguments and options in _PATHS. Raises ValueError: one is out of reach."""
    for word in job.arguments[1:]:
        name, equals, value = word.partition("=")
        if name in _PLACES and equals and value != "synthetic":
            job.places[name] = value
        elif name in _PLACES and value == "synthetic":
            job.places.pop(name, None)
    for name, path in _PATHS.get(job.verb, {}).items():
        folder = given.get(name)
        if not isinstance(folder, str):  # click has its own marks for what was not given
            if path.default:
                _reachable(name, path.default, path.uri, default=True)
            continue
        if Path(folder).resolve() in job.files:
            continue
        _reachable(name, folder, path.uri)
        if path.shared:
            job.places[name] = folder if path.shared == "itself" else _parent(folder)


def _given(arguments: Sequence[str]) -> dict[str, Any]:
    """The words of a command by the names of its parameters, as given: neither checked nor converted."""
    from m3dist.cli.main import cli

    command: click.Command = cli
    words = list(arguments)
    context = click.Context(command, resilient_parsing=True)
    while isinstance(command, click.Group):
        inner = command.get_command(context, words[0]) if words else None
        if inner is None:
            return {}
        command, words = inner, words[1:]
        context = click.Context(command, resilient_parsing=True)
    return dict(command.make_parser(context).parse_args(words)[0])


def _parent(path: str) -> str:
    """The folder of a path or URI; what follows ? in a URI stays."""
    if "://" not in path:
        return str(Path(path).parent)
    scheme, _, rest = path.partition("://")
    rest, mark, query = rest.partition("?")
    return f"{scheme}://{rest.rstrip('/').rsplit('/', 1)[0]}{mark}{query}"


def stage(job: Job, folder: Path) -> tuple[str, list[str]]:
    """Copy the job's files into `folder`; (folder to start in, relative; the arguments with paths made relative)."""
    here = Path.cwd().resolve()
    root = Path(os.path.commonpath([here, *(path.parent for path in job.files)]))
    for path in job.files:
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    start = os.path.relpath(here, root)
    (folder / start).mkdir(parents=True, exist_ok=True)
    (folder / start / ".m3dist-job").touch()  # keeps the folder in the package
    named = {
        word: os.path.relpath(path, here)
        for word in job.arguments[1:]
        if "=" not in word and (path := Path(word).resolve()) in job.files
    }
    return start, [job.verb, *(named.get(word, word) for word in job.arguments[1:])]


def entrypoint(start: str, arguments: list[str], places: dict[str, str], version: str | None) -> str:
    """The shell command that the cluster runs."""
    enter = ["python", "-m", "m3dist.cluster.enter"]
    for name, value in places.items():
        enter += ["--place", f"{name}={value}"]
    if version:
        enter += ["--version", version]
    return f"cd {shlex.quote(start)} && exec {shlex.join([*enter, '--', *arguments])}"


def runtime_env(folder: Path, version: str | None) -> dict[str, Any]:
    """What Ray unpacks on every node: the files, and this library unless the cluster has `version` installed."""
    told = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP)}
    env: dict[str, Any] = {"working_dir": str(folder), "env_vars": told}
    if version is None:
        env |= {"py_modules": [str(Path(m3dist.__file__).parent)], "excludes": EXCLUDES}
    return env
