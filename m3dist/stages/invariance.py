"""Stage 2: find environments, learn masks (section 4.2), T rounds of both.

Per representation r: E environment models on Psi_r = (1 - m_r) o x_r, each a fresh content projection (W_e, b_e)
over stage 1's frozen embeddings, trained together; then each interaction moves to the environment that scores it
highest (eq. 8); then the mask learns on Phi_r = m_r o x_r.

Because stage 1 is frozen, W_e enters a score as u_c . W_e x = (W_e' u_c) . x: users are projected, not items, and one
product of [users, shared negatives] serves all environments.

Shapes: n interactions, b batch, N negatives, E environments, c content width of users, D representation width.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist import losses
from m3dist.config import Config
from m3dist.data.batches import Batch
from m3dist.data.dataset import Dataset
from m3dist.models.mask import Gate
from m3dist.seeding import derive, torch_rng
from m3dist.stages.common import Data
from m3dist.tracking import Tracker


class Frozen:
    """Stage 1's embeddings as stage 2 reads them."""

    def __init__(self, data: Data, tensors: dict[str, Tensor], config: Config):
        dim = config.backbone.dim
        user = tensors["member.user"]
        self.user_id, self.user_content = user[:, :dim].contiguous(), user[:, dim:].contiguous()
        self.item_id = tensors["member.item"]
        self.data, self.config = data, config


def _fresh(environments: int, c: int, D: int, config: Config, *keys: str | int) -> tuple[Tensor, Tensor]:
    """Projections W [E, c, D] and b [E, c], every environment from a seed of its own."""
    parts = [torch.randn(c, D, generator=torch_rng(config.seed, *keys, e)) / D**0.5 for e in range(environments)]
    return torch.stack(parts).requires_grad_(), torch.zeros(environments, c, requires_grad=True)


