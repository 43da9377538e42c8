"""Callbacks that send what a run reports to experiment trackers. They run in the process that started the run.

Each needs its own library: `pip install "m3dist[mlflow]"` or `pip install "m3dist[wandb]"`. A server's address and keys
come from the library's own environment variables, never from a config.
"""

from __future__ import annotations

import importlib
from typing import Any

from m3dist.training.callbacks import Callback


class _Logger(Callback):
    """Names values stage/name; an epoch of a stage is a step of its own there."""

    library = ""

    def __init__(self) -> None:
        try:
            self.module: Any = importlib.import_module(self.library)
        except ImportError:
            raise ValueError(
                f'report_to: {self.library} is not installed; run `pip install "m3dist[{self.library}]"`'
            ) from None


class MLflow(_Logger):
    """One MLflow run, in the experiment that MLFLOW_EXPERIMENT_NAME names; the active run when there is one."""

    library = "mlflow"

    def __init__(self) -> None:
        super().__init__()
        self._own = self.module.active_run() is None

    def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        if self.module.active_run() is None:
            self.module.start_run()
        metrics = {f"{stage}/{name.replace('@', '_at_')}": value for name, value in values.items()}
        self.module.log_metrics(metrics, step=epoch)

    def on_end(self, result: dict[str, Any]) -> None:
        self.module.log_params({"model": result["model"], "data": result["data"]})
        if self._own:
            self.module.end_run()


class WandB(_Logger):
    """One Weights & Biases run, in the project that WANDB_PROJECT names; the active run when there is one."""

    library = "wandb"

    def __init__(self) -> None:
        super().__init__()
        self._own = self.module.run is None

    def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        if self.module.run is None:
            self.module.init()
        self.module.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/epoch": epoch})

    def on_end(self, result: dict[str, Any]) -> None:
        self.module.run.summary.update({f"test/{k}": v for k, v in result.get("test", {}).items()})
        if self._own:
            self.module.finish()


LOGGERS: dict[str, type[Callback]] = {"mlflow": MLflow, "wandb": WandB}
