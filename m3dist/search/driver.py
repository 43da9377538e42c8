"""Runs a search: Ray Tune starts and retries trials, the ledger remembers them and decides who goes on.

Ray Tune's function API holds a trial inside `report` until its result was looked at here, so an answer left as a file
is there when the trial looks for it. Tune's own stop would kill the trial's process instead.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from m3dist import pipeline
from m3dist.config import Config
from m3dist.distributed import ray_train as launch
from m3dist.search import proposals, report, trial
from m3dist.search.claims import Claims
from m3dist.search.ledger import Ledger, Trial, folder
from m3dist.search.space import Plan
from m3dist.search.table import Table
from m3dist.storage.artifacts import Store
from m3dist.storage.folders import Folder
from m3dist.training import memory

_HEAD = {"memory": float(64 << 20)}  # of a trial that leads workers: it waits for them and takes no core


def needs(config: Config) -> list[dict[str, float]]:
    """What Ray reserves for a trial's own process and the actors that it makes."""
    own = {"CPU": 1.0} | ({"GPU": 1.0} if config.use_gpu is True else {})
    actor = {"CPU": 1.0} | dict(config.actor_resources)
    return [dict(_HEAD) if config.workers else own, *(actor for _ in range(config.actors))]


def total_need(config: Config) -> dict[str, float]:
    """All that a trial holds while it runs, its Ray Train workers included."""
    parts = needs(config)
    parts += [launch.per_worker(config)] * launch.least_workers(config)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in {n for part in parts for n in part}}


def concurrency(plan: Plan) -> int:
    """Trials at once, by what is scarce. Raises ValueError when the cluster cannot hold a single one."""
    have = dict(ray.cluster_resources())
    need = total_need(plan.base)
    processes = max(1, launch.least_workers(plan.base))
    need["memory"] = max(need.get("memory", 0.0), processes * _memory(plan))
    fits = {name: have.get(name, 0.0) / amount for name, amount in need.items() if amount}
    scarce = min(fits, key=lambda name: fits[name])
    if fits[scarce] < 1 and not plan.base.autoscaling:
        raise ValueError(
            f"a trial needs {need[scarce]:g} {scarce} and the cluster has {have.get(scarce, 0.0):g}; ask for less by "
            f"workers, actors or resources_per_worker, or join a larger cluster"
        )
    most = max(1, int(fits[scarce] + 1e-9))
    wanted = plan.search.concurrency
    return most if wanted == "auto" else wanted if plan.base.autoscaling else min(wanted, most)


def _memory(plan: Plan) -> float:
    return float(max(memory.predict(config, plan.dataset)["total"] for config in plan.extremes()))


