"""Small planted data, and worker functions that run in processes of their own."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from m3dist import checksums, pipeline
from m3dist import config as configs
from m3dist.config import Config
from m3dist.data import synthetic
from m3dist.data.dataset import Dataset
from m3dist.distributed.engine import Engine
from m3dist.method import invariance
from m3dist.method.align import AlignTask
from m3dist.method.content import Contents
from m3dist.method.merge import MergeTask
from m3dist.storage.artifacts import Output, Store
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Folder
from m3dist.training.callbacks import Callback, Callbacks, Stopped
from m3dist.training.context import Context
from m3dist.training.loop import Plan, fit
from m3dist.training.tracking import Tracker

SMALL = [
    "synthetic.users=97", "synthetic.items=70", "synthetic.interactions=20", "backbone.dim=8",
    "backbone.content_dim=8", "backbone.negatives=24", "backbone.loss=softmax", "align.epochs=3",
    "align.batch_size=301", "align.dim=16", "align.encoder=linear", "align.contrastive_items=41",
    "invariance.rounds=2", "invariance.environments=3", "invariance.batch_size=512", "invariance.negatives=32",
    "invariance.environment_steps=6", "invariance.mask_steps=12", "merge.masks=learned", "merge.epochs=3",
    "merge.batch_size=301", "evaluation.k=[5,10]", "align.evaluate_every=1", "merge.evaluate_every=1",
]  # fmt: skip


def small(*extra: str) -> Config:
    return configs.load(None, [*SMALL, *extra])


STEPS = 50
ULTRAGCN = "backbone.loss=ultragcn"
RUNS = [
    ("align", small()),
    ("merge", small("backbone.nu=0.1")),
    ("merge", small("backbone.groups=5", "backbone.negatives=8", "backbone.content=concat")),
    ("merge", small(ULTRAGCN)),
    ("merge", small(ULTRAGCN, "optimizer=dense", "backbone.nu=0")),
    (
        "align",
        small(ULTRAGCN, "backbone.sampling=per_positive", "backbone.negatives=4", "align.encoder=identity"),
    ),
]


def planted(root: Path, config: Config) -> Path:
    """A planted data set of which a third of the items lack modality 1."""
    synthetic.write(root, config.synthetic, config.seed)
    (root / "present").mkdir(exist_ok=True)
    present = np.arange(config.synthetic.items) % 3 > 0
    np.save(root / "present" / "modality1.npy", present)
    features = np.load(root / "features" / "modality1.npy")
    features[~present] = 0
    np.save(root / "features" / "modality1.npy", features)
    stated = checksums.checked(json.loads((root / "dataset.json").read_text()))
    changed = ("features/modality1.npy", "present/modality1.npy")
    stated["files"] |= {name: checksums.of_file(root / name) for name in changed}
    (root / "dataset.json").write_text(json.dumps(checksums.stamped(stated)))
    return root


class Gang:
    """Processes that are joined by gloo and take one piece of work after another: starting them costs seconds."""

    def __init__(self, world: int):
        self.world = world
        self.folder = tempfile.TemporaryDirectory()
        context = mp.get_context("spawn")
        self.pipes, others = zip(*(context.Pipe() for _ in range(world)), strict=True)
        self.processes = [
            context.Process(target=_serve, args=(rank, world, self.folder.name, pipe), daemon=True)
            for rank, pipe in enumerate(others)
        ]
        for process in self.processes:
            process.start()

    def __call__(self, work: Callable[..., Any], args: tuple, timeout: float) -> list[Any]:
        """Raises what one of them raised, and TimeoutError; the others may hang then, and the gang is of no use."""
        until, pending = time.monotonic() + timeout, list(self.pipes)
        for pipe in pending:
            pipe.send((work, args))
        while pending:
            if time.monotonic() > until:
                raise TimeoutError(f"{self.world} workers of {work.__name__} still ran after {timeout} s")
            for pipe in wait(pending, timeout=1):
                try:
                    failure = pipe.recv()
                except EOFError:
                    failure = "it died"
                assert not failure, f"worker {self.pipes.index(pipe)} of {work.__name__}: {failure}"
                pending.remove(pipe)
        return [torch.load(Path(self.folder.name) / f"{rank}.pt", weights_only=False) for rank in range(self.world)]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def _serve(rank: int, world: int, folder: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # which DeepSpeed asks for
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60)
    )
    while True:
        work, args = pipe.recv()
        try:
            torch.save(work(rank, world, *args), Path(folder) / f"{rank}.pt")
            pipe.send("")
        except BaseException:
            pipe.send(traceback.format_exc())


_gangs: dict[int, Gang] = {}


def spawn(world: int, work: Callable[..., Any], *args: Any, timeout: float = 250) -> list[Any]:
    """What work(rank, world, *args) returns in `world` gloo processes, which stay for the next call with as many."""
    if world not in _gangs:
        disband()
        _gangs[world] = Gang(world)
    try:
        return _gangs[world](work, args, timeout)
    except BaseException:
        disband()
        raise


def disband() -> None:
    """End the processes that `spawn` left."""
    while _gangs:
        _gangs.popitem()[1].close()


def engine_of(config: Config, rank: int, world: int) -> Engine:
    return Engine.of(config, rank, world, "cpu")


def task_of(stage: str, config: Config, root: Path, engine: Engine) -> AlignTask | MergeTask:
    context = Context(Dataset(root), config, engine)
    return AlignTask(context) if stage == "align" else MergeTask(context, Contents.beside(context.data.features))


def trajectory(rank: int, world: int, stage: str, config: Config, root: Path, steps: int) -> dict[str, Any]:
    """Losses of the first steps, the validation metrics and the parameters after them."""
    engine = engine_of(config, rank, world)
    task = task_of(stage, config, root, engine)
    losses = []
    for t in range(steps):
        terms = step_at(task, t)
        losses.append(engine.totals({name: float(x) for name, x in terms.items()}))
    held = {name: table.weight.shape[1] for name, table in task.tables.items()}
    return {
        "losses": losses,
        "metrics": task.evaluate(),
        "state": whole(task, engine),
        "sent": engine.sent,
        "held": held,
    }


def step_at(task: AlignTask | MergeTask, number: int) -> dict[str, torch.Tensor]:
    """The step of that number, counted from the first epoch's first."""
    task.draws.seek(*divmod(number, task.draws.steps))
    return task.step()


