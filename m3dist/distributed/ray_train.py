"""Run a worker function as a Ray Train run, with progress, stop requests and plain errors in the process that asked.

The driver polls one small actor, the relay, through which rank 0 sends what it shows and logs, and learns whether it
should go on. Ray Train restarts workers that died, the driver a controller that died; the function itself goes on
from its checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig

from m3dist.config import Config
from m3dist.distributed import diagnosis, local_ray, nodes, placement, worker
from m3dist.distributed.metrics import RunMetrics
from m3dist.distributed.placement import check, connect, least_workers, per_worker, require
from m3dist.distributed.process_group import Group
from m3dist.distributed.relay import Relay
from m3dist.distributed.reporting import POLL
from m3dist.distributed.trainer import Trainer
from m3dist.distributed.watch import Watch
from m3dist.distributed.worker import Work
from m3dist.storage.folders import Folder
from m3dist.training.callbacks import Stopped
from m3dist.training.tracking import Heard, Interrupts, RunFailed, Tracker

__all__ = ["Task", "check", "connect", "least_workers", "per_worker", "require", "run"]

_ENDS = {kind.__name__: kind for kind in (Stopped, KeyboardInterrupt, FloatingPointError, ValueError, RunFailed)}


@dataclass(frozen=True)
class Task:
    """What the workers of a run compute: work(engine, tracker), on each of them.

    name: of the Ray Train run, as Ray's dashboard shows it.
    """

    work: Work
    name: str


def run(task: Task, config: Config, tracker: Tracker, callbacks: Heard | None = None) -> None:
    """Compute a task on config.workers workers of a Ray cluster; tracker: the driver's.

    Raises ValueError when the cluster cannot run it or the workers found bad input, FloatingPointError, Stopped and
    KeyboardInterrupt as the task's function does, and RunFailed on other errors, or when workers died more often than
    config.max_failures.
    """
    connect()
    if config.use_gpu == "auto":
        there = ray.cluster_resources().get("GPU", 0) >= least_workers(config)
        config = config.model_copy(update={"use_gpu": there})
    check(config)
    with local_ray.setting({name: x for name, x in _settings(config).items() if name not in os.environ}):
        _run(task, config, tracker, callbacks)


def _settings(config: Config) -> dict[str, str]:
    """What Ray Train reads from the environment and otherwise has other values of, which do not suit a run."""
    out = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}  # of 2: ends and failures are seen sooner
    elastic = isinstance(config.workers, tuple)
    if elastic:  # of 60: after a lost node it may first ask for more than there is room for
        out["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
    if len(nodes.alive()) == 1 and not (elastic or config.autoscaling):  # no node can be taken back from the run
        out["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return out


def _run(task: Task, config: Config, tracker: Tracker, callbacks: Heard | None) -> None:
    relay: Any = nodes.on_driver(ray.remote(num_cpus=0)(Relay), f"m3dist-relay-{uuid.uuid4().hex[:8]}").remote()
    storage = Folder(config.out) / "ray"
    watch = Watch(config, tracker.say, RunMetrics(config.out).failed)
    driver = _Driver(relay, tracker, callbacks, watch)
    try:
        for attempt in range(placement.failures(config) + 1):
            end, error = driver.follow(_trainer(task, config, relay, callbacks is not None))
            if end is not None:
                raise _ENDS[end[0]](end[1])
            if error is None:
                return
            if not diagnosis.controller_died(error) or attempt == placement.failures(config):
                raise RunFailed(_given_up(error, config, watch))
            tracker.say("Ray Train's controller died: killed from outside, or out of memory; starting it again")
            driver.release()
            watch.awaits()
    finally:
        ray.kill(relay)
        with contextlib.suppress(OSError):
            storage.remove()


def _trainer(task: Task, config: Config, relay: Any, listens: bool) -> Trainer:
    storage = Folder(config.out) / "ray"
    # packed, since Ray Train's controller would load torch to unpack it
    loop = {"relay": relay, "packed": ray.cloudpickle.dumps((config, task.work, listens))}
    growth = {"elastic_resize_monitor_interval_s": config.cluster.resize_seconds}
    return Trainer(
        worker.train,
        train_loop_config=loop,
        backend_config=Group(),
        has_dashboard=local_ray.has_dashboard(),
        grows=config.autoscaling,
        scaling_config=ScalingConfig(
            num_workers=config.workers,  # type: ignore[arg-type]
            use_gpu=config.use_gpu is True,
            resources_per_worker=per_worker(config),
            **(growth if isinstance(config.workers, tuple) else {}),  # type: ignore[arg-type]
        ),
        run_config=RunConfig(
            name=f"{task.name}-{uuid.uuid4().hex[:8]}",
            storage_path=storage.path,
            storage_filesystem=storage.fs,
            failure_config=FailureConfig(max_failures=placement.failures(config)),
            # Ray's type hints are those of Train V1
            callbacks=[diagnosis.Failures(relay)],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": placement.environment()},  # type: ignore[call-arg]
        ),
    )


class _Driver:
    """Shows what comes through the relay while a trainer runs in a thread, and passes stop requests on."""

    def __init__(self, relay: Any, tracker: Tracker, callbacks: Heard | None, watch: Watch):
        self.relay, self.tracker, self.callbacks, self.watch = relay, tracker, callbacks, watch
        self.group: Any = None  # the placement group that the workers are in
        self.handled = 0  # events of the relay, which counts on when a controller is started again

    def follow(self, trainer: Trainer) -> tuple[tuple[str, str] | None, BaseException | None]:
        """Run the trainer; (how the workers said that the run ended, the error of Ray Train), either may be None."""
        failed: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=fit, name="ray-train", daemon=True)  # elsewhere Ray would take over SIGINT
        with Interrupts(self.tracker.interrupted) as interrupts:
            thread.start()
            told, end = False, None
            while True:
                alive = thread.is_alive()
                events, end = self._pull()
                for event in events:
                    self.handled += 1
                    if event[0] == "failed" and end is not None:  # told as the run's end: a restart would meet it again
                        continue
                    try:
                        self._show(event)
                    except Stopped:
                        self.relay.ask.remote("stop")
                if not alive:
                    return end, failed[0] if failed else None
                self.watch.look()
                if interrupts() and not told:
                    told = True
                    self.tracker.say("interrupted: workers save a checkpoint and end; once more ends at once")
                    self.relay.ask.remote("interrupt")
                thread.join(POLL)

    def release(self) -> None:
        """End the workers of a controller that died, and give back what they hold.

        Ray Train's own cleaner asks a dashboard for the controller's state, and a Ray that a command starts has none.
        """
        if self.group is not None:
            ray.util.remove_placement_group(self.group)

    def _pull(self) -> tuple[list[tuple], tuple[str, str] | None]:
        try:
            return ray.get(self.relay.pull.remote(self.handled))
        except RayActorError:
            raise RunFailed("the relay on this node died: killed from outside, or out of memory") from None
        except RayError as error:
            raise RunFailed(f"the cluster does not answer any more ({diagnosis.one_line(error)})") from None

    def _show(self, event: tuple) -> None:
        kind, *values = event
        if kind == "heard":
            if self.callbacks is not None:
                what, *told = values
                (self.callbacks if what == "epoch" else getattr(self.callbacks, what))(*told)
        elif kind == "workers":
            members, self.group = values
            self.watch.workers(members)
        elif kind == "failed":
            self.watch.failed(*values)
        else:
            getattr(self.tracker.display, kind)(*values)
            if kind == "values":
                self.watch.values(values[0], values[2])


def _given_up(error: BaseException, config: Config, watch: Watch) -> str:
    """One line for what ended a Ray Train run."""
    why = diagnosis.failure(error, watch.members)
    if diagnosis.controller_died(error):
        return f"Ray Train's controller died more than max_failures={placement.failures(config)} times; last: {why}"
    if watch.failures > placement.failures(config):
        return f"workers failed more than max_failures={placement.failures(config)} times; last: {why}"
    return f"Ray Train gave up: {why}"