class Search:
    """The state of a search that Ray Tune's hooks share."""

    def __init__(self, plan: Plan, ledger: Ledger, table: Table, store: Store):
        self.plan, self.ledger, self.table, self.store = plan, ledger, table, store
        self.proposals = proposals.of(plan, ledger)
        self.over = ""
        self.running: dict[str, str] = {}  # Tune's trial -> ours

    def __deepcopy__(self, memo: dict) -> Search:
        """Ray Tune copies and pickles what it is given; there is one state, and the ledger is what is kept of it."""
        return self

    def __reduce__(self) -> tuple:
        return str, ("search",)

    def job(self, one: Trial, threads: int) -> dict[str, Any]:
        out = folder(self.plan, one.id)
        config = self.plan.config(one.values).model_copy(update={"out": str(out)})
        if not self.plan.search.reuse.on:
            config = config.model_copy(update={"artifacts": None})
        before = {"epochs": one.epochs, "seconds": one.seconds, "stage": one.stage}
        before["metric"] = one.metric if one.measured == one.stage else None
        return {
            "trial": one.id, "config": config.model_dump(mode="json"), "metric": self.plan.metric, "threads": threads,
            "mode": self.plan.search.mode, "share": self.plan.search.reuse.on, "before": before,
        }  # fmt: skip

    def next(self) -> Trial | None:
        """The next trial to start, or None to ask again later. Raises StopIteration when there are no more."""
        for one in self.ledger.trials.values():
            if one.status == "waiting" and one.id not in self.running.values():
                return one
        self.look()
        budget = self.plan.search.budget
        if self.over or (budget.trials and len(self.ledger.trials) >= budget.trials):
            raise StopIteration
        proposal = self.proposals.next()
        if proposal is None:
            return None
        name = f"t{len(self.ledger.trials):04d}"
        self.ledger.record("proposed", trial=name, index=proposal.index, values=proposal.values, keys=proposal.keys)
        return self.ledger.trials[name]

    def look(self) -> None:
        """End the search when its epochs or minutes are used up: running trials stop at their next report."""
        budget = self.plan.search.budget
        if self.over:
            return
        if budget.epochs and self.ledger.epochs >= budget.epochs:
            self.over = f"budget of {budget.epochs} epochs"
        elif budget.minutes and self.ledger.seconds >= 60 * budget.minutes:
            self.over = f"budget of {budget.minutes:g} minutes"
        if self.over:
            for name in self.running.values():
                self.stop(name, self.over)

    def stop(self, name: str, reason: str) -> None:
        one = self.ledger.trials[name]
        if not one.reason:
            self.ledger.record("cut", trial=name, reason=reason)
        (folder(self.plan, name) / "stop").write_text(one.reason + "\n")

    def heard(self, tune_trial: str, result: dict[str, Any]) -> None:
        name = result["trial"]
        if "end" in result:
            return self.ended(tune_trial, **json.loads(result["end"]))
        kept = {key: result[key] for key in ("stage", "step", "epochs", "seconds")}
        self.ledger.record("result", trial=name, metric=result.get("value"), **kept)
        if self.ledger.trials[name].reason:
            self.stop(name, self.ledger.trials[name].reason)
        self.look()
        self.table.show()
        return None

    def ended(self, tune_trial: str, status: str, **end: Any) -> None:
        name = self.running.pop(tune_trial, None)
        if name is None:
            return
        one = self.ledger.trials[name]
        if status == "stopped" and not one.reason.startswith("rung"):
            status = "cut"
        self.ledger.record("ended", trial=name, status=status, **end)
        Folder(str(folder(self.plan, name) / "checkpoints")).remove()
        report.trial_board(self.plan, self.ledger, one)
        report.write_table(self.plan, self.ledger)
        self.table.ended(one)


class _Searcher(Searcher):
    """Ray Tune asks here for what to run."""

    def __init__(self, search: Search, threads: int):
        super().__init__()
        self.search, self.threads = search, threads

    def suggest(self, trial_id: str) -> dict | str | None:  # type: ignore[override]
        try:
            one = self.search.next()
        except StopIteration:
            return Searcher.FINISHED
        if one is None:
            return None
        self.search.running[trial_id] = one.id
        (folder(self.search.plan, one.id)).mkdir(parents=True, exist_ok=True)
        return self.search.job(one, self.threads)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    restore = save


class _Judge(FIFOScheduler):
    """Ray Tune hands every report here before the trial goes on."""

    def __init__(self, search: Search):
        super().__init__()
        self.search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        self.search.heard(trial.trial_id, result)
        return FIFOScheduler.CONTINUE


class _Ends(tune.Callback):
    """Starts, and deaths that a trial could not report."""

    def __init__(self, search: Search):
        self.search = search

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if name := self.search.running.get(trial.trial_id):
            self.search.ledger.record("started", trial=name)
            if self.search.over:
                self.search.stop(name, self.search.over)
            self.search.table.show()

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        said = next((line for line in lines if "Error" in line or "died" in line), lines[-1])
        self.search.ended(trial.trial_id, "failed", reason=said.strip()[:300])

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.search.look()


def run(plan: Plan, quiet: bool = False) -> dict[str, Any]:
    """Run or go on with a search and return what summary.json says.

    Raises ValueError when the folder holds another search or the cluster cannot hold a trial, and KeyboardInterrupt
    when interrupted; calling it again goes on.
    """
    report.check_libraries()
    ledger = Ledger(plan)
    table = Table(plan, ledger, quiet)
    try:
        with _alone(plan), _environment(), _terms():
            launch.connect()
            search = Search(plan, ledger, table, pipeline.artifact_store(plan.base))
            with table:
                try:
                    _tune(search)
                    _final(search)
                except KeyboardInterrupt:
                    report.so_far(plan, ledger)
                    raise
            return report.finish(plan, ledger, getattr(search.proposals, "passed_over", 0), quiet)
    finally:
        ledger.close()


