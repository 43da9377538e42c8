"""Checks of a place to run, one line each: green, or what is wrong and the fix.

Outside, from the client: address, login, dashboard extra, Ray's version. Inside, as a small job on the cluster:
versions of every node, resources, storage, collectives, memory.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shlex
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m3dist.cluster import package, place
from m3dist.config import Config

MARK = "m3dist-check "  # before each line that the inside sends out
_EXTRA = ("aiohttp", "aiohttp_cors", "opencensus", "prometheus_client")  # of ray[default]


@dataclass(frozen=True)
class Check:
    """One line. state: ok, fault, or skipped where there was nothing to check."""

    name: str
    state: str
    text: str
    fix: str = ""


def ok(name: str, text: str) -> Check:
    return Check(name, "ok", text)


def fault(name: str, text: str, fix: str) -> Check:
    return Check(name, "fault", text, fix)


def skipped(name: str, text: str) -> Check:
    return Check(name, "skipped", text)


def extra() -> Check:
    """Is ray[default], which brings the dashboard and the job API, installed here?"""
    missing = [module for module in _EXTRA if importlib.util.find_spec(module) is None]
    if missing:
        return fault(
            "dashboard", f"ray[default] is not whole here: no {', '.join(missing)}", "pip install 'ray[default]'"
        )
    return ok("dashboard", "ray[default] is installed here")


def login() -> Check:
    """Are a token and the auth mode here in a usable state?"""
    mode = os.environ.get("RAY_AUTH_MODE", "unset")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not Path(path).is_file():
        return fault("auth", f"RAY_AUTH_TOKEN_PATH={path}: no such file", "write the cluster's token there, mode 600")
    if path and stat.S_IMODE(Path(path).stat().st_mode) & 0o077:
        return fault("auth", f"{path}: others on this machine can read the token", f"chmod 600 {path}")
    default = Path.home() / ".ray" / "auth_token"
    if mode == "token" and not (path or os.environ.get("RAY_AUTH_TOKEN") or default.is_file()):
        fix = "set RAY_AUTH_TOKEN_PATH to a file that holds the cluster's token"
        return fault("auth", "RAY_AUTH_MODE=token, but there is no token here", fix)
    return ok("auth", f"RAY_AUTH_MODE is {mode}")


def versions(here: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> Check:
    """Ray, m3dist and Python's minor version must be one everywhere; torch one on all nodes."""
    for what in ("ray", "m3dist", "python", "torch"):
        seen = {node: _short(what, each[what]) for node, each in nodes.items()}
        if what != "torch" and here:
            seen = {"here": _short(what, here[what]), **seen}
        if len(set(seen.values())) > 1:
            listed = ", ".join(f"{version} on {node}" for node, version in seen.items())
            return fault("versions", f"{what} differs: {listed}", f"install one version of {what} everywhere")
    first = next(iter(nodes.values()))
    return ok("versions", ", ".join(f"{what} {first[what]}" for what in ("python", "ray", "torch", "m3dist")))


def _short(what: str, version: str) -> str:
    return ".".join(version.split(".")[:2]) if what == "python" else version


