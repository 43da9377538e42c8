"""Stage 2: find environments, learn masks (section 4.2), T rounds of both.

Per representation r: E environment models on Psi_r = (1 - m_r) o x_r, each a fresh content projection (W_e, b_e)
over stage 1's frozen embeddings, trained together; then each interaction moves to the environment that scores it
highest (eq. 8); then the mask learns on Phi_r = m_r o x_r. Representations do not meet, nor do environments inside a
round, so actors can share them out; a process that has several takes them through its batches together, and what it
finds of each depends on that one's arguments alone, bit for bit.

Shapes: n interactions, b this worker's share of a batch, N negatives, E environments, c content width of users, D
representation width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.distributed.actors import Pool
from m3dist.distributed.engine import Engine
from m3dist.method.assignment import Blocks, assign
from m3dist.method.environments import EnvironmentModels, Frozen, Masks
from m3dist.models.gate import Gate
from m3dist.seeding import torch_rng
from m3dist.storage.checkpoints import Checkpoints
from m3dist.training.loop import log_epoch
from m3dist.training.tracking import Stopped, Tracker


def train_environments(
    frozen: Frozen, groups: Mapping[int, Sequence[int]], scale: Mapping[int, Tensor], environment: Mapping[int, Tensor],
    round_: int,
) -> dict[int, tuple[Tensor, Tensor]]:  # fmt: skip
    """W [g, c, D] and b [g, c] of the trained models of each group of environments."""
    settings, engine = frozen.config.invariance, frozen.engine
    module = EnvironmentModels(frozen, groups, scale, round_)
    dense = engine.wrap(module, [{"params": [*module.parameters()], "lr": settings.environment_lr}])
    sampler = frozen.sampler(f"environments.{round_}")
    for epoch in range(settings.environment_epochs):
        for step in range(sampler.steps):
            frozen.heed()
            dense.backward(dense(frozen.batch(sampler, epoch, step), environment))
            dense.step()
    state = dense.state()
    return {r: (state[f"W_{r}"], state[f"b_{r}"]) for r in groups}


def learn_masks(
    frozen: Frozen, logits: Mapping[int, Tensor], environment: Mapping[int, Tensor], round_: int
) -> dict[int, tuple[Tensor, dict[str, float]]]:
    """One round of mask learning: new logits [D] and the mean terms of every representation."""
    settings, engine = frozen.config.invariance, frozen.engine
    module = Masks(frozen, logits, round_)
    dense = engine.wrap(module, [{"params": [*module.parameters()], "lr": settings.mask_lr}])
    sampler = frozen.sampler(f"masks.{round_}")
    sums: dict[str, Tensor] = {}
    for epoch in range(settings.mask_epochs):
        for step in range(sampler.steps):
            frozen.heed()
            terms = dense(frozen.batch(sampler, epoch, step), environment)
            dense.backward(torch.stack([part["loss"] for part in terms.values()]).sum())
            dense.step()
            for r, part in terms.items():
                for name, value in part.items():
                    key = f"{r}/{name}"
                    sums[key] = sums.get(key, torch.zeros((), device=engine.device)) + value.detach()
    steps = max(settings.mask_epochs * sampler.steps, 1)
    means = {name: total / steps for name, total in engine.totals({k: float(x) for k, x in sums.items()}).items()}
    state = dense.state()
    return {
        r: (
            state[f"gates.{r}.logit"].cpu(),
            {name.partition("/")[2]: x for name, x in means.items() if name.startswith(f"{r}/")},
        )
        for r in logits
    }


def refill(environment_n: Tensor, environments: int, how: str, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """Report empty environments, and with `reseed` give each a random 1/E of all interactions."""
    empty = (torch.bincount(environment_n, minlength=environments) == 0).nonzero().flatten().tolist()
    if how == "reseed" and empty:
        environment_n = environment_n.clone()
        chosen = torch.randperm(len(environment_n), generator=generator)
        share = max(1, len(environment_n) // environments)
        for at, e in enumerate(empty):
            environment_n[chosen[at * share : (at + 1) * share]] = e
    return environment_n, empty


def _environments_of(
    frozen: Frozen, rs: tuple[int, ...], groups: tuple[tuple[int, ...], ...], scales: tuple[Tensor, ...], round_: int,
    *environment: Tensor,
) -> tuple[tuple[Tensor, Tensor], ...]:  # fmt: skip
    device = frozen.engine.device
    there, named = ({r: x.to(device) for r, x in zip(rs, xs, strict=True)} for xs in (scales, environment))
    return (*train_environments(frozen, dict(zip(rs, groups, strict=True)), there, named, round_).values(),)


def _masks_of(
    frozen: Frozen, rs: tuple[int, ...], logits: tuple[Tensor, ...], round_: int, *environment: Tensor
) -> tuple[tuple[Tensor, dict[str, float]], ...]:
    named = {r: part.to(frozen.engine.device) for r, part in zip(rs, environment, strict=True)}
    return (*learn_masks(frozen, dict(zip(rs, logits, strict=True)), named, round_).values(),)


class Rounds:
    """Both halves of a round for all representations: as tasks of a pool, or together under several workers."""

    def __init__(self, pool: Pool, frozen: Frozen | None, config: Config, tracker: Tracker, item_n: Tensor):
        self.pool, self.config = pool, config
        self.blocks = Blocks.of(item_n) if frozen is None else frozen.blocks
        self.together = frozen if frozen is not None and frozen.engine.world > 1 else None
        self.stop = tracker.interrupted if self.together is None else None

    def environments(self, scales: list[Tensor], environment: list[Tensor], round_: int) -> list[Tensor]:
        """The new environment of every interaction [n], per representation. Empty environments take no part."""
        E, rs = self.config.invariance.environments, range(len(scales))
        alive = [torch.bincount(part, minlength=E).nonzero().flatten().tolist() for part in environment]
        if self.together is not None:
            frozen, device = self.together, self.together.engine.device
            there = {r: scales[r].to(device) for r in rs}
            named = {r: environment[r].to(device) for r in rs}
            trained = train_environments(frozen, dict(enumerate(alive)), there, named, round_)
            share = frozen.engine.rank, frozen.engine.world
            whole = [torch.zeros(len(frozen.user), dtype=torch.int32, device=device) for _ in rs]
            mine = frozen.blocks.interactions(*share)
            for r, part in enumerate(whole):
                part[mine] = assign(frozen, r, scales[r], *trained[r], alive[r], *share).to(device, torch.int32)
            frozen.engine.add_up(whole)
            return [part.cpu() for part in whole]
        parts = _parts(len(self.pool.actors), len(scales), E)
        if parts == 1:
            bundles = [(bundle, tuple(tuple(alive[r]) for r in bundle)) for bundle in self._bundles(len(scales))]
        else:
            bundles = [((r,), (tuple(alive[r][at::parts]),)) for r in rs for at in range(parts) if alive[r][at::parts]]
        put = [self.pool.put(part.to(torch.int16)) for part in environment]
        tasks = [
            (bundle, groups, tuple(scales[r] for r in bundle), round_, *(put[r] for r in bundle))
            for bundle, groups in bundles
        ]
        models: dict[int, list[tuple[tuple[int, ...], tuple[Tensor, Tensor]]]] = {r: [] for r in rs}
        for (bundle, groups), found in zip(bundles, self.pool.map(_environments_of, tasks, self.stop), strict=True):
            for r, group, model in zip(bundle, groups, found, strict=True):
                models[r].append((group, model))
        shares: list[tuple] = []
        for r in rs:
            order = sorted(range(len(alive[r])), key=[e for group, _ in models[r] for e in group].__getitem__)
            W, b = (torch.cat([model[k] for _, model in models[r]])[order] for k in (0, 1))
            shares += [(r, scales[r], W, b, alive[r], at, parts) for at in range(parts)]
        chosen = self.pool.map(assign, shares, self.stop)
        mine = torch.cat([self.blocks.interactions(at, parts) for at in range(parts)]).cpu()
        out = [torch.empty(len(mine), dtype=torch.int32) for _ in rs]
        for r, new in enumerate(out):
            new[mine] = torch.cat(chosen[r * parts : (r + 1) * parts]).int()
        return out

    def masks(
        self, logits: list[Tensor], environment: list[Tensor], round_: int
    ) -> list[tuple[Tensor, dict[str, float]]]:
        """New logits and mean terms of every representation."""
        if self.together is not None:
            device = self.together.engine.device
            named = {r: part.to(device) for r, part in enumerate(environment)}
            return [*learn_masks(self.together, dict(enumerate(logits)), named, round_).values()]
        bundles = self._bundles(len(logits))
        tasks = [
            (bundle, tuple(logits[r] for r in bundle), round_, *(environment[r].to(torch.int16) for r in bundle))
            for bundle in bundles
        ]
        found: dict[int, tuple[Tensor, dict[str, float]]] = {}
        for bundle, learned in zip(bundles, self.pool.map(_masks_of, tasks, self.stop), strict=True):
            found |= zip(bundle, learned, strict=True)
        return [found[r] for r in range(len(logits))]

    def _bundles(self, representations: int) -> list[tuple[int, ...]]:
        """Representations that one process takes through its batches together: the ids' scores are the same for all."""
        lots = min(max(1, len(self.pool.actors)), representations)
        return [tuple(range(at, representations, lots)) for at in range(lots)]


