"""Jobs on a cluster: submit, follow, list, stop."""

from __future__ import annotations

import asyncio
import getpass
import re
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import m3dist
from m3dist.cluster import package, place
from m3dist.cluster.settings import Cluster

_END = ("SUCCEEDED", "FAILED", "STOPPED")
_LOST = 30.0  # seconds without an answer before following gives up


def submit(client: Any, job: package.Job, given: Cluster, name: str | None = None, version: str | None = None) -> str:
    """Send a command to the cluster; the job's id. Raises ClusterFailed when the cluster does not take it.

    given: the settings; a running cluster follows their variables and packages. version: of m3dist, as installed on
    the cluster; None sends this one's code.
    """
    metadata = {"name": name or job.verb, "verb": job.verb, "stages": job.stages, "dataset": job.dataset}
    metadata |= {"out": job.places.get("out", job.places.get("resume", "")), "user": getpass.getuser()}
    metadata |= {"m3dist": version or m3dist.__version__}
    label = re.sub(r"[^A-Za-z0-9_-]+", "-", name or job.verb)
    with tempfile.TemporaryDirectory(prefix="m3dist-job-") as folder:
        start, words = package.stage(job, Path(folder))
        try:
            return client.submit_job(
                entrypoint=f"exec {shlex.join(package.entrypoint(job, words, start, version))}",
                runtime_env=package.runtime_env(given) | package.travelling(Path(folder), version),
                metadata={key: value for key, value in metadata.items() if value},
                submission_id=f"m3dist-{label}-{uuid.uuid4().hex[:8]}",
            )
        except (RuntimeError, OSError) as error:
            raise place.ClusterFailed(f"the cluster did not take the job: {place.explain(error)}") from None


def follow(client: Any, job: str, write: Callable[[str], Any] | None = None) -> int:
    """Write a job's log as it grows, until it ends; its exit code (130 when it was stopped).

    Raises ValueError when there is no such job, and ClusterFailed when the cluster does not answer any more.
    """
    import aiohttp

    write = write or _out
    info(client, job)
    sent, lost = 0, 0.0

    def tell(text: str) -> None:
        nonlocal sent
        sent += len(text)
        write(text)

    while True:
        try:  # after a lost connection the log comes again from its start
            asyncio.run(_tail(client, job, sent, tell))
            details = client.get_job_info(job)
            lost = 0.0
        except (RuntimeError, OSError, aiohttp.ClientError) as error:  # not all of aiohttp's errors are an OSError
            lost = lost or time.monotonic()
            if time.monotonic() - lost > _LOST:
                raise place.ClusterFailed(
                    f"{job}: the cluster does not answer any more ({place.explain(error)}); submit the same "
                    f"command again when it is back: it goes on from its checkpoints"
                ) from None
            time.sleep(1)
            continue
        if str(details.status.value) in _END:
            text = client.get_job_logs(job)
            if len(text) > sent:  # what came between the last look and the end
                write(text[sent:])
            return _code(details)
        time.sleep(0.5)


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def _tail(client: Any, job: str, sent: int, write: Callable[[str], Any]) -> None:
    at = 0
    async for text in client.tail_job_logs(job):
        if at + len(text) > sent:
            write(text[max(0, sent - at) :])
        at += len(text)


def _code(details: Any) -> int:
    status = str(details.status.value)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return 130
    if details.driver_exit_code and details.driver_exit_code > 0:
        return int(details.driver_exit_code)
    sys.stderr.write(f"error: {_ended(details)}\n")
    return 3


def _ended(details: Any) -> str:
    """One line for a job whose own process told no exit code: it was killed, or never began."""
    if details.driver_exit_code:
        return f"the job's process was ended by signal {-details.driver_exit_code}; submitted again, it goes on"
    lines = [line for line in (details.message or "").splitlines() if line.strip()]
    return f"the cluster lost the job ({lines[0] if lines else 'no reason given'}); submitted again, it goes on"


def info(client: Any, job: str) -> Any:
    """Details of a job. Raises ValueError when the cluster has no such job."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise ValueError(f"{job}: the cluster has no such job; `m3dist jobs list`") from None
        raise place.ClusterFailed(f"{job}: {place.explain(error)}") from None


def listed(client: Any) -> list[dict[str, str]]:
    """Every job that was submitted to the cluster, the latest first."""
    rows = []
    for details in sorted(client.list_jobs(), key=lambda each: each.start_time or 0, reverse=True):
        if details.submission_id:
            kept = details.metadata or {}
            ended = (details.end_time or time.time() * 1000) - (details.start_time or time.time() * 1000)
            row = {"job": details.submission_id, "status": str(details.status.value), "seconds": f"{ended / 1000:.0f}"}
            rows.append(row | {key: kept.get(key, "") for key in ("name", "stages", "dataset", "out")})
    return rows


def stop(client: Any, job: str, patience: float = package.STOP + 30) -> str:
    """End a job and wait until it has ended; its last status. Raises ClusterFailed when it does not end."""
    if str(info(client, job).status.value) not in _END:
        client.stop_job(job)
    deadline = time.monotonic() + patience
    while (status := str(info(client, job).status.value)) not in _END:
        if time.monotonic() > deadline:
            raise place.ClusterFailed(f"{job}: still {status} {patience:.0f} s after it was asked to stop")
        time.sleep(0.3)
    return status
