"""What travels with a job: the library, and the small files its command names. Data does not travel.

Files keep their places relative to each other and to the folder the command was given in, so a relative path in a
config means the same on the cluster.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

import m3dist
from m3dist import config as configs
from m3dist import credentials
from m3dist.cluster.settings import Cluster

LARGEST = 10 << 20  # bytes of one file; what is larger is data
STOP = 45  # seconds for a stopped job to save and to let go of its workers; Ray kills after 3, which leaves some behind
_PLACES = ("data", "out", "artifacts", "warm_from")  # config keys that name folders which every node must reach
KEEP = ".m3dist-job"  # an empty file that keeps the folder to start in
CARRIED = "M3DIST_FILES"  # variable that holds the command's files where no volume does: JSON of path to text
EXCLUDES = ["**/__pycache__", "*.pyc"]


@dataclass(frozen=True)
class _Path:
    """What a path among a command's arguments must be on the cluster."""

    shared: str = ""  # what every node must reach: "" nothing, "itself", or the "parent" of what is not there yet
    uri: bool = True  # whether the command takes a URI
    default: str = ""  # where the command writes when it is not given


_PATHS = {  # by verb, by the name of click's parameter; train and tune have theirs in a config
    "prepare": {"src": _Path(uri=False), "dst": _Path("parent", uri=False)},
    "features": {"src": _Path(uri=False), "model": _Path(uri=False), "out": _Path("parent", uri=False)},
    "train": {"resume": _Path("itself")},
    "evaluate": {"run": _Path()},
    "recommend": {"run": _Path(), "out": _Path("parent"), "new_items": _Path(uri=False)},
    "export": {"run": _Path(), "dst": _Path("parent")},
    "report": {"runs": _Path(), "out": _Path("parent"), "pictures": _Path(uri=False)},
    "reproduce": {
        "data": _Path("itself", uri=False),
        "temporal": _Path("itself", uri=False),
        "out": _Path("itself", uri=False, default="studies/NAME"),
    },
}


_HERE = ("submit", "jobs", "doctor", "init", "docs")  # commands that no job runs


@dataclass
class Job:
    """A command for the cluster."""

    arguments: list[str]  # the verb and what follows, as given
    files: list[Path] = field(default_factory=list)  # absolute paths that travel
    places: dict[str, str] = field(default_factory=dict)  # name: folder or URI that every node must reach
    paths: dict[str, str] = field(default_factory=dict)  # name: every folder, file or URI that the command touches
    config: configs.Config | None = None  # that a command trains with: its own, a search's base, a study's --set
    stages: str = ""
    dataset: str = ""
    trials: int = 0  # of a search at once, where its file says how many

    @property
    def verb(self) -> str:
        return self.arguments[0]


def plan(arguments: Sequence[str]) -> Job:
    """Find what a command needs. Raises ValueError: unknown verb, a bad config, or places that nodes cannot reach."""
    from m3dist.cli.main import COMMANDS

    job = Job(list(arguments))
    if not job.arguments or job.verb not in COMMANDS:
        possible = ", ".join(name for name in COMMANDS if name not in _HERE)
        raise ValueError(f"expected a command after --, such as: -- train config.yaml; one of {possible}")
    if job.verb in _HERE:
        raise ValueError(f"{job.verb}: runs on this machine, not in a job")
    given = _given(job.arguments)
    paths = _paths(job.verb, given)
    stay = [given.get(name) for name, path in paths.items() if path.shared]
    for argument in job.arguments[1:]:
        if "=" not in argument and argument not in stay and Path(argument).is_file():
            _travel(Path(argument).resolve(), job.files)
    _places(job, given, paths)
    if job.verb == "train":
        _training(job, given)
    if job.verb == "tune":
        _search(job)
    if job.verb == "reproduce":
        job.config = configs.load(None, given.get("overrides") or [])
    job.dataset = job.dataset or job.places.get("data", "")
    job.paths |= job.places
    for name, value in job.places.items():
        _reachable(name, value)
    return job


def _training(job: Job, given: dict[str, Any]) -> None:
    """The config of `train`; where it goes on with a run that can be read from here, that run's own."""
    words = [word for word in job.arguments[1:] if not word.startswith("-")]
    run = given.get("resume")
    if isinstance(run, str):
        from m3dist.storage.folders import Folder

        words = [word for word in words if word != run]
        try:
            with Folder(run).local("config.yaml") as path:
                job.config = configs.load_own(path, f"{run}/config.yaml", words)
        except (OSError, configs.ConfigError):  # on storage that only the nodes reach; they will tell if it is no run
            job.config = configs.load(None, words)  # what was given with it sizes pods
            return
        job.places |= {k: v for k in ("data", "artifacts") if (v := getattr(job.config, k)) and v != "synthetic"}
    else:
        file = words[0] if words and "=" not in words[0] else None
        job.config = configs.load(file, words[1:] if file else words)
        job.places = {k: v for k in _PLACES if (v := getattr(job.config, k)) and v != "synthetic"}
    job.stages, job.dataset = ",".join(job.config.stage_names), job.config.data


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
    job.config, job.trials = base, search.concurrency if isinstance(search.concurrency, int) else 0
    job.stages, job.dataset = ",".join(base.stage_names), base.data
    given = {"data": base.data, "out": search.out or f"runs/search-{Path(words[0]).stem}", "artifacts": base.artifacts}
    job.places = {name: value for name, value in given.items() if value and value != "synthetic"}


