"""What a report says of runs: metrics with intervals, paired tests, kinds of users, and recommendations.

Shapes: n users who are tested, the same and in the same order for all runs of a report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m3dist.data.dataset import Dataset
from m3dist.serving.run import Run
from m3dist.study import statistics

GROUPS = 4  # of users by their training interactions
HISTORY = 12  # items of a history that are shown


@dataclass(frozen=True)
class Estimate:
    """A mean over users with its 95 % bootstrap interval; None where it is not known by user."""

    mean: float
    low: float | None = None
    high: float | None = None

    @staticmethod
    def of(values_n: np.ndarray) -> Estimate:
        return Estimate(*statistics.mean(values_n[None]))


@dataclass(frozen=True)
class Difference:
    """A paired comparison of a run with the first one. p: corrected by Holm's method over all of the report."""

    run: str
    metric: str
    found: statistics.Comparison
    p: float


@dataclass
class Reported:
    """One run of a report. user: dense ids [n], ascending; values: every user's metrics, float64 [n] by name."""

    name: str
    run: Run
    user: np.ndarray
    values: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def of(root: str, device: str) -> Reported:
        """Raises ValueError where it is no finished run, or one without a test."""
        run = Run(root, device)
        if not run.root.exists("test_users.parquet") or not isinstance(run.result.get("test"), dict):
            raise ValueError(f"{root}: has no test metrics; `m3dist train --resume {root}` measures them")
        with run.root.local("test_users.parquet") as path:
            table = pq.read_table(path)
        columns = {name: table[name].to_numpy() for name in table.column_names if _is_number(table[name])}
        user = columns.pop("user", np.empty(0))
        values = {name: x.astype(np.float64) for name, x in columns.items() if not name.startswith("fusion weight")}
        fits = len(user) and np.issubdtype(user.dtype, np.integer) and (np.diff(user) > 0).all()
        if not fits or user[0] < 0 or user[-1] >= run.dataset.n_users or run.config.evaluation.metric not in values:
            raise ValueError(
                f"{root}/test_users.parquet: damaged or of another version; expected ascending users and a column "
                f"{run.config.evaluation.metric}; train the run again"
            )
        return Reported(root, run, user, values)

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """Of the test: with intervals where every user's value is known; weights of the fusion by modality."""
        weights = {f"fusion weight {m}": f"fusion weight of {x}" for m, x in enumerate(self.run.dataset.modalities)}
        stated = {weights.get(name, name): Estimate(float(x)) for name, x in self.run.result["test"].items()}
        known = {name: Estimate.of(x) for name, x in self.values.items()} | self.cold
        return {name: known.get(name, estimate) for name, estimate in stated.items()}

    @cached_property
    def cold(self) -> dict[str, Estimate]:
        """Metrics /cold, for which users who hold out items without training interactions are ranked again."""
        evaluator = self.run.evaluator
        cold = evaluator.judged("test").cold
        if cold is None:
            return {}
        table = evaluator.evaluate(self.run.score, "test", keep=True, relevant=cold)[1]
        names = [name for name in table if name in self.values]
        return {f"{name}/cold": Estimate.of(np.asarray(table[name])) for name in names}


def _is_number(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) and not column.null_count


def same_data(runs: list[Reported]) -> None:
    """Raises ValueError where runs are on different data, or were tested on different users."""
    first = runs[0]
    for other in runs[1:]:
        if other.run.dataset.fingerprint != first.run.dataset.fingerprint:
            raise ValueError(
                f"{other.name}: is on {other.run.dataset.name}, and {first.name} on {first.run.dataset.name}, which is "
                "other data; a report compares runs on the same data, so make one of each"
            )
        if not np.array_equal(other.user, first.user):
            raise ValueError(f"{other.name}: was tested on other users than {first.name}; make a report of each")


