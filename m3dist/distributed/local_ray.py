"""A Ray of this process's own, on this machine. Imports no torch, so that Ray can start while torch is loaded."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any

import ray

_NOWHERE = "http://127.0.0.1:9"  # the port of the discard service, where no dashboard answers
_ours = ""  # the address of the Ray that this process has started
_starting: Future | None = None


def start(**options: Any) -> None:
    """Start a Ray on this machine that ends with this process. options: further ones of ray.init.

    It has no dashboard, whose processes take seconds to start. An actor of Ray Train asks a dashboard whether Ray
    Train's controller lives; where another Ray runs on the machine it would ask that one's, which knows no such
    controller, and would end the workers. So its processes are told to look where none is.
    """
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # a line at every start
    with setting({"RAY_API_SERVER_ADDRESS": _NOWHERE}):
        begun: Any = ray.init(address="local", include_dashboard=False, log_to_driver=False, **options)
    global _ours
    _ours = begun.address_info["gcs_address"]


def wanted() -> bool:
    """Whether a run on Ray starts one here, since RAY_ADDRESS names none to join."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def start_ahead() -> None:
    """Begin to `start` in a thread, where that is wanted; `awaited` waits for it. Ray's start is mostly waiting.

    Linux ends Ray's processes with the thread that has started them, so the thread stays.
    """
    global _starting
    if not wanted() or _starting is not None or ray.is_initialized():
        return
    starting: Future = Future()

    def live() -> None:
        try:
            start(logging_level=logging.ERROR)  # not warned that no signal is handled outside of the main thread
            starting.set_result(None)
        except BaseException as error:
            starting.set_exception(error)
        threading.Event().wait()

    threading.Thread(target=live, name="ray", daemon=True).start()
    atexit.register(wait, [starting])  # before Ray's own, which ends what has started
    _starting = starting


def awaited() -> bool:
    """Whether `start_ahead` began to start a Ray, which then has started; raises what that met."""
    global _starting
    began, _starting = _starting, None
    if began is not None:
        began.result()
        quiet()
    return began is not None


def quiet() -> None:
    """Keep Ray from logging more than warnings."""
    logging.getLogger("ray").setLevel(logging.WARNING)


def has_dashboard() -> bool:
    """Whether the cluster that this process has joined may have a dashboard: any but one that `start` started."""
    return ray.get_runtime_context().gcs_address != _ours


@contextlib.contextmanager
def setting(values: Mapping[str, str]) -> Iterator[None]:
    """Within the block these environment variables have these values, and so they do in what Ray starts there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