def _travel(path: Path, files: list[Path]) -> None:
    """Add a file and, for a search, the config that its `base` names; no other value of a file names a file."""
    if path in files:
        return
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path}: {size >> 20} MiB is data, which does not travel; put it on shared storage")
    files.append(path)
    if path.suffix not in (".yaml", ".yml"):
        return
    values = _yaml(path)
    credentials.refuse_in(str(path), values)
    base = values.get("base") if isinstance(values, dict) else None
    if isinstance(base, str) and (there := (path.parent / base).resolve()).is_file():
        if not any(there.is_relative_to(folder) for folder in (Path.cwd().resolve(), path.parent)):
            raise ValueError(
                f"{path}: base: {base} is outside of the current folder and of that of the search file, so it does not "
                "travel; copy it there"
            )
        _travel(there, files)


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _places(job: Job, given: dict[str, Any], paths: dict[str, _Path]) -> None:
    """Folders named by key=value, or by arguments and options. Raises ValueError: one is out of reach."""
    for word in job.arguments[1:]:
        name, equals, value = word.partition("=")
        if name in _PLACES and equals and value != "synthetic":
            job.places[name] = value
        elif name in _PLACES and value == "synthetic":
            job.places.pop(name, None)
    for name, path in paths.items():
        found = given.get(name)
        if not isinstance(found, str | tuple | list):  # click has its own marks for what was not given
            if path.default:
                _reachable(name, path.default, path.uri, default=True)
            continue
        for folder in [found] if isinstance(found, str) else found:
            if Path(folder).resolve() in job.files:
                continue
            _reachable(name, folder, path.uri)
            job.paths[name] = folder
            if path.shared:
                job.places[name] = folder if path.shared == "itself" else _parent(folder)


def _paths(verb: str, given: dict[str, Any]) -> dict[str, _Path]:
    """The paths of a command. A source that tasks or actors on all nodes read must be on all of them."""
    paths = dict(_PATHS.get(verb, {}))
    if verb == "prepare" and given.get("engine") == "ray":
        paths["src"] = _Path("itself", uri=False)
    if verb == "prepare" and "name" in given:  # of a download
        paths["folder"] = _Path("itself", uri=False, default="data/raw")
    if verb == "features" and given.get("kind") == "audio":
        del paths["model"]  # a name
    if verb == "features" and str(given.get("workers")).isdigit() and int(given["workers"]):
        paths |= {name: _Path("itself", uri=False) for name in ("src", "model") if name in paths}
    return paths


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
    (folder / start / KEEP).touch()
    named = {
        word: os.path.relpath(path, here)
        for word in job.arguments[1:]
        if "=" not in word and (path := Path(word).resolve()) in job.files
    }
    return start, [job.verb, *(named.get(word, word) for word in job.arguments[1:])]


def entrypoint(job: Job, arguments: list[str], start: str, version: str | None) -> list[str]:
    """The words of the command that the cluster runs, in the folder `start` of what travelled."""
    enter = ["python", "-m", "m3dist.cluster.enter"]
    if start != ".":
        enter += ["--start", start]
    for name, value in job.places.items():
        enter += ["--place", f"{name}={value}"]
    if version:
        enter += ["--version", version]
    return [*enter, "--", *arguments]


def runtime_env(given: Cluster) -> dict[str, Any]:
    """What Ray prepares for a job on every node: variables and packages."""
    told = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP)}
    env: dict[str, Any] = {"env_vars": told | given.env}
    for tool in ("pip", "uv"):
        if packages := getattr(given.runtime_env, tool):
            env[tool] = list(packages)
    return env


def travelling(folder: Path, version: str | None) -> dict[str, Any]:
    """What Ray unpacks on every node: the files, and this library unless the cluster has `version` installed."""
    env: dict[str, Any] = {"working_dir": str(folder)}
    if version is None:
        env |= {"py_modules": [str(Path(m3dist.__file__).parent)], "excludes": EXCLUDES}
    return env


def settings(job: Job, overrides: Sequence[str] = (), file: str | None = None) -> Cluster:
    """The `cluster:` section for a job: that of the command's config, or of `file`, with KEY=VALUE overrides.

    Raises ValueError: a bad key or value.
    """
    base = configs.load(file).cluster if file else job.config.cluster if job.config else Cluster()
    changed = configs.read(base.model_dump(exclude_unset=True), list(overrides), "--set")
    return configs.validate(changed, "cluster", Cluster)