def _tune(search: Search) -> None:
    plan = search.plan
    most = concurrency(plan)
    search.table.concurrency = most
    cores = int(ray.cluster_resources().get("CPU", 1))
    threads = max(1, cores // most) if most == 1 and not plan.base.workers else 1
    budget = plan.search.budget
    open_ = any(t.status == "waiting" for t in search.ledger.trials.values())
    search.look()
    if not open_ and (search.over or (budget.trials and len(search.ledger.trials) >= budget.trials)):
        return
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(trial.trainable, tune.PlacementGroupFactory(needs(plan.base))),  # type: ignore[arg-type]
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(search, threads), scheduler=_Judge(search), num_samples=-1,
            max_concurrent_trials=most, reuse_actors=not plan.base.workers,
            trial_dirname_creator=lambda t: search.running.get(t.trial_id, t.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(plan.out / "ray"), verbose=0, callbacks=[_Ends(search)],
            failure_config=tune.FailureConfig(max_failures=plan.search.retries),
            checkpoint_config=tune.CheckpointConfig(),
        ),
    )  # fmt: skip
    tuner.fit()
    Folder(str(plan.out / "ray")).remove()  # all of it is in the ledger


def _final_config(plan: Plan, one: Trial, seed: int) -> Config:
    out = plan.out / "final" / f"{one.id}-seed{seed}"
    return plan.config(one.values).model_copy(update={"out": str(out), "seed": seed})


def _test(config: Config) -> dict[str, Any]:
    """Train a config, read the test split once, and say what it measured."""
    import torch

    torch.set_num_threads(1)
    result = pipeline.run(config, quiet=True)
    return {"validation": result["validation"], "test": result["test"], "seconds": result["seconds"]}


def _final(search: Search) -> None:
    """Train the chosen config with every final seed and read the test split, once each."""
    plan, ledger = search.plan, search.ledger
    best = ledger.best()
    if best is None:
        return
    ledger.record("chosen", trial=best.id)
    report.write_best(plan, best)
    left = [seed for seed in plan.search.final_seeds if seed not in ledger.finals]
    search.table.say(f"chosen: {best.id}, {plan.metric} {best.metric:.4f} on validation data")
    bundles = needs(plan.base)
    remote = ray.remote(max_retries=plan.search.retries)(_test)
    at_once = concurrency(plan)
    waiting: dict[Any, tuple[int, Any]] = {}
    try:
        while left or waiting:
            while left and len(waiting) < at_once:
                seed, group = left.pop(0), ray.util.placement_group(bundles)
                inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
                task = remote.options(
                    num_cpus=bundles[0].get("CPU", 0), num_gpus=bundles[0].get("GPU", 0),
                    memory=bundles[0].get("memory", 0), scheduling_strategy=inside,
                )  # fmt: skip
                waiting[task.remote(_final_config(plan, best, seed))] = (seed, group)
            for ref in ray.wait(list(waiting), num_returns=1, timeout=1.0)[0]:
                seed, group = waiting.pop(ref)
                ray.util.remove_placement_group(group)
                result = ray.get(ref)
                ledger.record("final", seed=seed, result=result)
                search.table.say(f"seed {seed}: {plan.metric} {result['test'][plan.metric]:.4f} on test data")
    finally:
        for _, group in waiting.values():
            ray.util.remove_placement_group(group)


@contextlib.contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    """One driver per search folder."""
    claims = Claims(plan.out / "claims", "search")
    try:
        with claims.try_hold("driver"):
            yield
    except BlockingIOError as holder:
        raise ValueError(f"{plan.out}: the search is running already, by {holder}") from None


@contextlib.contextmanager
def _terms() -> Iterator[None]:
    """SIGTERM, with which a cluster stops a job, ends a search like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Ray Tune reads these when it starts; paths stay as they are, and Ctrl-C reaches us."""
    wanted = {
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
        "TUNE_WARN_THRESHOLD_S": "60",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