def _project(content_bc: Tensor, environment_b: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """[W_e' u_c, u_c . b_e] of every row under its own environment, [b, D + 1]; rows ordered by environment inside."""
    order = torch.argsort(environment_b, stable=True)
    counts = torch.bincount(environment_b, minlength=len(W)).tolist()
    both = torch.cat([W, b.unsqueeze(2)], dim=2)
    parts = [part @ both[e] for e, part in enumerate(content_bc[order].split(counts))]
    return torch.cat(parts)[torch.argsort(order)]


def environment_loss(frozen: Frozen, batch: Batch, x_ID: Tensor, environment_b: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Eq. 7 for all environments: the backbone loss, every interaction under its own environment's model."""
    backbone, weights = frozen.config.backbone, frozen.data.weights
    projected = _project(frozen.user_content[batch.user_b], environment_b, W, b)
    user = torch.cat([frozen.user_id[batch.user_b], projected], dim=1)

    def rows(item: Tensor) -> Tensor:
        one = torch.ones(*item.shape, 1)
        return torch.cat([frozen.item_id[item], x_ID[item], one], dim=-1)

    positive = losses.positives((user * rows(batch.item_b)).sum(1), weights.positive(batch.user_b, batch.item_b))
    base, scale_b = weights.negative(batch.user_b)
    total = losses.shared_negatives(user, rows(batch.negative), base, scale_b, weights.c_I[batch.negative])
    return (positive + backbone.negative_weight * total / batch.negative.shape[-1]) / batch.size


def train_environments(frozen: Frozen, r: int, psi_ID: Tensor, environment_n: Tensor, round_: int) -> Tensor:
    """Train the E models of representation r and return the environment that scores each interaction highest, [n].

    The models' content scores are compared; the id part of a score is the same under all of them.
    """
    config, data = frozen.config.invariance, frozen.data
    W, b = _fresh(config.environments, frozen.user_content.shape[1], psi_ID.shape[1], frozen.config, "env", round_, r)
    optimizer = torch.optim.Adam([W, b], lr=config.environment_lr, fused=True)
    sampler = data.sampler(config.batch_size, f"environments.{round_}.{r}", config.negatives)
    for epoch in range(config.environment_epochs):
        for step in range(sampler.steps):
            batch = sampler(epoch, step)
            optimizer.zero_grad(set_to_none=True)
            environment_loss(frozen, batch, psi_ID, environment_n[batch.index_b], W, b).backward()
            optimizer.step()
    with torch.no_grad():
        item_IEc = torch.einsum("id,ecd->iec", psi_ID, W) + b
        best = []
        for user, item in zip(data.user.split(16384), data.item.split(16384), strict=True):
            best.append(torch.einsum("nc,nec->ne", frozen.user_content[user], item_IEc[item]).argmax(1))
    return torch.cat(best)


def mask_loss(
    frozen: Frozen,
    batch: Batch,
    x_ID: Tensor,
    mask_D: Tensor,
    environment_b: Tensor,
    W: Tensor,
    b: Tensor,
    gamma: float,
) -> dict[str, Tensor]:
    """L_mask of one representation: mean_e L_e(Phi) + gamma Var-term + rho mean(m^2).

    The gradient of a linear projection is an outer product (`losses.environment_variance`), so the penalty needs no
    second backward. Var is measured on the whole representation and held constant: a mask entry pays for how unlike
    the environments are in its dimension, and cannot lower the price by shrinking. It is relative to its mean over
    dimensions, and both regularisers are means over D, so gamma and rho depend neither on widths nor on the scale of
    gradients.
    """
    config, backbone, weights = frozen.config.invariance, frozen.config.backbone, frozen.data.weights
    content = frozen.user_content[batch.user_b]
    query = content @ W
    offset = content @ b
    phi_b = mask_D * x_ID[batch.item_b]
    user_id = frozen.user_id[batch.user_b]
    score_b = (user_id * frozen.item_id[batch.item_b]).sum(1) + (query * phi_b).sum(1) + offset
    weight_b = weights.positive(batch.user_b, batch.item_b)
    base, scale_b = weights.negative(batch.user_b)
    weight_n = (base + scale_b[:, None] * weights.c_I[batch.negative]) * backbone.negative_weight
    weight_n = weight_n / batch.negative.shape[-1]
    phi_n = mask_D * x_ID[batch.negative]
    score_n = user_id @ frozen.item_id[batch.negative].T + query @ phi_n.T + offset[:, None]
    loss_b = weight_b * F.softplus(-score_b) + (weight_n * F.softplus(score_n)).sum(1)
    order = torch.argsort(environment_b, stable=True)
    sizes = [n for n in torch.bincount(environment_b).tolist() if n]
    with torch.no_grad():
        slope_n = weight_n * score_n.sigmoid()
        x_b = x_ID[batch.item_b]
        pull_bD = slope_n @ x_ID[batch.negative] - (weight_b * (-score_b).sigmoid())[:, None] * x_b
        variance_D = losses.environment_variance(content[order].split(sizes), pull_bD[order].split(sizes))
        relative_D = variance_D / variance_D.mean().clamp(min=1e-30)
    fit = torch.stack([part.mean() for part in loss_b[order].split(sizes)]).mean()
    penalty = gamma * (relative_D * mask_D).square().mean()
    size = config.rho * mask_D.square().mean()
    return {"fit": fit, "variance": penalty, "size": size, "loss": fit + penalty + size}


def learn_masks(
    frozen: Frozen, gate: Gate, x: list[Tensor], environment: list[Tensor], round_: int
) -> dict[str, float]:
    """One round of mask learning, all representations in the same steps. Returns the mean terms."""
    config, data = frozen.config.invariance, frozen.data
    # In the first rounds Psi still holds causal dimensions, so environments also split users by taste and penalising
    # their differences would punish what should stay; the fit separates first, the penalty follows.
    warm = round_ / max(config.rounds - 1, 1) if config.gamma_warmup else 1.0
    c = frozen.user_content.shape[1]
    projections = [_fresh(1, c, part.shape[1], frozen.config, "mask", round_, r) for r, part in enumerate(x)]
    dense = [p for pair in projections for p in pair]
    optimizer = torch.optim.Adam([*gate.parameters(), *dense], lr=config.mask_lr, fused=True)
    sampler = data.sampler(config.batch_size, f"masks.{round_}", config.negatives)
    sums: dict[str, float] = {}
    for epoch in range(config.mask_epochs):
        for step in range(sampler.steps):
            batch = sampler(epoch, step)
            noise = torch.Generator().manual_seed(derive(batch.seed, "gate"))
            optimizer.zero_grad(set_to_none=True)
            for r, (mask_D, (W, b)) in enumerate(zip(gate(noise), projections, strict=True)):
                terms = mask_loss(
                    frozen, batch, x[r], mask_D, environment[r][batch.index_b], W[0], b[0], warm * config.gamma
                )
                terms["loss"].backward()
                for name, value in terms.items():
                    sums[f"{r}/{name}"] = sums.get(f"{r}/{name}", 0.0) + float(value.detach())
            optimizer.step()
    steps = max(config.mask_epochs * sampler.steps, 1)
    return {name: total / steps for name, total in sums.items()}


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


def run(
    dataset: Dataset, config: Config, aligned: dict[str, Tensor], tracker: Tracker
) -> tuple[dict[str, Tensor], dict]:
    """T rounds. Returns tensors mask.r [D_r] and environment.r [n], and what happened in each round."""
    data, settings = Data(dataset, config), config.invariance
    frozen = Frozen(data, aligned, config)
    x = [aligned[f"representation.{r}"] for r in range(sum(name.startswith("representation.") for name in aligned))]
    gate = Gate([part.shape[1] for part in x], settings.gate, settings.init, settings.gate_noise)
    n, E = len(data.user), settings.environments
    environment = [torch.randint(E, (n,), generator=torch_rng(config.seed, "split", r)) for r in range(len(x))]
    history: list[dict[str, Any]] = []
    tracker.begin("invariance", "")
    for round_ in range(settings.rounds):
        report: dict[str, float] = {}
        started = time.perf_counter()
        with torch.no_grad():
            masks = [m.clone() for m in gate()]
        empty: dict[int, list[int]] = {}
        for r, part in enumerate(x):
            new = train_environments(frozen, r, (1 - masks[r]) * part, environment[r], round_)
            report[f"{r}/moved"] = float((new != environment[r]).double().mean())
            environment[r], empty[r] = refill(new, E, settings.empty, torch_rng(config.seed, "refill", round_, r))
            for e, size in enumerate(torch.bincount(environment[r], minlength=E).tolist()):
                report[f"{r}/environment {e}"] = size
        report |= learn_masks(frozen, gate, x, environment, round_)
        trained = n * len(x) * (settings.environment_epochs + settings.mask_epochs)
        report["interactions/s"] = trained / (time.perf_counter() - started)
        for r, mask in enumerate(gate()):
            report[f"{r}/mask"] = float(mask.detach().mean())
            tracker.histogram("invariance", f"mask {r}", round_, mask.detach())
        tracker.log("invariance", round_, report)
        tracker.progress("invariance", settings.rounds, round_ + 1)
        history.append({**report, "empty": {r: e for r, e in empty.items() if e}})
        if all(report[f"{r}/moved"] < settings.moved for r in range(len(x))):
            break
    with torch.no_grad():
        masks = gate() if settings.rounds else [torch.ones(part.shape[1]) for part in x]
    out = {f"mask.{r}": mask.detach().clone() for r, mask in enumerate(masks)}
    return out | {f"environment.{r}": part.to(torch.int16) for r, part in enumerate(environment)}, {"rounds": history}
