"""Runs of a study: the same config twice is trained once, and stages that runs share are trained once.

Shapes: S seeds, n users with test items.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3dist import config as configs
from m3dist import pipeline
from m3dist.config import Config, Evaluation, digest
from m3dist.data.dataset import Dataset
from m3dist.evaluation import ranking
from m3dist.evaluation.evaluator import Evaluator
from m3dist.method import registry
from m3dist.method.fused import Fused, Members, learn
from m3dist.study.methods import LEARNING_RATES, Method
from m3dist.training.context import Context

K = (5, 10, 20, 30, 40, 50)


@dataclass
class Study:
    """What a study runs on. budget scales every number of epochs; trials: learning rates tried per method."""

    data: str
    out: Path
    seeds: int = 3
    budget: float = 1.0
    trials: int = 1
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # rows of table 3 and of the shifted sets; empty: all
    quiet: bool = False
    tried: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # method: (rate, validation metric)

    @functools.cached_property
    def dataset(self) -> Dataset:
        return Dataset(self.data)

    def config(self, method: Method, seed: int, *extra: str, data: str | None = None) -> Config:
        """Of one run; its folder is named by its values."""
        values = [*method.overrides, f"evaluation.k={list(K)}", *self.overrides, *extra, f"seed={seed}"]
        config = configs.load(None, [f"data={data or self.data}", f"artifacts={self.out / 'artifacts'}", *values])
        if self.budget != 1:
            config = _scaled(config, self.budget, (Dataset(data) if data else self.dataset).size("train"))
        name = method.overrides[0].removeprefix("model=")
        key = digest(config.model_dump(exclude={"out", "artifacts"}))
        return config.model_copy(update={"out": str(self.out / "runs" / f"{name}-{seed}-{key}")})

    def run(self, config: Config, test: bool = True) -> dict[str, Any]:
        return pipeline.run(config, quiet=self.quiet, test=test)

    def rate(self, method: Method, data: str | None = None) -> tuple[str, ...]:
        """The learning rate with the best validation metric of seed 0, as an override; none with a single trial."""
        if self.trials < 2:
            return ()
        found = []
        for rate in LEARNING_RATES[: self.trials]:
            config = self.config(method, 0, f"{method.rate}={rate}", data=data)
            found.append((rate, self.run(config, test=False)["validation"][config.evaluation.metric]))
        self.tried[method.name] = found
        return (f"{method.rate}={max(found, key=lambda pair: pair[1])[0]}",)

    def configs(self, method: Method, *extra: str, data: str | None = None) -> list[Config]:
        """One per seed, at the chosen learning rate."""
        rate = self.rate(method, data)
        return [self.config(method, seed, *rate, *extra, data=data) for seed in range(self.seeds)]

    def scores(self, method: Method, *extra: str, data: str | None = None) -> Scores:
        """Train the method under every seed, and read its users' test metrics."""
        results, tables = [], []
        for config in self.configs(method, *extra, data=data):
            results.append(self.run(config))
            tables.append(self.users(config))
        return Scores.of(method.name, method.category, tables, results)

    def users(self, config: Config) -> dict[str, np.ndarray]:
        """Every user's test metrics of a finished run."""
        key = pipeline.keys(config, pipeline.open_data(config))["test"]
        tensors = pipeline.artifact_store(config).load("test", key)[0]
        return {name: x.numpy() for name, x in tensors.items()}

    def scorer(self, config: Config) -> ranking.Scorer:
        """A finished run, ready to rank."""
        stage = pipeline.final_stage(config)
        key = pipeline.keys(config, pipeline.open_data(config))[stage]
        return pipeline.scorer(config, pipeline.artifact_store(config).load(stage, key)[0])

    def strategies(self, method: Method, names: dict[str, str]) -> list[Scores]:
        """Table 5: the recommenders of each finished run of `method`, fused by every strategy {strategy: row}."""
        tables: dict[str, list[dict[str, np.ndarray]]] = {strategy: [] for strategy in names}
        for config in self.configs(method):
            self.run(config)
            key = pipeline.keys(config, self.dataset)["merge"]
            tensors = pipeline.artifact_store(config).load("merge", key)[0]
            context, members = Context(self.dataset, config), Members(tensors)
            for strategy in names:
                score = Fused.of(members, strategy, learn(context, members, strategy))
                tables[strategy].append(context.evaluator.evaluate(score, "test", keep=True)[1])
        return [Scores.of(row, "fusion", tables[strategy], []) for strategy, row in names.items()]

    def popularity(self) -> Scores:
        """Ranking by training interactions: no method of the paper, but what each must beat."""
        evaluator = Evaluator(self.dataset, self.config(Method("", "", ("model=ultragcn",)), 0).evaluation)
        table = evaluator.evaluate(by_popularity(self.dataset), "test", keep=True)[1]
        return Scores.of("Popularity", "reference", [table], [])


def by_popularity(dataset: Dataset) -> ranking.Scorer:
    """Every user gets the items with the most training interactions."""
    degree_I = torch.from_numpy(dataset.degrees[1]).float()
    return lambda user_u, mask: (degree_I.expand(len(user_u), -1).clone(), None)


def against(dataset: Dataset, score: ranking.Scorer, user: np.ndarray, item: np.ndarray) -> dict[str, np.ndarray]:
    """Every user's metrics on held-out pairs of one's own; training and validation items are masked."""
    relevant = ranking.Seen.of((user, item), dataset.n_users)
    return Evaluator(dataset, Evaluation(k=K)).evaluate(score, "test", keep=True, relevant=relevant)[1]


def _scaled(config: Config, budget: float, interactions: int) -> Config:
    """Every number of epochs times `budget`, at least 1; `auto` stands for what it is on so many interactions."""
    update = {}
    for stage in registry.model(config.model).stages:
        values, scaled = getattr(config, stage.section), {}
        for name in stage.lengths:
            given = getattr(values, name)
            number = values.length(interactions) if given == "auto" else given
            if number:
                scaled[name] = max(1, round(number * budget))
        update[stage.section] = values.model_copy(update=scaled)
    return config.model_copy(update=update)


@dataclass(frozen=True)
class Scores:
    """A row's metrics of every user under every seed: {metric: float64 [S, n]}; users [n] ascending."""

    name: str
    category: str
    users: np.ndarray
    values: dict[str, np.ndarray]
    epochs: list[int]  # of the best validation metric, per seed

    @staticmethod
    def of(name: str, category: str, tables: list[dict[str, np.ndarray]], results: list[dict[str, Any]]) -> Scores:
        tables = [{key: x[np.argsort(table["user"])] for key, x in table.items()} for table in tables]
        users = tables[0]["user"]
        assert all((table["user"] == users).all() for table in tables)
        values = {key: np.stack([table[key] for table in tables]) for key in tables[0] if key != "user"}
        last = [list(result["stages"].values())[-1] for result in results]
        epochs = [int(meta["epoch"]) for meta in last if meta.get("epoch") is not None]
        return Scores(name, category, users, values, epochs)

    def mean(self, metric: str) -> float:
        return float(self.values[metric].mean())

    def spread(self, metric: str) -> float:
        """Standard deviation over seeds of the mean over users; nan with one seed."""
        means = self.values[metric].mean(1)
        return float(means.std(ddof=1)) if len(means) > 1 else float("nan")
