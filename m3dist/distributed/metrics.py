"""Values of a run as Ray metrics, which Prometheus reads from every node and cluster/grafana.json shows.

Prometheus sees them as ray_m3dist_loss{run, stage} and so on, as long as the process that set them lives.
"""

from __future__ import annotations

import string
import sys
from urllib.parse import quote

from m3dist.training.callbacks import Callback

LOGGED = {  # gauge: (the name of a logged value, what it is)
    "m3dist_loss": ("loss", "Training loss of the last epoch or round"),
    "m3dist_interactions_per_second": ("interactions/s", "Training interactions of all workers together"),
    "m3dist_workers": ("workers", "Workers that train together"),
}
_TAGS = ("run", "stage")


class RunMetrics:
    """Gauges of one run. run: what tells it from others, such as its folder.

    Ray takes tags of ASCII alone, so other characters of a folder's name are quoted as in a URI.
    """

    def __init__(self, run: str):
        from ray.util.metrics import Counter, Gauge

        self.run = quote(run, safe=string.printable)
        self._gauges = {name: Gauge(name, said, tag_keys=_TAGS) for name, (_, said) in LOGGED.items()}
        self._failures = Counter("m3dist_failures", "Times that workers ended before their run did", tag_keys=("run",))
        self._step = Gauge("m3dist_step", "Last epoch or round that was logged", tag_keys=_TAGS)
        self._ranking = Gauge("m3dist_ranking", "Ranking on validation or test data", tag_keys=(*_TAGS, "metric"))

    def log(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Set the gauges from what a stage logs at a step."""
        tags = {"run": self.run, "stage": stage}
        self._step.set(step, tags)
        for name, (key, _) in LOGGED.items():
            if key in values:
                self._gauges[name].set(values[key], tags)
        for key, value in values.items():
            if "@" in key:
                self._ranking.set(value, {**tags, "metric": key})

    def failed(self) -> None:
        """Count that workers ended before the run did."""
        self._failures.inc(1, {"run": self.run})


class Here(Callback):
    """Sets the gauges of a run whose steps are taken in this process, as long as it is connected to Ray.

    So is a trial of a search, or a process that leads actors. Without Ray it neither starts nor imports it.
    """

    def __init__(self, run: str):
        self.run = run
        self._metrics: RunMetrics | None = None

    def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            self._metrics = self._metrics or RunMetrics(self.run)
            self._metrics.log(stage, epoch, values)
