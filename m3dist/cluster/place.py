"""Which cluster a job goes to, and a client for it.

Tokens come from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as Ray reads them itself; never from a file or an option here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from m3dist import credentials

_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray lets them win over an address given in code
HINT = "give --address or --cluster, or set RAY_API_SERVER_ADDRESS; try it out with cluster/local.sh"


class ClusterFailed(Exception):
    """A cluster does not answer, or not any more, or lost a job; the message is one line."""


def redacted(text: str) -> str:
    """`text` without the token that this process would use."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not token and path and Path(path).is_file():
        token = Path(path).read_text().strip()
    return text.replace(token, "***") if len(token) > 3 else text


def read(path: str) -> dict[str, Any]:
    """A cluster file: Ray's own (provider, auth, ...), or `address: http://...`. Raises ValueError."""
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such cluster file; `m3dist init` copies examples to cluster/") from None
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(raw, dict) or not ("address" in raw or "provider" in raw):
        raise ValueError(f"{path}: expected Ray's cluster YAML (with `provider`), or `address: http://HOST:8265`")
    for key in _keys(raw):
        if credentials.names_one(key):
            raise ValueError(f"{path}: {key}: tokens do not belong in files of a project; set RAY_AUTH_TOKEN_PATH")
    return raw


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


@contextlib.contextmanager
def reach(cluster: str | None = None, address: str | None = None) -> Iterator[str]:
    """The HTTP address of a cluster's job API, while the block runs.

    cluster: a cluster file; Ray's own kind is reached through an SSH tunnel (`ray dashboard`), since its dashboard
    listens on the head's loopback interface. Without both, Ray's environment variables. Raises ValueError.
    """
    if cluster and address:
        raise ValueError("give --cluster or --address, not both")
    if cluster:
        raw = read(cluster)
        if "address" not in raw:
            with _tunnel(cluster) as tunnel:
                yield tunnel
            return
        address = str(raw["address"])
    address = address or next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), None)
    if not address:
        raise ValueError(f"no cluster to submit to; {HINT}")
    if "://" not in address:
        address = f"http://{address}"
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(f"{address}: expected the address of Ray's dashboard, such as http://HOST:8265")
    credentials.refuse_words([address])
    yield address


@contextlib.contextmanager
def _tunnel(cluster: str) -> Iterator[str]:
    """`ray dashboard CLUSTER` on a free local port, ended with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["ray", "dashboard", "--port", str(port), cluster]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                said = (process.communicate()[0] or "").strip().splitlines()[-1:]
                raise ValueError(f"{cluster}: no tunnel to its head ({' '.join(said)}); is it up? `ray up {cluster}`")
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def client(address: str) -> Any:
    """A JobSubmissionClient. Raises ValueError in one line: unreachable, refused, or no job API."""
    for name in _VARIABLES:  # the address is chosen; Ray would let these win over it
        os.environ.pop(name, None)
    try:
        from ray.job_submission import JobSubmissionClient

        for logger in list(logging.root.manager.loggerDict):  # uploads are told at level INFO
            if logger.startswith(("ray.dashboard", "ray._private.runtime_env")):
                logging.getLogger(logger).setLevel(logging.WARNING)
        return JobSubmissionClient(address)
    except ConnectionError:
        raise ClusterFailed(
            f"{address}: nothing answers; is the cluster up, with ray[default] and its dashboard, and the port "
            f"forwarded? {HINT}"
        ) from None
    except Exception as error:  # Ray's AuthenticationError shares no base with the others
        raise ValueError(f"{address}: {explain(error)}") from None


def explain(error: Exception) -> str:
    """One line for what the job API answered."""
    text = redacted(str(error))
    lower = text.lower()
    if "ray[default]" in text:
        return "the job API needs the dashboard extra; pip install 'ray[default]'"
    if type(error).__name__ == "AuthenticationError" or any(x in lower for x in ("authentic", "401", "403", "token")):
        return (
            "the cluster asks for a token that was not given or is wrong; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to a file that holds it"
        )
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
