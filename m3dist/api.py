"""Training and opening runs from Python; the command line is built on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.serving.run import Run
from m3dist.training.callbacks import Callback


def train(
    dataset: Dataset | str | Path | None = None,
    config: Config | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> Run:
    """Train a model and open the finished run.

    dataset: an opened data set, the folder or URI of one, or None for the one that the config names. config: by default
    all default values; its `out` is the run folder, and the same call again skips what is done there. callbacks: told
    of stages, steps, epochs, evaluations and the end; any may raise Stopped. quiet: show no progress.

    Raises ValueError, in one line, when data or config cannot be used; FloatingPointError when training diverges;
    Stopped when a callback ended the run; KeyboardInterrupt, after a checkpoint, when it was interrupted; and
    training.tracking.RunFailed when workers kept failing.
    """
    from m3dist import pipeline

    config = config or Config()
    if dataset is not None:
        root = dataset.root if isinstance(dataset, Dataset) else dataset
        config = config.model_copy(update={"data": str(root)})
    pipeline.run(config, callbacks, quiet)
    return Run(config.out)


def load(run: str | Path) -> Run:
    """Open a finished run by its folder or URI. Raises ValueError when there is none."""
    return Run(run)
