"""Section `peers`: what a user would pick instead, on the same data: time per epoch, and to a given validation NDCG.

Every peer trains in a process of its own, under the first of several Pythons that has it, since their requirements
exclude one another. Scores of all peers, m3dist's included, are ranked by m3dist.evaluation.ranking.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Row
from benchmarks.subjects import Subject, factors, stepping
from benchmarks.versus import plain_batches, plain_model, plain_step
from m3dist.data.dataset import Dataset
from m3dist.method.merge import MergeTask

SCRIPT = Path(__file__).with_name("train.py")
THEIRS = {  # the packages behind a peer; its model class
    "implicit BPR": ("implicit", "ids"),
    "cornac BPR": ("cornac", "ids"),
    "recbole BPR": ("recbole", "ids"),
    "recbole LightGCN": ("recbole", "graph"),
    "rectools BPR": ("rectools", "ids"),
    "cornac VBPR": ("cornac", "content"),
}
OURS = {"m3dist backbone on ids": "ids", "m3dist backbone": "content", "plain backbone": "content"}


@dataclass
class Limits:
    """A peer ends after `seconds` of training, or when it no longer gains."""

    seconds: float
    target: float  # validation NDCG@10
    patience: int = 10  # epochs without a better one


class Course:
    """NDCG@10 against seconds of training."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.seconds: list[float] = []
        self.ndcg: list[float] = []

    def add(self, seconds: float, ndcg: float) -> bool:
        """Note an epoch; whether another one is wanted."""
        self.seconds.append(seconds)
        self.ndcg.append(ndcg)
        since = len(self.ndcg) - 1 - int(np.argmax(self.ndcg))
        return seconds < self.limits.seconds and since < self.limits.patience

    def values(self) -> dict[str, float]:
        """Median seconds per epoch, the best NDCG@10 and when, and seconds to the target; NaN where not reached."""
        reached = [s for s, x in zip(self.seconds, self.ndcg, strict=True) if x >= self.limits.target]
        per = np.diff([0.0, *self.seconds])
        return {
            "s per epoch": float(np.median(per)),
            "epochs": float(len(per)),
            "best ndcg@10": max(self.ndcg),
            f"s to ndcg@10 {self.limits.target:g}": reached[0] if reached else float("nan"),
        }


def measure(
    data: Path, pythons: tuple[str, ...], limits: Limits, only: tuple[str, ...] = (), values: tuple[str, ...] = ()
) -> Iterator[Row]:
    """values: KEY=VALUE of ours and of the plain one. Raises ValueError on an unknown peer."""
    if unknown := [name for name in only if name not in THEIRS | OURS]:
        raise ValueError(f"no peer {', '.join(unknown)}; there are {', '.join(THEIRS | OURS)}")
    subject = Subject(Dataset(data), *values)
    rank = validation(subject)
    for name in OURS:
        if (not only and name != "plain backbone") or name in only:  # the plain one takes a quarter of an hour
            yield Row("peers", name, ours(name, subject, rank, limits), note=OURS[name])
    for name in THEIRS:
        if not only or name in only:
            yield theirs(name, subject, rank, pythons, limits)


def validation(subject: Subject) -> Callable[[np.ndarray | Callable], float]:
    """NDCG@10 of a score matrix [U, I] or of a scorer."""

    def ndcg(scores: np.ndarray | Callable) -> float:
        score = scores if callable(scores) else lambda u: torch.from_numpy(scores[u.numpy()])
        return subject.context.evaluator.evaluate(lambda u, mask: (score(u), None), "val")[0]["ndcg@10"]

    return ndcg


def ours(name: str, subject: Subject, rank: Callable, limits: Limits) -> dict[str, float]:
    """Our backbone, or the plain one, with the default values, learning rate falling over the default epochs."""
    config, course, epochs = subject.config.merge, Course(limits), subject.config.merge.length(len(subject.user))
    task: MergeTask = subject.ids if name.endswith("ids") else subject.backbone
    plain = _Plain(subject, task) if name.startswith("plain") else None
    step, steps, spent = stepping(task, config), task.draws.steps, 0.0
    for epoch in range(epochs):
        began = time.perf_counter()
        for at in range(steps):
            if plain is None:
                step()
            else:
                plain.step(1 - (epoch + at / steps) / epochs)
        spent += time.perf_counter() - began
        user, item = factors(task) if plain is None else plain.model.factors()
        if not course.add(spent, rank(lambda u, user=user, item=item: user[u] @ item.T)):
            break
    return course.values()


class _Plain:
    """The plain backbone, which starts where ours does."""

    def __init__(self, subject: Subject, task: MergeTask):
        self.lr, content = subject.config.merge.lr, task.contents.each()[0]
        project = task.members.models[0].project
        assert content is not None
        assert project is not None
        self.model = plain_model(subject, content[: subject.data.n_items])
        self.model.project.load_state_dict(project.state_dict())
        self.model.user.weight.data.copy_(task.members.user.weight[0])
        self.model.item.weight.data.copy_(task.members.item.weight[0])
        self.batches = plain_batches(subject, subject.config.merge.batch_size)
        self._step, self._adam = plain_step(self.model, subject, self.lr)

    def step(self, left: float) -> None:
        """left: of the learning rate."""
        self._adam.param_groups[0]["lr"] = self.lr * left
        self._step(next(self.batches))


def _has(python: str, package: str) -> bool:
    try:
        return subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0
    except OSError:  # no such Python
        return False


def theirs(name: str, subject: Subject, rank: Callable, pythons: tuple[str, ...], limits: Limits) -> Row:
    package, kind = THEIRS[name]
    found = (shutil.which(python) or python for python in pythons)
    python = next((os.path.abspath(python) for python in found if _has(python, package)), None)  # a link stays one
    if python is None:
        return Row("peers", name, {}, note=f"{kind}; {package} is not installed in {', '.join(pythons)}")
    dataset, course, threads = subject.dataset, Course(limits), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "train.npy", np.stack(dataset.interactions("train"), axis=1).astype(np.int32))
        np.save(folder / "features.npy", torch.cat(subject.data.features, dim=1).numpy())
        (folder / "counts.json").write_text(json.dumps([dataset.n_users, dataset.n_items]))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        with (folder / "errors").open("w+") as errors, subprocess.Popen(
            [python, str(SCRIPT), name, str(folder), str(threads)], env=environment, cwd=folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as child:  # fmt: skip
            assert child.stdin is not None
            assert child.stdout is not None
            for line in child.stdout:
                if not line.startswith("epoch "):
                    continue
                more = course.add(float(line.split()[1]), rank(np.load(folder / "scores.npy")))
                child.stdin.write("go\n" if more else "end\n")
                child.stdin.flush()
            failed = child.wait()
            errors.seek(0)
            why = errors.read().strip().splitlines()[-1:] or [f"exit code {failed}"]
    if failed or not course.ndcg:
        return Row("peers", name, {}, note=f"{kind}; {package} is installed and failed: {why[0][:200]}")
    return Row("peers", name, course.values(), note=kind)
