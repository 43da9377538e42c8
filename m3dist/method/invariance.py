"""Stage 2: find environments, learn masks (section 4.2), T rounds of both.

Per representation r: E environment models on Psi_r = (1 - m_r) o x_r, each a fresh content projection (W_e, b_e)
over stage 1's frozen embeddings, trained together; then each interaction moves to the environment that scores it
highest (eq. 8); then the mask learns on Phi_r = m_r o x_r.

Shapes: n interactions, n_w of this worker, E environments, D representation width.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from m3dist.config import Config, Invariance
from m3dist.data.draws import scattered
from m3dist.data.shards import Part
from m3dist.distributed.engine import Engine
from m3dist.method.environments import Frozen
from m3dist.method.executors import Executor, OnActors, Together, sizes
from m3dist.method.trainer import Trainer
from m3dist.models.gate import Gate
from m3dist.seeding import derive
from m3dist.storage.artifacts import Output
from m3dist.storage.checkpoints import Checkpoints, Rows, Saved
from m3dist.training.context import Context
from m3dist.training.loop import log_epoch
from m3dist.training.tracking import Stopped


def refill(environment_n: Tensor, empty: Sequence[int], settings: Invariance, drawn_n: Tensor) -> Tensor:
    """Environments after those that are empty have had, with `reseed`, a random share of about 1/E of all interactions.

    drawn_n: a number below E for each interaction.
    """
    if settings.empty == "reseed" and empty:
        environment_n = environment_n.clone()
        for at, e in enumerate(empty):
            environment_n[drawn_n == at] = e
    return environment_n


class State:
    """Environments of this worker's interactions [n_w] and gates' logits [D] of every representation, and what happened
    in each round."""

    def __init__(self, config: Config, widths: list[int], part: Part, engine: Engine):
        self.settings, self.seed, self.widths = config.invariance, config.seed, widths
        self.part, self.engine, rs = part, engine, range(len(widths))
        self.environment = [self._scattered("split", r) for r in rs]
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

    def _scattered(self, *keys: int | str) -> Tensor:
        """A number below E for each interaction, by its own number and these keys."""
        return scattered(self.part.pairs, self.settings.environments, derive(self.seed, *keys))

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
        assigned, E = executor.environments(psi, self.environment, round_), settings.environments
        moved = {str(r): float(torch.count_nonzero(new != self.environment[r])) for r, new in enumerate(assigned)}
        report |= {f"{r}/moved": n / self.part.total for r, n in self.engine.totals(moved).items()}
        for r, count_E in enumerate(sizes(assigned, E, self.engine)):
            if found := (count_E == 0).nonzero().flatten().tolist():
                empty[str(r)] = found
                assigned[r] = refill(assigned[r], found, settings, self._scattered("refill", round_, r))
        self.environment = assigned
        for r, count_E in enumerate(sizes(assigned, E, self.engine)):
            report |= {f"{r}/environment {e}": size for e, size in enumerate(count_E.tolist())}
        anew = [self._gate(r).logit.detach() for r in range(len(self.widths))]
        for r, (logit_D, terms) in enumerate(executor.masks(anew, self.environment, round_)):
            self.logits[r] = logit_D.clone()
            report |= {f"{r}/{name}": value for name, value in terms.items()}
        report |= {f"{r}/mask": float(mask_D.mean()) for r, mask_D in enumerate(self.masks())}
        self.history.append({**report, "empty": empty})
        return report

    @property
    def environments(self) -> dict[str, Tensor]:
        """Of this worker's interactions, [n_w], by name."""
        return {f"environment.{r}": x for r, x in enumerate(self.environment)}

    def save(self, checkpoints: Checkpoints) -> None:
        """Between rounds: every worker writes its own interactions' environments."""
        logits = {f"logit.{r}": logit_D for r, logit_D in enumerate(self.logits)}
        name = f"{len(self.history):05d}-0000000"
        checkpoints.save(name, {"history": self.history}, logits, Rows(parts=self.environments))

    def load(self, saved: Saved) -> None:
        """Go on from a checkpoint, of however many workers."""
        tensors = saved.tensors()
        for name, x in self.environments.items():
            if name in tensors:  # of a version that wrote those of all interactions in one piece
                x.copy_(tensors[name][self.part.pairs])
            else:
                saved.read(name, x, self.part.pairs.start)
        self.logits = [tensors[f"logit.{r}"] for r in range(len(self.widths))]
        self.history = saved.meta["history"]


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
    """T rounds on what an earlier stage left: tensors mask.r [D_r], environment.r of this worker's interactions [n_w],
    and what happened.

    Goes on from the latest checkpoint, which are between rounds. Raises Stopped when a callback ends the run and
    KeyboardInterrupt when the tracker is interrupted.
    """
    config, engine, tracker, checkpoints = context.config, context.engine, context.tracker, context.checkpoints
    settings = config.invariance
    part = context.data.part
    tensors = Frozen.tensors(context.dataset, aligned, part)
    count = sum(name.startswith("representation.") for name in tensors)
    widths = [tensors[f"representation.{r}"].shape[1] for r in range(count)]
    state = State(config, widths, part, engine)
    if checkpoints is not None and (saved := checkpoints.latest()):
        state.load(saved)
    tracker.begin("invariance", checkpoints.key if checkpoints else "", len(state.history))
    with _executor(context, tensors) as executor:
        while not state.done:
            round_, started = len(state.history), time.perf_counter()
            report = state.round(executor)
            for r, mask_D in enumerate(state.masks()):
                tracker.histogram("invariance", f"mask {r}", round_, mask_D)
            tracker.progress("invariance", settings.rounds, round_ + 1)
            steps = settings.environment_steps + settings.mask_steps
            visits = min(settings.batch_size, part.total) * len(widths) * steps
            report["interactions/s"] = visits / (time.perf_counter() - started)
            stopped = log_epoch(tracker, engine, "invariance", round_, report)
            if checkpoints is not None:
                state.save(checkpoints)
            if stopped:
                raise Stopped(f"invariance: stopped after round {round_}")
            if engine.largest(int(engine.rank_zero and tracker.interrupted())):
                raise KeyboardInterrupt
    masks = {f"mask.{r}": mask_D for r, mask_D in enumerate(state.masks())}
    return Output(masks, {"rounds": state.history}, interactions=state.environments)


def aligned(context: Context) -> Output:
    """M3-InvRL: a mask for every representation of stage 1."""
    return train(context, context.read("align"))


def concatenated(context: Context) -> Output:
    """InvRL: one mask of all features side by side, over the embeddings of the backbone pretrained on them."""
    trained, content = context.read("pretrain"), context.data.all_features
    assert content is not None
    read = {"member.user": trained["0.user"], "member.item": trained["0.item"], "representation.0": content}
    return train(context, read)