def resources(config: Config | None, nodes: list[dict[str, Any]], facts: dict[str, dict[str, Any]]) -> Iterator[Check]:
    """CPUs and GPUs against what the config asks for."""
    from m3dist.distributed import ray_train as launch

    total = {name: sum(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    has = f"{len(nodes)} node(s), {total['CPU']:g} CPU, {total['GPU']:g} GPU"
    for node, found in facts.items():
        promised = next(n["Resources"].get("GPU", 0) for n in nodes if n["NodeID"].startswith(node.split()[-1]))
        if promised and not found["cuda"]:
            fix = "install the driver and torch's CUDA build there, or start it with --num-gpus 0"
            yield fault("gpus", f"{node}: Ray counts {promised:g} GPU, torch sees none", fix)
            return
    if config is None:
        yield ok("resources", has)
        return
    workers, each = launch.least_workers(config), launch.per_worker(config)
    if not workers:  # a run in one process reserves nothing, but needs a GPU where it uses one
        each = {name: n for name, n in each.items() if name == "GPU"}
    try:
        if each and not config.autoscaling:
            launch.require("workers", workers or 1, each, nodes)
    except ValueError as error:
        text, _, fix = str(error).partition("; ")
        yield fault("resources", text, fix)
        return
    yield ok("resources", f"{has}; the config asks for {workers} worker(s)")


def memory(config: Config, facts: dict[str, dict[str, Any]]) -> Check:
    """Free memory of every node against the dry run's prediction."""
    from m3dist import pipeline
    from m3dist.distributed import ray_train as launch
    from m3dist.training import memory

    if config.data == "synthetic":  # the same formula, on planted data made for the purpose
        with tempfile.TemporaryDirectory() as folder:
            trial = config.model_copy(update={"out": folder})
            need = memory.predict(trial, pipeline.open_data(trial))["total"]
    else:
        need = memory.predict(config, pipeline.open_data(config))["total"]
    least = min(facts, key=lambda node: facts[node]["free"])
    free = facts[least]["free"]
    together = max(1, math.ceil(launch.least_workers(config) / len(facts)))  # workers of a node, spread evenly
    said = f"a worker needs about {need / 2**30:.2f} GiB; {least} has {free / 2**30:.2f} GiB free"
    said += f" for {together} of them" if together > 1 else ""
    if need * together > free:
        return fault("memory", said, "free some, take larger nodes, or lower evaluation.block, batch_size and dim")
    return ok("memory", said)


def inside(config: Config | None, here: dict[str, Any], places: dict[str, str]) -> Iterator[Check]:
    """The checks that run on the cluster itself."""
    from m3dist.cluster import probe
    from m3dist.distributed import ray_train as launch

    launch.connect()
    facts = probe.all_facts()
    yield versions(here, facts)
    yield from resources(config, probe.nodes(), facts)
    faults = []
    for name, value in places.items():
        found = probe.storage(name, value)
        faults += found
        for each in found:
            text, _, fix = each.rpartition("; ")
            yield fault("storage", text, fix)
    if not places:
        yield skipped("storage", "no CONFIG or --storage names a folder to write and read")
    elif not faults:
        yield ok("storage", f"{', '.join(places.values())}: every node reads what every node writes")
    gpu = bool(config and config.use_gpu is True) and any(each["cuda"] for each in facts.values())
    backend = "nccl" if gpu else "gloo"
    world, wrong = probe.all_reduce(backend)
    if wrong:
        fix = "open all ports between the nodes; set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to their network"
        yield fault(backend, f"an all-reduce between {world} processes failed: {wrong}", fix)
    else:
        yield ok(backend, f"an all-reduce between {world} processes adds up")
    if config is None:
        yield skipped("memory", "no CONFIG whose memory could be predicted")
    elif config.data != "synthetic" and any(config.data in each for each in faults):
        yield skipped("memory", "the data cannot be read")
    else:
        yield memory(config, facts)


def outside(address: str, arguments: list[str], places: dict[str, str], show: Callable[[Check], None]) -> bool:
    """All checks of the cluster at `address`, shown as they are made; whether all are green."""
    from m3dist.cluster import jobs, probe

    green = True

    def tell(check: Check) -> None:
        nonlocal green
        green = green and check.state != "fault"
        show(check)

    for check in (extra(), login()):
        tell(check)
    if not green:
        return False
    try:
        client = place.client(address)
    except ValueError as error:
        text, _, fix = str(error).partition("; ")
        tell(fault("auth" if "token" in text else "address", text, fix))
        return False
    tell(ok("address", f"{address} answers"))
    job = package.plan(["train", *arguments]) if arguments else None
    places = {**(job.places if job else {}), **places}
    sent = {"arguments": arguments, "places": places, "here": probe.facts()}
    with tempfile.TemporaryDirectory(prefix="m3dist-doctor-") as folder:
        start, words = package.stage(job, Path(folder)) if job else (".", [])
        sent["arguments"] = words[1:]
        command = shlex.join(["python", "-m", "m3dist.cluster.doctor", json.dumps(sent)])
        (Path(folder) / start / ".m3dist-job").touch()
        try:
            number = client.submit_job(
                entrypoint=f"cd {shlex.quote(start)} && exec {command}",
                runtime_env=package.runtime_env(Path(folder), None),
                metadata={"name": "doctor", "verb": "doctor"},
                submission_id=f"m3dist-doctor-{uuid.uuid4().hex[:8]}",
            )
        except (RuntimeError, OSError) as error:
            tell(fault("jobs", f"the cluster takes no job: {place.explain(error)}", "look at the head's log"))
            return False
    pending, other = "", []

    def line(text: str) -> None:
        nonlocal pending
        *whole, pending = (pending + text).split("\n")
        for each in whole:
            if each.startswith(MARK):
                tell(Check(**json.loads(each.removeprefix(MARK))))
            elif each.strip():
                other.append(each)

    if code := jobs.follow(client, number, line):
        last = place.redacted((other or ["no output"])[-1])
        tell(fault("jobs", f"the check's job ended with code {code}: {last}", f"m3dist jobs logs {number}"))
    return green


def main(text: str) -> None:
    """The job: checks as JSON lines."""
    from m3dist import config as configs

    sent = json.loads(text)
    words = sent["arguments"]
    path = words[0] if words and "=" not in words[0] else None
    config = configs.load(path, words[1:] if path else words) if words else None
    os.environ.setdefault("RAY_ADDRESS", "auto")
    for check in inside(config, sent["here"], sent["places"]):
        print(MARK + json.dumps(asdict(check)), flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
