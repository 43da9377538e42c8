"""Runs a search from its start, or from where it was left, to its summary."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from m3dist.config import Config
from m3dist.distributed import ray_train
from m3dist.search import ray_tune, report, resources, stages
from m3dist.search.ledger import Ledger, Trial, check_owner
from m3dist.search.session import Session
from m3dist.search.space import Plan
from m3dist.search.table import Table
from m3dist.storage.folders import Folder
from m3dist.storage.owner import alone
from m3dist.training.tracking import Interrupts


def run(plan: Plan, quiet: bool = False) -> dict[str, Any]:
    """Run or go on with a search and return what summary.json says.

    Raises ValueError when the folder holds another search, another process runs it, or the cluster cannot hold a
    trial, and KeyboardInterrupt when interrupted; calling it again goes on.
    """
    report.check_libraries()
    check_owner(plan)
    with (
        alone(Folder(plan.out)) as owner,
        Interrupts(owner.lost.is_set) as interrupted,
        contextlib.closing(Ledger(plan)) as ledger,
    ):
        ray_train.connect()
        with Table(plan, ledger, quiet) as table:
            session = Session(plan, ledger, table, interrupted)
            try:
                at_once = table.concurrency = resources.concurrency(plan)
                if not session.complete():
                    ray_tune.fit(session, at_once)
                _test_best(session, at_once)
            except KeyboardInterrupt:
                report.so_far(plan, ledger)
                raise
        return report.finish(plan, ledger, session.searcher.skipped)


def _test_best(session: Session, at_once: int) -> None:
    """Write best.yaml, train it with every final seed, and test each once; nothing where no trial was measured."""
    plan, ledger, table = session.plan, session.ledger, session.table
    best = ledger.best()
    if best is None:
        return
    ledger.record("chosen", trial=best.id)
    report.write_best(plan, best)
    table.say(f"chosen: {best.id}, {plan.metric} {best.metric:.4f} on validation data")
    threads = resources.threads(plan, at_once)
    left = [seed for seed in plan.search.final_seeds if seed not in ledger.finals]
    waiting: dict[Any, tuple[int, Any]] = {}  # Ray's task -> (seed, placement group)
    try:
        while left or waiting:
            while left and len(waiting) < at_once:
                seed = left.pop(0)
                task, group = _start(plan, best, seed, threads)
                waiting[task] = (seed, group)
            if session.interrupted():
                raise KeyboardInterrupt
            for task in ray.wait(list(waiting), num_returns=1, timeout=1.0)[0]:
                seed, group = waiting.pop(task)
                ray.util.remove_placement_group(group)
                result = ray.get(task)
                ledger.record("final", seed=seed, result=result)
                table.say(f"seed {seed}: {plan.metric} {result['test'][plan.metric]:.4f} on test data")
    finally:
        for _, group in waiting.values():
            ray.util.remove_placement_group(group)


def _start(plan: Plan, best: Trial, seed: int, threads: int) -> tuple[Any, Any]:
    """(Ray's task, placement group) of the training with a seed; both hold what a trial would."""
    out = plan.out / "final" / f"{best.id}-seed{seed}"
    config = plan.config(best.values).model_copy(update={"out": str(out), "seed": seed})
    config = resources.settled(config)
    bundles = resources.bundles(config)
    group = ray.util.placement_group(bundles)
    options: dict[str, Any] = {
        "num_cpus": bundles[0].get("CPU", 0), "num_gpus": bundles[0].get("GPU", 0),
        "memory": bundles[0].get("memory", 0), "max_retries": plan.search.retries,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True),
    }  # fmt: skip
    return ray.remote(_test).options(**options).remote(config, threads), group


def _test(config: Config, threads: int) -> dict[str, Any]:
    """Train a config, read the test split once, and say what it measured."""
    import torch

    torch.set_num_threads(threads)
    result = stages.test(config)
    return {"validation": result["validation"], "test": result["test"], "seconds": result["seconds"]}
