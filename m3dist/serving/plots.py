"""Plots of a finished run: masks, environments, weights of the fusion, and curves of training.

Every method returns matplotlib's axes, so that a notebook shows the plot and a script goes on with it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from m3dist.serving.run import Run


def _panels(count: int) -> np.ndarray:
    """Axes side by side."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ValueError('plot: matplotlib is not installed; pip install "m3dist[plot]"') from None
    _, axes = pyplot.subplots(1, count, figsize=(3.6 * count, 3.0), squeeze=False, layout="constrained")
    return axes[0]


class Plots:
    """Plots of one run. Each raises ValueError where the run has nothing of the kind, or matplotlib is missing."""

    def __init__(self, run: Run):
        self.run = run

    def masks(self) -> np.ndarray:
        """How far every representation's dimensions are kept, from the largest to the least; planted data show both
        kinds of dimensions."""
        if not self.run.root.exists("masks.parquet"):
            raise ValueError(f"plot.masks: model={self.run.config.model} learns no masks; m3-invrl and invrl do")
        with self.run.root.local("masks.parquet") as path:
            table = pq.read_table(path)
        names = np.array(table["representation"].to_pylist())
        mask = table["mask"].to_numpy()
        known = table["planted"].to_pylist() if "planted" in table.column_names else [None] * len(mask)
        axes = _panels(len(dict.fromkeys(names)))
        for axis, name in zip(axes, dict.fromkeys(names.tolist()), strict=True):
            here = np.flatnonzero(names == name)
            here = here[np.argsort(-mask[here], kind="stable")]
            kinds = {True: "planted", False: "spurious", None: "mask"}
            for kind, label in kinds.items():
                at = [place for place, n in enumerate(here) if known[n] is kind]
                if at:
                    axis.bar(at, mask[here][at], width=1.0, label=label)
            axis.set(title=name, xlabel="dimension, sorted", ylim=(0, 1))
        axes[0].set_ylabel("mask")
        if any(x is not None for x in known):
            axes[0].legend(fontsize=7)
        return axes

    def environments(self) -> np.ndarray:
        """How many training interactions each environment has after every round, for each representation."""
        rounds = self.run.result["stages"].get("invariance", {}).get("rounds", [])
        if not rounds:
            raise ValueError("plot.environments: this run found none; a run of m3-invrl or invrl from nothing does")
        count = 1 + max(int(name.partition("/")[0]) for name in rounds[0] if "/environment " in name)
        modalities = list(self.run.dataset.modalities)
        names = [*modalities, "common"] if count == len(modalities) + 1 else [str(r) for r in range(count)]
        axes = _panels(count)
        for r, (axis, title) in enumerate(zip(axes, names, strict=True)):
            at = np.arange(1, len(rounds) + 1)
            below = np.zeros(len(rounds))
            for name in (name for name in rounds[0] if name.startswith(f"{r}/environment ")):
                size = np.array([one[name] for one in rounds])
                axis.bar(at, size, bottom=below, label=name.split()[-1])
                below += size
            axis.set(title=title, xlabel="round", xticks=at)
        axes[0].set_ylabel("interactions")
        return axes

    def fusion(self) -> np.ndarray:
        """How the weight of every modality is spread over the users who are tested."""
        names = list(self.run.dataset.modalities)
        table = None
        if self.run.root.exists("test_users.parquet"):
            with self.run.root.local("test_users.parquet") as path:
                table = pq.read_table(path)
        if table is None or "fusion weight 0" not in table.column_names:
            raise ValueError("plot.fusion: this run weighs no modalities; m3-invrl does, after its test")
        (axis,) = _panels(1)
        for m, name in enumerate(names):
            axis.hist(table[f"fusion weight {m}"].to_numpy(), bins=30, alpha=0.6, label=name)
        axis.set(xlabel="weight", ylabel="users")
        axis.legend(fontsize=7)
        return np.array([axis])

    def curves(self, metric: str | None = None) -> np.ndarray:
        """The loss of every stage and the validation metric, by epoch. metric: by default the one that selects."""
        metric = metric or self.run.config.evaluation.metric
        if not self.run.root.exists("metrics.jsonl"):
            raise ValueError("plot.curves: the run folder has no metrics.jsonl")
        lines: dict[str, dict[str, dict[int, float]]] = {name: defaultdict(dict) for name in ("loss", metric)}
        with self.run.root.local("metrics.jsonl") as path:
            logged: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
        for one in logged:
            for name, stages in lines.items():
                if name in one and one["stage"] != "test":
                    stages[one["stage"]][one["step"]] = one[name]
        if not lines[metric]:
            raise ValueError(
                f"plot.curves: {metric} was never logged; the run selects by {self.run.config.evaluation.metric}"
            )
        axes = _panels(2)
        for axis, (name, stages) in zip(axes, lines.items(), strict=True):
            for stage, values in stages.items():
                axis.plot([step + 1 for step in values], [*values.values()], marker=".", label=stage)
            axis.set(title=name, xlabel="epoch")
            axis.legend(fontsize=7)
        return axes
