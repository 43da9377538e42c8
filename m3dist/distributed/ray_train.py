"""Run a worker function as a Ray Train run, with progress, interrupts and plain errors in the process that asked.

The driver polls one small actor, the relay, through which rank 0 sends what it shows and logs, and learns
whether it should go on. Ray Train restarts dead workers; the function itself goes on from its checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from m3dist.config import Config
from m3dist.distributed.engine import Engine
from m3dist.storage.folders import Folder
from m3dist.training.callbacks import Stopped
from m3dist.training.tracking import Heard, Interrupts, RunFailed, Tracker

Work = Callable[[Engine, Tracker, Any], None]
_POLL = 0.1  # seconds between the driver's looks at the relay
_SILENCE = 60.0  # seconds without workers after which the driver says what it waits for
_OUT_OF_MEMORY = (
    "a worker ran out of memory; lower batch_size or evaluation.block, or give workers machines with more of it"
)
_OOM = ("OutOfMemory", "out of memory", "OOM", "running low on memory")


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; nothing when joined already."""
    if not ray.is_initialized():
        logging.getLogger("ray").setLevel(logging.WARNING)
        before = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own handler aborts the process


def per_worker(config: Config) -> dict[str, float]:
    """Ray resources of one worker."""
    default = {"CPU": 1.0, "GPU": 1.0} if config.use_gpu is True else {"CPU": 1.0}
    return default | dict(config.resources_per_worker)


def least_workers(config: Config) -> int:
    return config.workers[0] if isinstance(config.workers, tuple) else config.workers


def check(config: Config) -> None:
    """Raises ValueError, in one line, when the cluster can never run this config."""
    resources = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if config.use_gpu is True and not resources.get("GPU") and not config.autoscaling:
        raise ValueError(f"use_gpu: the cluster has no GPU ({_shown(resources)}); set use_gpu=false or join another")
    if not config.autoscaling:
        require("workers", least_workers(config), per_worker(config))
    if len(nodes) > 1:
        _check_shared(config.out, nodes)


def require(key: str, count: int, each: dict[str, float], all_nodes: list[dict] | None = None) -> None:
    """Raises ValueError, naming the config key, when the cluster's nodes cannot hold `count` times these resources.

    all_nodes: as ray.nodes() lists them, which is asked when they are not given.
    """
    nodes = [node["Resources"] for node in all_nodes or ray.nodes() if node["Alive"]]
    room = [[int(node.get(name, 0) / n + 1e-9) for name, n in each.items() if n] for node in nodes]
    fits = sum(min(of_node, default=count) for of_node in room)  # all that one of them needs stands on one node
    if fits < count:
        least = min(each, key=lambda name: sum(node.get(name, 0) for node in nodes) / max(each[name], 1e-9))
        wanted = " + ".join(f"{n:g} {name}" for name, n in each.items())
        raise ValueError(
            f"{key}: {count} x {wanted} do not fit the cluster, which has "
            f"{sum(node.get(least, 0) for node in nodes):g} {least} on {len(nodes)} node(s), room for {fits}; ask "
            f"for less, join a larger cluster, or set autoscaling=true when it can grow"
        )