def _parts(actors: int, representations: int, environments: int) -> int:
    """Into how many tasks a representation's environments go, so that actors end together; 1 in series."""
    most = min(environments, max(1, math.ceil(2 * actors / representations)))
    waves = {parts: math.ceil(parts * representations / max(actors, 1)) / parts for parts in range(1, most + 1)}
    return min(waves, key=lambda parts: (waves[parts], parts)) if actors else 1


def run(
    dataset: Dataset,
    config: Config,
    aligned: dict[str, Tensor],
    tracker: Tracker,
    engine: Engine | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[dict[str, Tensor], dict]:
    """T rounds. Returns tensors mask.r [D_r] and environment.r [n], and what happened in each round.

    With config.actors and one worker, actors do the work. Goes on from the latest of `checkpoints`, which are between
    rounds. Raises Stopped when a listener ends the run and KeyboardInterrupt when the tracker is interrupted.
    """
    engine, settings = engine or Engine(), config.invariance
    tensors = Frozen.tensors(dataset, aligned)
    count = sum(name.startswith("representation.") for name in tensors)
    widths = [tensors[f"representation.{r}"].shape[1] for r in range(count)]
    n, E = len(tensors["user"]), settings.environments
    actors = config.actors if engine.world == 1 and settings.rounds else 0
    environment = [torch.randint(E, (n,), generator=torch_rng(config.seed, "split", r)) for r in range(len(widths))]
    logits = [Gate(D, settings.gate, settings.init).logit.detach() for D in widths]
    history: list[dict[str, Any]] = []
    if checkpoints is not None and (saved := checkpoints.latest()):
        state, history = saved.tensors(), saved.meta["history"]
        environment = [state[f"environment.{r}"].long() for r in range(len(widths))]
        logits = [state[f"logit.{r}"] for r in range(len(widths))]
    tracker.begin("invariance", checkpoints.key if checkpoints else "", len(history))

    def masks() -> list[Tensor]:
        if not settings.rounds:
            return [torch.ones(D) for D in widths]
        return [_mask(logit_D, config) for logit_D in logits]

    with Pool(
        Frozen, tensors, config, None if actors else engine, actors=actors, resources=dict(config.actor_resources),
        failures=config.max_failures, autoscaling=config.autoscaling, device=engine.device,
    ) as pool:  # fmt: skip
        if not actors and engine.world == 1:
            pool.state.interrupted = tracker.interrupted
        rounds = Rounds(pool, None if actors else pool.state, config, tracker, tensors["item"])
        while len(history) < settings.rounds and not (history and _still(history[-1], settings.moved)):
            round_, started = len(history), time.perf_counter()
            report: dict[str, float] = {}
            empty: dict[int, list[int]] = {}
            for r, new in enumerate(rounds.environments([1 - m for m in masks()], environment, round_)):
                report[f"{r}/moved"] = float((new != environment[r]).double().mean())
                refilled = refill(new.long(), E, settings.empty, torch_rng(config.seed, "refill", round_, r))
                environment[r], empty[r] = refilled
                for e, size in enumerate(torch.bincount(environment[r], minlength=E).tolist()):
                    report[f"{r}/environment {e}"] = size
            for r, (logit_D, terms) in enumerate(rounds.masks(logits, environment, round_)):
                logits[r] = logit_D.clone()
                report |= {f"{r}/{name}": value for name, value in terms.items()}
            for r, mask_D in enumerate(masks()):
                report[f"{r}/mask"] = float(mask_D.mean())
                tracker.histogram("invariance", f"mask {r}", round_, mask_D)
            history.append({**report, "empty": {str(r): e for r, e in empty.items() if e}})
            tracker.progress("invariance", settings.rounds, round_ + 1)
            visits = n * len(widths) * (settings.environment_epochs + settings.mask_epochs)
            report["interactions/s"] = visits / (time.perf_counter() - started)
            stopped = log_epoch(tracker, engine, "invariance", round_, report)
            if checkpoints is not None:
                kept = {f"environment.{r}": part.to(torch.int16) for r, part in enumerate(environment)}
                kept |= {f"logit.{r}": logit_D for r, logit_D in enumerate(logits)}
                checkpoints.save(f"{round_ + 1:05d}-0000000", {"history": history}, kept)
            if stopped:
                raise Stopped(f"invariance: stopped after round {round_}")
            if engine.largest(int(engine.lead and tracker.interrupted())):
                raise KeyboardInterrupt
    out = {f"mask.{r}": mask_D for r, mask_D in enumerate(masks())}
    return out | {f"environment.{r}": part.to(torch.int16) for r, part in enumerate(environment)}, {"rounds": history}


def _still(report: dict[str, Any], moved: float) -> bool:
    """Whether fewer interactions than this share moved in a round, in every representation."""
    return all(value < moved for name, value in report.items() if name.endswith("/moved"))


@torch.no_grad()
def _mask(logit_D: Tensor, config: Config) -> Tensor:
    settings = config.invariance
    gate = Gate(len(logit_D), settings.gate, settings.init)
    gate.logit.copy_(logit_D)
    return gate()
