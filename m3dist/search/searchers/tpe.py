"""Optuna's tree-structured Parzen estimator (Bergstra et al., NIPS 2011)."""

from __future__ import annotations

import json
import warnings

from m3dist.search.dimensions import Values, active
from m3dist.search.ledger import Trial
from m3dist.search.optuna_study import decode, distribution, encode, study_of
from m3dist.search.searchers.base import Proposal, Searcher
from m3dist.seeding import derive

_TRIES = 100  # proposals of the model that were all tried before, after which a space counts as used up
_SIBLINGS = 10  # of these tries, those that keep the values of a stage to reuse


class TPE(Searcher):
    """The model is told of all trials before every question, so that a search that goes on forgets nothing.

    While a finished stage that no rung has stopped has fewer than `reuse.siblings` trials, the model is asked for the
    rest of the point with that stage's values given; otherwise for a whole point.
    """

    def propose(self) -> Proposal | None:
        index = len(self.ledger.trials)
        if self._wait():
            return None
        tried = {json.dumps(t.values, sort_keys=True) for t in self.ledger.trials.values()}
        given = self._sibling()
        for attempt in range(_TRIES):
            seed = derive(self.plan.search.seed, "tpe", index, attempt) % 2**32
            values = self._ask(seed, given if attempt <= _SIBLINGS else {})
            keys = self.plan.keys(values)
            if self.hopeless(keys):
                self.skipped += 1
            elif json.dumps(values, sort_keys=True) not in tried:
                return Proposal(index, values, keys)
        raise StopIteration

    def _wait(self) -> bool:
        """Whether all trials share a first stage that is being trained."""
        first = self.plan.stages[0]
        return first not in self.plan.stage.values() and self.busy(first, self.plan.keys({})[first])

    def _sibling(self) -> Values:
        """The values that siblings share, of the best trial whose stage is done and has room for more."""
        shared, reuse = self.plan.shared, self.plan.search.reuse
        if not reuse.on or not shared:
            return {}
        groups: dict[str, list[Trial]] = {}
        for trial in self.ledger.trials.values():
            groups.setdefault(trial.keys[shared], []).append(trial)
        open_ = [
            trial
            for key, group in groups.items()
            if len(group) < reuse.siblings and key not in self.ledger.hopeless and self.done(shared, key)
            for trial in group
        ]
        best = self.ledger.best_of(open_)
        names = [name for name, stage in self.plan.stage.items() if stage == shared]
        return {name: best.values[name] for name in names if name in best.values} if best else {}

    def _ask(self, seed: int, given: Values) -> Values:
        """A point that the model thinks good, with these values of some dimensions."""
        import optuna

        space = self.plan.space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate and group are marked experimental
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self.plan.search.startup, multivariate=True, group=True, constant_liar=True
            )
            study = study_of(self.plan, self.ledger, sampler)
            if given:
                study.enqueue_trial({name: encode(space[name], value) for name, value in given.items()})
            asked = study.ask({name: distribution(dimension) for name, dimension in space.items()})
        values: Values = {}
        for name, dimension in space.items():
            if active(dimension, values):
                values[name] = decode(dimension, asked.params[name])
        return values
