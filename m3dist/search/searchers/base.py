"""What every searcher is: it proposes points, and knows how far the stages that trials share are."""

from __future__ import annotations

import abc
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from m3dist.search import stages
from m3dist.search.dimensions import Dimension, Values
from m3dist.search.ledger import OPEN, Ledger
from m3dist.search.space import Plan

_MISSES = 2000  # points in a row that were tried before, after which a space counts as used up


@dataclass(frozen=True)
class Proposal:
    """A point to try. index: its number among the searcher's proposals, kept with the trial. keys: of its stages."""

    index: int
    values: Values
    keys: dict[str, str]


class Searcher(abc.ABC):
    """Proposes points of a search's space: those that the search file gives, then its own.

    plan: the search. ledger: what is known of all trials so far. skipped: proposals that were left out because
    another trial was stopped or diverged in a stage of theirs; training is a function of the config, so they would
    have ended the same way.
    """

    def __init__(self, plan: Plan, ledger: Ledger):
        self.plan, self.ledger = plan, ledger
        self.skipped = 0
        self._store = stages.store(plan.base)

    @classmethod
    def check(cls, space: Mapping[str, Dimension]) -> None:
        """Raises ValueError where the searcher cannot search a space."""
        return None

    def next(self) -> Proposal | None:
        """The next point, or None to be asked again later. Raises StopIteration when there are no more."""
        issued = {trial.index for trial in self.ledger.trials.values()}
        for at, values in enumerate(self.plan.search.points):
            if -1 - at not in issued:
                return Proposal(-1 - at, values, self.plan.keys(values))
        return self.propose()

    @abc.abstractmethod
    def propose(self) -> Proposal | None:
        """As `next`, for the searcher's own points, whose indices are 0 and more."""

    def done(self, stage: str, key: str) -> bool:
        """Whether a stage is trained already and can be reused."""
        return self.plan.search.reuse.on and self._store.has(stage, key)

    def busy(self, stage: str, key: str) -> bool:
        """Whether a running trial trains a stage or is about to."""
        running = (t for t in self.ledger.trials.values() if t.status in OPEN)
        shares = self.plan.search.reuse.on and any(t.keys[stage] == key for t in running)
        return shares and not self._store.has(stage, key)

    def hopeless(self, keys: dict[str, str]) -> bool:
        """Whether a point has a stage in which another trial was stopped or diverged."""
        return any(key in self.ledger.hopeless for key in keys.values())


class Sequence(Searcher):
    """A searcher whose points are a fixed sequence, taken slightly out of order to reuse finished stages.

    A subclass gives the sequence; points in it that came before are passed over. Among the next `reuse.lookahead`
    points the one with the most stages done goes first. One whose stage is in training waits unless there is no other.
    """

    def __init__(self, plan: Plan, ledger: Ledger):
        super().__init__(plan, ledger)
        self._window: list[Proposal] = []
        self._proposals = self._new()

    @abc.abstractmethod
    def points(self) -> Iterator[Values]:
        """The points in order; the same whenever the search goes on."""

    def propose(self) -> Proposal | None:
        while True:
            good = [p for p in self._window if not self.hopeless(p.keys)]
            self.skipped += len(self._window) - len(good)
            self._window = good
            more = list(itertools.islice(self._proposals, max(0, self._ahead() - len(good))))
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

    def _new(self) -> Iterator[Proposal]:
        """Points that were not tried before, in this run or an earlier one."""
        issued = {trial.index for trial in self.ledger.trials.values()}
        seen = {_text(point) for point in self.plan.search.points}
        index = misses = 0
        for values in self.points():
            if (text := _text(values)) in seen:
                misses += 1
                if misses > _MISSES:
                    return
                continue
            seen.add(text)
            misses = 0
            if index not in issued:
                yield Proposal(index, values, self.plan.keys(values))
            index += 1

    def _ahead(self) -> int:
        """Proposals to choose from: enough for one that no running trial is about to train a stage of."""
        reuse, running = self.plan.search.reuse, sum(t.status in OPEN for t in self.ledger.trials.values())
        return max(reuse.lookahead, reuse.siblings * (running + 1)) if reuse.on else 1

    def _worth(self, proposal: Proposal) -> int:
        """Stages done; -1 where a running trial trains the next one."""
        done = 0
        for stage, key in proposal.keys.items():
            if self.done(stage, key):
                done += 1
            elif self.busy(stage, key):
                return -1
            else:
                break
        return done


def _text(values: Values) -> str:
    return json.dumps(values, sort_keys=True)