def whole(task: AlignTask | MergeTask, engine: Engine) -> dict[str, torch.Tensor]:
    """A task's state on every worker, of sharded tables all rows."""
    return task.dense.state() | {name: table.whole(engine) for name, table in task.tables.items()}


def trajectories(rank: int, world: int, runs: list[tuple[str, Config]], root: Path, steps: int) -> list[dict[str, Any]]:
    return [trajectory(rank, world, stage, config, root, steps) for stage, config in runs]


def carried_over(rank: int, world: int, stage: str, first: Config, then: Config, root: Path, steps: int) -> Any:
    """The parameters after `steps` steps of one strategy and, from its state and moments, `steps` of another's."""
    dense, rows = [{}, {}], {}
    for config, start in ((first, 0), (then, steps)):
        engine = engine_of(config, rank, world)
        task = task_of(stage, config, root, engine)
        if start:
            task.dense.load(dense[0])
            task.dense.load_moments(dense[1])
            for name, table in task.tables.items():
                for key, x in table.parts().items():
                    x.copy_(rows[name][key])
                table.steps.fill_(start)
        for t in range(start, start + steps):
            step_at(task, t)
        dense = [task.dense.state(), task.dense.moments()]
        rows = {name: {key: x.clone() for key, x in table.parts().items()} for name, table in task.tables.items()}
    return {**dense[0], **{f"{name}/{key}": x for name, kept in rows.items() for key, x in kept.items()}}


class StopAfter(Callback):
    """Ends a run after an epoch or a round; after none where it is None."""

    def __init__(self, last: int | None):
        self.last = last

    def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        if epoch == self.last:
            raise Stopped


def fitted(
    rank: int, world: int, stage: str, config: Config, root: Path, folder: Path, stop: int | None
) -> dict[str, torch.Tensor]:
    """The state after `fit` with checkpoints in `folder`, which goes on from them; `stop`: saved after this epoch."""
    engine = engine_of(config, rank, world)
    task = task_of(stage, config, root, engine)
    saves = Checkpoints(Folder(folder), "key", config.checkpoint, engine)

    with Tracker(None, Callbacks([StopAfter(stop)])) as tracker:
        try:
            fit(task, Plan(stage, getattr(config, stage), config.evaluation.metric), tracker, saves)
            assert stop is None
        except Stopped:
            assert stop is not None
    return whole(task, engine)


def aligned(dataset: Dataset, config: Config) -> dict[str, torch.Tensor]:
    """What stage 1 leaves before its first step."""
    start = AlignTask(Context(dataset, config))
    return start.output({}).tensors


def rounds(rank: int, world: int, runs: list[Config], root: Path) -> list[Output]:
    """Stage 2 on what stage 1 starts from."""
    dataset = Dataset(root)
    contexts = [Context(dataset, config, engine_of(config, rank, world)) for config in runs]
    return [invariance.train(context, aligned(dataset, context.config)) for context in contexts]


def rounds_between(rank: int, world: int, config: Config, root: Path, folder: Path, stop: int | None) -> Output | None:
    """The same with checkpoints in `folder`, which it goes on from, and its artifact beside them; `stop`: after this
    round, which leaves None."""
    engine, dataset = engine_of(config, rank, world), Dataset(root)
    saves = Checkpoints(Folder(folder / "saves"), "key", config.checkpoint, engine)
    with Tracker(None, Callbacks([StopAfter(stop)])) as tracker:
        context = Context(dataset, config, engine, tracker)
        context.checkpoints = saves
        try:
            output = invariance.train(context, aligned(dataset, config))
        except Stopped:
            assert stop is not None
            return None
    assert stop is None
    Store(folder).save("invariance", "key", output, engine)
    return output


def whole_run(rank: int, world: int, config: Config) -> None:
    """Every step of a run."""
    with Tracker(None) as tracker:
        steps = tuple(pipeline.planned(config, True))
        pipeline.work(pipeline.Job(config, steps), engine_of(config, rank, world), tracker)


def agree(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Losses to 1e-5 relative, metrics to 1e-6."""
    for name in theirs["losses"][0]:
        ours_t, theirs_t = ([step[name] for step in run["losses"]] for run in (ours, theirs))
        np.testing.assert_allclose(ours_t, theirs_t, rtol=1e-5, atol=1e-7, err_msg=name)
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-6)


def same_everywhere(results: list[dict[str, Any]]) -> None:
    for other in results[1:]:
        assert other["metrics"] == results[0]["metrics"]
        for name, value in results[0]["state"].items():
            assert torch.equal(other["state"][name], value), name
