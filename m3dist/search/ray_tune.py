"""Ray Tune as the executor of a search: it starts the processes of trials, starts dead ones again, and brings reports.

Ray Tune's function API holds a trial inside `report` until its result was looked at here, so an answer left as a file
is there when the trial looks for it. Tune's own stop would kill the trial's process instead.
"""

from __future__ import annotations

import logging
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher as TuneSearcher

from m3dist.distributed.local_ray import setting
from m3dist.search import resources, trial
from m3dist.search.session import Session
from m3dist.storage.folders import Folder

_ENVIRONMENT = {  # Ray Tune reads these when it starts; paths stay as they are, and SIGINT is ours
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}


def fit(session: Session, at_once: int) -> None:
    """Run trials, so many at once, until the session has no more. Raises KeyboardInterrupt when interrupted."""
    plan = session.plan
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # which prints a trace of its own for every dead process
    tuner = tune.Tuner(
        tune.with_resources(
            trial.trainable, tune.PlacementGroupFactory(resources.bundles(plan.base))  # type: ignore[arg-type]
        ),
        tune_config=tune.TuneConfig(
            search_alg=_Asked(session, resources.threads(plan, at_once)), scheduler=_Told(session),
            num_samples=-1, max_concurrent_trials=at_once, reuse_actors=not plan.base.workers,
            trial_dirname_creator=lambda t: session.running.get(t.trial_id, t.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(plan.out / "ray"), verbose=0, callbacks=[_Processes(session)],
            failure_config=tune.FailureConfig(max_failures=plan.search.retries),
            checkpoint_config=tune.CheckpointConfig(),
        ),
    )  # fmt: skip
    with setting(_ENVIRONMENT):
        try:
            tuner.fit()
        except Exception:
            if session.interrupted():
                raise KeyboardInterrupt from None
            raise
    Folder(str(plan.out / "ray")).remove()  # all of it is in the ledger


class _Asked(TuneSearcher):
    """Ray Tune asks here for what to run."""

    def __init__(self, session: Session, threads: int):
        super().__init__()
        self.session, self.threads = session, threads

    def suggest(self, trial_id: str) -> dict | str | None:  # type: ignore[override]
        try:
            one = self.session.next()
        except StopIteration:
            return TuneSearcher.FINISHED
        if one is None:
            return None
        self.session.running[trial_id] = one.id
        self.session.folder(one).mkdir(parents=True, exist_ok=True)
        return self.session.job(one, self.threads).model_dump(mode="json")

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    restore = save


class _Told(FIFOScheduler):
    """Ray Tune hands every report here before the trial goes on."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        self.session.reported(trial.trial_id, result)
        return FIFOScheduler.CONTINUE


class _Processes(tune.Callback):
    """Starts of processes, and deaths that a trial could not report."""

    def __init__(self, session: Session):
        self.session = session

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.session.started(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.session.died(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        said = next((line for line in lines if "Error" in line or "died" in line), lines[-1])
        self.session.ended(trial.trial_id, "failed", reason=said.strip()[:300])

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.session.check_budget()
        if self.session.interrupted():
            raise InterruptedError  # Ray Tune ends its trials on errors, but not on KeyboardInterrupt