def differences(runs: list[Reported]) -> list[Difference]:
    """Every other run less the first, for all metrics that both know of every user."""
    first, found = runs[0], []
    for other in runs[1:]:
        for metric in (name for name in first.values if name in other.values):
            pair = other.values[metric][None], first.values[metric][None]
            found.append((other.name, metric, statistics.compare(*pair)))
    corrected = statistics.holm([comparison.p for _, _, comparison in found])
    return [Difference(*each, p) for each, p in zip(found, corrected, strict=True)]


@dataclass(frozen=True)
class Group:
    """Users of a report who have so many training interactions. at: their places among the n."""

    low: int
    high: int
    at: np.ndarray

    @property
    def title(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low} to {self.high}"


def groups(dataset: Dataset, user_n: np.ndarray) -> list[Group]:
    """Users without training interactions, then the others in groups of about equal size, the sparsest first."""
    degree_n = dataset.degrees[0][user_n]
    seen = np.sort(degree_n[degree_n > 0])
    edges = np.unique(seen[np.arange(1, GROUPS) * len(seen) // GROUPS]) if len(seen) else np.empty(0, np.int64)
    kind_n = np.where(degree_n == 0, -1, np.searchsorted(edges, degree_n, side="right"))
    out = []
    for kind in np.unique(kind_n):
        at = np.flatnonzero(kind_n == kind)
        out.append(Group(int(degree_n[at].min()), int(degree_n[at].max()), at))
    return out


@dataclass(frozen=True)
class Titles:
    """What items are called: `id` as text by dense id, and `title` where items have one."""

    id: list[str]
    title: list[str | None]

    @staticmethod
    def of(dataset: Dataset) -> Titles:
        table = pq.read_table(dataset.whole("items.parquet"))
        ids = [str(x) for x in table["id"].to_pylist()]
        titles = table["title"].to_pylist() if "title" in table.column_names else [None] * len(ids)
        return Titles(ids, [None if x is None else str(x) for x in titles])


def chosen(dataset: Dataset, user_n: np.ndarray, wanted: list[str], count: int) -> list[Any]:
    """Original ids of the users whose lists are shown: those wanted, else `count` spread over sparse and busy users.

    Raises ValueError on a user that the data set does not have.
    """
    from m3dist.data.importers.idlists import known_ids

    if wanted:
        return known_ids(wanted, dataset.user_ids, "--user")
    order = user_n[np.argsort(dataset.degrees[0][user_n], kind="stable")]
    at = order[(np.arange(count) * 2 + 1) * len(order) // (2 * count)] if count else order[:0]
    return dataset.user_ids.take(pa.array(np.unique(at))).to_pylist()


@dataclass(frozen=True)
class Example:
    """A user's history and what each run recommends, as dense ids of items with scores."""

    user: str
    interactions: int
    history: list[int]
    lists: dict[str, list[tuple[int, float]]]


def examples(runs: list[Reported], users: list[Any], k: int) -> list[Example]:
    """The lists of some users, given by original ids, of every run."""
    if not users:
        return []
    dataset = runs[0].run.dataset
    everyone, items = dataset.user_ids, dataset.item_ids
    lists: dict[str, dict[Any, list[tuple[int, float]]]] = {}
    for one in runs:
        table = one.run.recommend(users, k)
        place = pc.index_in(table["item"], value_set=items.combine_chunks()).to_pylist()
        mine = lists.setdefault(one.name, {})
        for user, item, score in zip(table["user"].to_pylist(), place, table["score"].to_pylist(), strict=True):
            mine.setdefault(user, []).append((item, float(score)))
    who, what = dataset.interactions("train")
    out = []
    for user in users:
        dense = pc.index(everyone, pa.scalar(user, everyone.type)).as_py()
        history = what[slice(*np.searchsorted(who, np.array([dense, dense + 1], who.dtype)))]
        shown = {name: found.get(user, []) for name, found in lists.items()}
        out.append(Example(str(user), len(history), history[:HISTORY].tolist(), shown))
    return out
