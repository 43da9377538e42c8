"""Stage 2: find environments, learn masks (section 4.2), T rounds of both.

Per representation r: E environment models on Psi_r = (1 - m_r) o x_r, each a fresh content projection (W_e, b_e)
over stage 1's frozen embeddings, trained together; then each interaction moves to the environment that scores it
highest (eq. 8); then the mask learns on Phi_r = m_r o x_r.

Shapes: n interactions, E environments, D representation width.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from m3dist.config import Invariance
from m3dist.method.environments import Frozen
from m3dist.method.executors import Executor, OnActors, Together
from m3dist.method.trainer import Trainer
from m3dist.models.gate import Gate
from m3dist.seeding import torch_rng
from m3dist.storage.artifacts import Output
from m3dist.training.context import Context
from m3dist.training.loop import log_epoch
from m3dist.training.tracking import Stopped


def refill(environment_n: Tensor, settings: Invariance, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """Report empty environments, and with `reseed` give each a random 1/E of all interactions."""
    environments = settings.environments
    empty = (torch.bincount(environment_n, minlength=environments) == 0).nonzero().flatten().tolist()
    if settings.empty == "reseed" and empty:
        environment_n = environment_n.clone()
        chosen = torch.randperm(len(environment_n), generator=generator)
        share = max(1, len(environment_n) // environments)
        for at, e in enumerate(empty):
            environment_n[chosen[at * share : (at + 1) * share]] = e
    return environment_n, empty


class State:
    """Environments [n] and gates' logits [D] of every representation, and what happened in each round."""

    def __init__(self, settings: Invariance, seed: int, widths: list[int], n: int):
        self.settings, self.seed, self.widths, self.n = settings, seed, widths, n
        E, rs = settings.environments, range(len(widths))
        self.environment = [torch.randint(E, (n,), generator=torch_rng(seed, "split", r)) for r in rs]
        self.logits = [self._gate(r).logit.detach() for r in rs]
        self.history: list[dict[str, Any]] = []

    def masks(self) -> list[Tensor]:
        """Of every representation, [D]; all ones without rounds."""
        if not self.settings.rounds:
            return [torch.ones(D) for D in self.widths]
        out = []
        with torch.no_grad():
            for r, logit_D in enumerate(self.logits):
                gate = self._gate(r)
                gate.logit.copy_(logit_D)
                out.append(gate())
        return out

    def _gate(self, r: int) -> Gate:
        return Gate(self.widths[r], self.settings.gate, self.settings.init)

    @property
    def done(self) -> bool:
        """Whether all rounds are over, or in the last too few interactions moved, in every representation."""
        if len(self.history) >= self.settings.rounds:
            return True
        moved = [value for name, value in self.history[-1].items() if name.endswith("/moved")] if self.history else []
        return bool(moved) and all(value < self.settings.moved for value in moved)

    def round(self, executor: Executor) -> dict[str, float]:
        """One round; what it reports."""
        round_, settings = len(self.history), self.settings
        report: dict[str, float] = {}
        empty: dict[str, list[int]] = {}
        psi = [1 - mask_D for mask_D in self.masks()]
        for r, new in enumerate(executor.environments(psi, self.environment, round_)):
            report[f"{r}/moved"] = float((new != self.environment[r]).double().mean())
            rng = torch_rng(self.seed, "refill", round_, r)
            self.environment[r], found = refill(new.long(), settings, rng)
            if found:
                empty[str(r)] = found
            sizes = torch.bincount(self.environment[r], minlength=settings.environments).tolist()
            report |= {f"{r}/environment {e}": size for e, size in enumerate(sizes)}
        for r, (logit_D, terms) in enumerate(executor.masks(self.logits, self.environment, round_)):
            self.logits[r] = logit_D.clone()
            report |= {f"{r}/{name}": value for name, value in terms.items()}
        report |= {f"{r}/mask": float(mask_D.mean()) for r, mask_D in enumerate(self.masks())}
        self.history.append({**report, "empty": empty})
        return report

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        kept = {f"environment.{r}": part.to(torch.int16) for r, part in enumerate(self.environment)}
        return kept | {f"logit.{r}": logit_D for r, logit_D in enumerate(self.logits)}

    def load(self, tensors: dict[str, Tensor], history: list[dict[str, Any]]) -> None:
        rs = range(len(self.widths))
        self.environment = [tensors[f"environment.{r}"].long() for r in rs]
        self.logits, self.history = [tensors[f"logit.{r}"] for r in rs], history


