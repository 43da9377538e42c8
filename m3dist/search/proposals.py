"""What to try next: random points, a grid, or Optuna's TPE; all prefer what reuses finished stages.

- random: proposal i of a seed is always the same point. `reuse.siblings` in a row share the values of the first stage
  that the space varies, each still uniform over the space. Among the next `reuse.lookahead` of them the one with the
  most stages done goes first; one whose stage somebody trains just now waits, unless there is nothing else.
- grid: every point, with the first stage's values changing last; the same look ahead.
- optuna: while a finished stage of that kind that no rung has stopped has fewer than `siblings` proposals, the model is
  asked for the rest of the point with that stage's values given; otherwise for a whole point.
A proposal whose stage was stopped by a rung in another trial, or diverged there, is passed over: training is a
function of the config, so it would end the same way.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from m3dist import pipeline
from m3dist.search.ledger import OPEN, Ledger, Trial
from m3dist.search.space import Dimension, Plan, Values, active, draw, grid
from m3dist.seeding import derive, numpy_rng
from m3dist.storage.artifacts import Store

_MISSES = 2000  # draws in a row that give no new point, after which a space counts as used up


@dataclass(frozen=True)
class Proposal:
    index: int
    values: Values
    keys: dict[str, str]


class Proposals(Protocol):
    def next(self) -> Proposal | None:
        """The next point, or None to ask again later. Raises StopIteration when there are no more."""

    @property
    def passed_over(self) -> int:
        """Proposals that an earlier trial made pointless."""


def of(plan: Plan, ledger: Ledger) -> Proposals:
    then = Model(plan, ledger) if plan.search.searcher == "optuna" else Stream(plan, ledger)
    return Points(plan, ledger, then) if plan.search.points else then


class Points:
    """The search file's own points, with indices below 0, then those of a searcher."""

    def __init__(self, plan: Plan, ledger: Ledger, then: Proposals):
        self.plan, self.ledger, self.then = plan, ledger, then

    @property
    def passed_over(self) -> int:
        return self.then.passed_over

    def next(self) -> Proposal | None:
        issued = {trial.index for trial in self.ledger.trials.values()}
        for at, values in enumerate(self.plan.search.points):
            if -1 - at not in issued:
                return Proposal(-1 - at, values, self.plan.keys(values))
        return self.then.next()


class Stages:
    """How far the stages of the store are."""

    def __init__(self, plan: Plan, ledger: Ledger):
        self.plan, self.ledger = plan, ledger
        self.store: Store = pipeline.artifact_store(plan.base)
        self.share = plan.search.reuse.on

    def done(self, stage: str, key: str) -> bool:
        return self.share and self.store.has(stage, key)

    def busy(self, stage: str, key: str) -> bool:
        """Whether a running trial trains it or is about to."""
        running = (t for t in self.ledger.trials.values() if t.status in OPEN)
        return self.share and any(t.keys[stage] == key for t in running) and not self.store.has(stage, key)

    def dead(self, keys: dict[str, str]) -> bool:
        return any(key in self.ledger.dead for key in keys.values())