def _shown(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def _check_shared(out: str, nodes: list[dict]) -> None:
    """Raises ValueError naming the nodes that do not see what is written in the run folder."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder, name = Folder(out), f".shared-{uuid.uuid4().hex[:8]}"
    folder.write_text(name, "seen")
    try:
        looks = {
            node["NodeManagerHostname"] + " " + node["NodeID"][:8]: _sees.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(out if "://" in out else folder.path, name)
            for node in nodes
        }
        blind = [node for node, seen in looks.items() if not ray.get(seen, timeout=60)]
    finally:
        folder.remove(name)
    if blind:
        raise ValueError(
            f"out={out}: not shared by all nodes; {', '.join(blind)} cannot see it; use a folder that every node "
            f"mounts, or a URI such as s3://bucket/run"
        )


@ray.remote
def _sees(out: str, name: str) -> bool:
    return Folder(out).exists(name)


def _here(actor: Any, name: str) -> Any:
    """The actor class, named and bound to this process's node: it must not die with a node of workers."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return actor.options(name=name, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


class _Relay:
    """What rank 0 and the driver tell each other."""

    def __init__(self) -> None:
        self.events: list[tuple] = []
        self.sent = self.handled = 0
        self.wish = ""  # what the driver wants: "", "interrupt" or "stop"
        self.working = False
        self.end: tuple[str, str] | None = None

    def push(self, event: tuple) -> int:
        self.events.append(event)
        self.sent += 1
        return self.sent

    def pull(self, handled: int) -> list[tuple]:
        self.handled = handled
        out, self.events = self.events, []
        return out

    def state(self) -> tuple[int, str]:
        return self.handled, self.wish

    def begin(self) -> None:
        self.working = True

    def begun(self) -> bool:
        return self.working

    def want(self, wish: str) -> None:
        self.wish = wish

    def finish(self, kind: str, text: str) -> None:
        self.end = self.end or (kind, text)  # the first error is the cause of the others

    def ended(self) -> tuple[str, str] | None:
        return self.end


class _Remote:
    """A display and callbacks whose events appear in the driver."""

    def __init__(self, relay: Any):
        self.relay = relay
        self._asked, self._wish, self._told = 0.0, "", 0.0

    def open(self) -> None:
        pass

    close = open

    def bar(self, stage: str, total: int, done: int, note: str) -> None:
        self.relay.push.remote(("bar", stage, total, done, note))

    def say(self, text: str) -> None:
        self.relay.push.remote(("say", text))

    def values(self, stage: str, step: int, values: dict[str, float]) -> None:
        self.relay.push.remote(("values", stage, step, values))

    def begin(self, stage: str) -> None:
        self._ask("begin", stage)

    def step(self, stage: str, epoch: int, step: int) -> None:
        """Told of about twice a second: a look at the driver takes longer than many a step."""
        if time.monotonic() - self._told > 0.5:
            self._told = time.monotonic()
            self._ask("step", stage, epoch, step)

    def __call__(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        self._ask("epoch", stage, epoch, values)

    def _ask(self, *event: Any) -> None:
        """Hand an event to the driver's callbacks and wait for what they say."""
        number = ray.get(self.relay.push.remote(("heard", *event)))
        while True:
            handled, wish = ray.get(self.relay.state.remote())
            if wish == "stop":
                raise Stopped
            if handled >= number or wish:
                return
            time.sleep(_POLL / 2)

    def interrupted(self) -> bool:
        if time.monotonic() - self._asked > 0.5:
            self._asked = time.monotonic()
            self._wish = ray.get(self.relay.state.remote())[1]
        return self._wish == "interrupt"


def _worker(loop: dict[str, Any]) -> None:
    """The training function of Ray Train."""
    config, relay, work = loop["config"], loop["relay"], loop["work"]
    if ray.get(relay.ended.remote()) is not None:  # a restart after an error that a restart cannot mend
        return
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    relay.begin.remote()
    torch.set_num_threads(max(1, int(per_worker(config)["CPU"])))
    device = ray.train.torch.get_device() if config.use_gpu else "cpu"
    engine = Engine.of(config, rank, world, device)
    remote = _Remote(relay)
    heard = remote if loop["listens"] else None
    mine = Tracker(Folder(config.out), heard, remote, remote.interrupted) if engine.rank_zero else Tracker(None)
    try:
        with mine as tracker:
            work(engine, tracker, ray.get(loop["shared"]))
    except (Stopped, KeyboardInterrupt, FloatingPointError) as end:  # all workers come here together
        if rank == 0:
            ray.get(relay.finish.remote(type(end).__name__, str(end)))
    except Exception as error:
        if not _of_a_peer(error):  # a restart would meet it again
            traceback.print_exc()
            ray.get(relay.finish.remote(*_plain(error)))
        raise


_PEER_IS_GONE = ("gloo", "NCCL", "Connection", "process group has not been initialized")


def _of_a_peer(error: Exception) -> bool:
    """Whether a collective failed because another worker is gone, which a restart mends."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _PEER_IS_GONE)


def _plain(error: Exception) -> tuple[str, str]:
    """(kind, one line) of what went wrong in a worker."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "ValueError", _OUT_OF_MEMORY
    if isinstance(error, ValueError):
        return "ValueError", str(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    return "RunFailed", f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"


def run(
    work: Work, config: Config, name: str, tracker: Tracker, callbacks: Heard | None = None, shared: Any = None
) -> None:
    """Call work(engine, tracker, shared) on config.workers workers of a Ray cluster; tracker: the driver's.

    shared: arrays that all read, in the object store once and on every node once, without copies.

    name: of the Ray Train run, as Ray's dashboard shows it. Raises ValueError when the cluster cannot run it or the
    workers found bad input, FloatingPointError, Stopped and KeyboardInterrupt as `work` does, and RunFailed on other
    errors or when workers died more often than config.max_failures.
    """
    connect()
    if config.use_gpu == "auto":
        there = ray.cluster_resources().get("GPU", 0) >= least_workers(config)
        config = config.model_copy(update={"use_gpu": there})
    check(config)
    relay: Any = _here(ray.remote(num_cpus=0)(_Relay), f"m3dist-relay-{uuid.uuid4().hex[:8]}").remote()
    storage = Folder(config.out) / "ray"
    elastic = isinstance(config.workers, tuple)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config,
            "relay": relay,
            "work": work,
            "listens": callbacks is not None,
            "shared": ray.put(shared),
        },
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers,  # type: ignore[arg-type]
            use_gpu=config.use_gpu is True,
            resources_per_worker=per_worker(config),
        ),
        run_config=RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=storage.path,
            storage_filesystem=storage.fs,
            failure_config=FailureConfig(max_failures=max(config.max_failures, 1 if elastic else 0)),
            # Ray's type hints are those of Train V1
            worker_runtime_env={"env_vars": _environment()},  # type: ignore[call-arg]
        ),
    )
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)  # elsewhere Ray would take over SIGINT
    with Interrupts() as interrupts:
        thread.start()
        handled, told, since = 0, False, time.monotonic()
        while True:
            alive = thread.is_alive()
            if time.monotonic() - since > _SILENCE:
                since = math.inf
                if not ray.get(relay.begun.remote()):
                    free = _shown(ray.available_resources())
                    tracker.say(f"waiting for {config.workers} workers; the cluster has {free} free now")
            for event in ray.get(relay.pull.remote(handled)):
                handled += 1
                try:
                    _show(event, tracker, callbacks)
                except Stopped:
                    ray.get(relay.want.remote("stop"))
            if not alive:
                break
            if interrupts.wanted and not told:
                told = True
                tracker.say("interrupted: workers save a checkpoint and end; once more ends at once")
                ray.get(relay.want.remote("interrupt"))
            thread.join(_POLL)
    end = ray.get(relay.ended.remote())
    ray.kill(relay)
    with contextlib.suppress(OSError):
        storage.remove()
    if end is not None:
        kinds: dict[str, type[BaseException]] = {
            kind.__name__: kind for kind in (Stopped, KeyboardInterrupt, FloatingPointError, ValueError, RunFailed)
        }
        raise kinds[end[0]](end[1])
    if failed:
        raise _explained(failed[0], config)


def _show(event: tuple, tracker: Tracker, callbacks: Heard | None) -> None:
    kind, *values = event
    if kind != "heard":
        getattr(tracker.display, kind)(*values)
    elif callbacks is not None:
        what, *told = values
        (callbacks if what == "epoch" else getattr(callbacks, what))(*told)


def _environment() -> dict[str, str]:
    """What workers must share with the driver: one BLAS thread each unless said otherwise."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def _explained(error: BaseException, config: Config) -> BaseException:
    """One line for what ended a Ray Train run."""
    text = str(error)
    if any(sign in text for sign in _OOM):
        return ValueError(_OUT_OF_MEMORY)
    last = next((line for line in reversed(text.strip().splitlines()) if line.strip()), type(error).__name__)
    return RunFailed(f"workers failed more than max_failures={config.max_failures} times; the last error: {last}")