@contextlib.contextmanager
def _executor(context: Context, tensors: dict[str, Tensor]) -> Iterator[Executor]:
    """Actors where the config wants them and this process leads itself; else this process with the other workers."""
    config, engine, stop = context.config, context.engine, context.tracker.interrupted
    if config.actors and engine.world == 1 and config.invariance.rounds:
        from m3dist.distributed.actors import Pool

        with Pool.of(config, Trainer, tensors, config) as pool:
            yield OnActors(pool, config.invariance.environments, tensors["item"], stop)
        return
    trainer = Trainer(tensors, engine.device, config, engine)
    if engine.world == 1:
        trainer.interrupted = stop
    yield Together(trainer)


def train(context: Context, aligned: dict[str, Tensor]) -> Output:
    """T rounds on what an earlier stage left: tensors mask.r [D_r] and environment.r [n], and what happened.

    Goes on from the latest checkpoint, which are between rounds. Raises Stopped when a callback ends the run and
    KeyboardInterrupt when the tracker is interrupted.
    """
    config, engine, tracker, checkpoints = context.config, context.engine, context.tracker, context.checkpoints
    settings = config.invariance
    tensors = Frozen.tensors(context.dataset, aligned)
    count = sum(name.startswith("representation.") for name in tensors)
    widths = [tensors[f"representation.{r}"].shape[1] for r in range(count)]
    state = State(settings, config.seed, widths, len(tensors["user"]))
    if checkpoints is not None and (saved := checkpoints.latest()):
        state.load(saved.tensors(), saved.meta["history"])
    tracker.begin("invariance", checkpoints.key if checkpoints else "", len(state.history))
    with _executor(context, tensors) as executor:
        while not state.done:
            round_, started = len(state.history), time.perf_counter()
            report = state.round(executor)
            for r, mask_D in enumerate(state.masks()):
                tracker.histogram("invariance", f"mask {r}", round_, mask_D)
            tracker.progress("invariance", settings.rounds, round_ + 1)
            visits = state.n * len(widths) * (settings.environment_epochs + settings.mask_epochs)
            report["interactions/s"] = visits / (time.perf_counter() - started)
            stopped = log_epoch(tracker, engine, "invariance", round_, report)
            if checkpoints is not None:
                checkpoints.save(f"{round_ + 1:05d}-0000000", {"history": state.history}, state.tensors())
            if stopped:
                raise Stopped(f"invariance: stopped after round {round_}")
            if engine.largest(int(engine.rank_zero and tracker.interrupted())):
                raise KeyboardInterrupt
    out = {f"mask.{r}": mask_D for r, mask_D in enumerate(state.masks())}
    kept = {name: x for name, x in state.tensors().items() if name.startswith("environment.")}
    return Output({**out, **kept}, {"rounds": state.history})


def aligned(context: Context) -> Output:
    """M3-InvRL: a mask for every representation of stage 1."""
    return train(context, context.read("align"))


def concatenated(context: Context) -> Output:
    """InvRL: one mask of all features side by side, over the embeddings of the backbone pretrained on them."""
    trained, content = context.read("pretrain"), context.data.all_features
    assert content is not None
    read = {"member.user": trained["0.user"], "member.item": trained["0.item"], "representation.0": content}
    return train(context, read)