class Stream:
    """Proposals that are a fixed sequence, taken slightly out of order."""

    def __init__(self, plan: Plan, ledger: Ledger):
        self.plan, self.ledger, self.stages = plan, ledger, Stages(plan, ledger)
        self.passed_over = 0
        self._window: list[Proposal] = []
        issued = {trial.index for trial in ledger.trials.values()}
        points = self._grid() if plan.search.searcher == "grid" else self._random()
        self._points = (p for p in points if p.index not in issued and p.values not in plan.search.points)

    def next(self) -> Proposal | None:
        while True:
            alive = [p for p in self._window if not self.stages.dead(p.keys)]
            self.passed_over += len(self._window) - len(alive)
            self._window = alive
            more = list(itertools.islice(self._points, max(0, self._ahead() - len(alive))))
            self._window += more
            if not more:
                break
        if not self._window:
            raise StopIteration
        best = max(self._window, key=self._worth)
        if self._worth(best) < 0:
            return None
        self._window.remove(best)
        return best

    def _ahead(self) -> int:
        """Proposals to choose from: enough for one that no running trial is about to train a stage of."""
        reuse, running = self.plan.search.reuse, sum(t.status in OPEN for t in self.ledger.trials.values())
        return max(reuse.lookahead, reuse.siblings * (running + 1)) if reuse.on else 1

    def _worth(self, proposal: Proposal) -> int:
        """Stages done; -1 where a running trial trains the next one."""
        done = 0
        for stage, key in proposal.keys.items():
            if self.stages.done(stage, key):
                done += 1
            elif self.stages.busy(stage, key):
                return -1
            else:
                break
        return done

    def _proposal(self, index: int, values: Values) -> Proposal:
        return Proposal(index, values, self.plan.keys(values))

    def _grid(self) -> Iterator[Proposal]:
        for index, values in enumerate(grid(self.plan.space)):
            yield self._proposal(index, values)

    def _random(self) -> Iterator[Proposal]:
        plan = self.plan
        group = plan.search.reuse.siblings if plan.search.reuse.on and plan.shared else 1
        seen: set[str] = set()
        misses = 0
        for index in itertools.count():
            rngs = {
                name: numpy_rng(plan.search.seed, "search", name, index // group if at == plan.shared else index)
                for name, at in plan.stage.items()
            }
            values = draw(plan.space, rngs)
            text = json.dumps(values, sort_keys=True)
            misses = misses + 1 if text in seen else 0
            if misses > _MISSES:
                return
            if text not in seen:
                seen.add(text)
                yield self._proposal(index, values)


class Model:
    """Optuna's TPE (Bergstra et al. 2011), told of all trials before every question, so a restart forgets nothing."""

    def __init__(self, plan: Plan, ledger: Ledger):
        self.plan, self.ledger, self.stages = plan, ledger, Stages(plan, ledger)
        self.passed_over = 0

    def next(self) -> Proposal | None:
        index = len(self.ledger.trials)
        if self._wait():
            return None
        tried = {json.dumps(t.values, sort_keys=True) for t in self.ledger.trials.values()}
        given = self._sibling()
        for attempt in range(_MISSES // 20):
            values = self._ask(derive(self.plan.search.seed, "tpe", index, attempt) % 2**32, given)
            keys = self.plan.keys(values)
            if self.stages.dead(keys):
                self.passed_over += 1
            elif json.dumps(values, sort_keys=True) not in tried:
                return Proposal(index, values, keys)
            given = given if attempt < 10 else {}
        raise StopIteration

    def _wait(self) -> bool:
        """Whether all trials share a first stage that is being trained."""
        first = self.plan.stages[0]
        if first in self.plan.stage.values():
            return False
        return self.stages.busy(first, self.plan.keys({})[first])

    def _sibling(self) -> Values:
        """The values that siblings share, of the best trial whose stage is done and has room for more."""
        first, reuse = self.plan.shared, self.plan.search.reuse
        if not reuse.on or not first:
            return {}
        groups: dict[str, list[Trial]] = {}
        for trial in self.ledger.trials.values():
            groups.setdefault(trial.keys[first], []).append(trial)
        best: Trial | None = None
        for key, group in groups.items():
            if key in self.ledger.dead or len(group) >= reuse.siblings or not self.stages.done(first, key):
                continue
            for trial in group:
                if trial.metric is not None and (
                    best is None or best.metric is None or self.ledger.better(trial.metric, best.metric)
                ):
                    best = trial
        names = [name for name, at in self.plan.stage.items() if at == first]
        return {name: best.values[name] for name in names if name in best.values} if best else {}

    def _ask(self, seed: int, given: Values) -> Values:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate and group are marked experimental
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self.plan.search.startup, multivariate=True, group=True, constant_liar=True
            )
            study = study_of(self.plan, self.ledger, sampler)
            if given:
                study.enqueue_trial({n: _encode(self.plan.space[n], v) for n, v in given.items()})
            asked = study.ask()
            values: Values = {}
            for name, dimension in self.plan.space.items():
                if active(dimension, values):
                    values[name] = _decode(dimension, _suggest(asked, name, dimension))
        return values


def distribution(dimension: Dimension) -> Any:
    """The Optuna distribution of a dimension; a finite one is the choice of an index."""
    from optuna import distributions as kinds

    if dimension.finite is not None:
        return kinds.CategoricalDistribution(list(range(len(dimension.finite))))
    low, high = dimension.ends()
    if dimension.randint is not None:
        return kinds.IntDistribution(low, high)
    return kinds.FloatDistribution(low, high, log=dimension.log_uniform is not None)


def _suggest(asked: Any, name: str, dimension: Dimension) -> Any:
    if dimension.finite is not None:
        return asked.suggest_categorical(name, list(range(len(dimension.finite))))
    low, high = dimension.ends()
    if dimension.randint is not None:
        return asked.suggest_int(name, low, high)
    return asked.suggest_float(name, low, high, log=dimension.log_uniform is not None)


def _encode(dimension: Dimension, value: Any) -> Any:
    return value if dimension.finite is None else dimension.finite.index(value)


def _decode(dimension: Dimension, value: Any) -> Any:
    return value if dimension.finite is None else dimension.finite[value]


def study_of(plan: Plan, ledger: Ledger, sampler: Any = None) -> Any:
    """All trials as an Optuna study in memory: those that a rung or the budget ended are pruned, with their curve."""
    import optuna
    from optuna.trial import TrialState, create_trial

    study = optuna.create_study(direction="maximize" if plan.search.mode == "max" else "minimize", sampler=sampler)
    for trial in ledger.trials.values():
        whole = trial.status == "finished" and trial.metric is not None
        state = TrialState.COMPLETE if whole else TrialState.PRUNED
        if trial.status == "failed":
            state = TrialState.FAIL
        elif trial.status in OPEN:
            state = TrialState.RUNNING
        used = {name: plan.space[name] for name in plan.space if name in trial.values}
        study.add_trial(
            create_trial(
                state=state,
                value=trial.metric if whole else None,
                params={name: _encode(d, trial.values[name]) for name, d in used.items()},
                distributions={name: distribution(d) for name, d in used.items()},
                intermediate_values=dict(trial.curve) if not whole else {},
            )
        )
    return study
