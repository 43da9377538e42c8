"""Stage 2's parts: what it reads and never changes, its losses, and the modules that hold what it trains.

A step's gradients have closed forms (`losses.projection_fits`): no autograd over samples.

Shapes: n interactions, b this worker's share of a batch, N negatives, E environments, g of them that a process trains,
c content width of users, D representation width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m3dist import losses
from m3dist.config import Config, Invariance
from m3dist.data.dataset import Dataset
from m3dist.data.sampling import Batch, Draws, Sampler
from m3dist.distributed.engine import Engine
from m3dist.losses import Projection
from m3dist.models.gate import Gate
from m3dist.models.ultragcn import Weights
from m3dist.seeding import derive, torch_rng


class Step(NamedTuple):
    """A batch, with what no representation and no environment changes of it: the ids' part of scores, and weights."""

    batch: Batch
    score_bN: Tensor
    own_b: Tensor
    content_bc: Tensor
    positive_b: Tensor
    scale_b: Tensor
    weight_N: Tensor
    base: float


@dataclass(frozen=True)
class Assigned:
    """Which environment each row of a batch belongs to, under representation r; `names`: those that take part."""

    r: int
    environment_b: Tensor
    names: Sequence[int]


class Frozen:
    """What stage 2 reads and never changes, from plain tensors, so that any process can build it."""

    def __init__(
        self, tensors: dict[str, Tensor], device: str | torch.device, config: Config, engine: Engine | None = None
    ):
        self.engine = engine or Engine(device=device)
        self.settings, self.backbone, self.seed = config.invariance, config.backbone, config.seed
        tensors = {name: x.to(device) for name, x in tensors.items()}
        self.user, self.item = tensors["user"], tensors["item"]
        self.user_Uk, self.item_Id = tensors["member.user"], tensors["member.item"]
        self.x = [tensors[f"representation.{r}"] for r in range(sum("representation" in name for name in tensors))]
        backbone = config.backbone
        w = (backbone.w1, backbone.w2, backbone.w3, backbone.w4)
        self.weights = Weights((tensors["user_degree"], tensors["item_degree"]), w, backbone.kappa).to(device)

    @staticmethod
    def tensors(dataset: Dataset, aligned: dict[str, Tensor]) -> dict[str, Tensor]:
        """The training split and the first stage's outputs, as the constructor takes them."""
        read = ("member.user", "member.item", "representation.")
        out = {name: x for name, x in aligned.items() if name.startswith(read)}
        for name, array in zip(("user", "item"), dataset.interactions("train"), strict=True):
            out[name] = torch.from_numpy(array.copy())
        for name, array in zip(("user_degree", "item_degree"), dataset.degrees, strict=True):
            out[name] = torch.from_numpy(array)
        return out

    @property
    def content(self) -> int:
        """c"""
        return self.user_Uk.shape[1] - self.item_Id.shape[1]

    def sampler(self, purpose: str) -> Sampler:
        draws = Draws(self.settings.negatives)
        pairs = (self.user, self.item)
        return Sampler(pairs, len(self.item_Id), self.settings.batch_size, draws, (self.seed, purpose))

    def step(self, sampler: Sampler, epoch: int, step: int) -> Step:
        """This worker's share of a step."""
        batch = sampler(epoch, step, self.engine.rank, self.engine.world)
        d = self.item_Id.shape[1]
        user_bk, id_Nd = self.user_Uk.index_select(0, batch.user_b), self.item_Id.index_select(0, batch.negative)
        own_b = torch.linalg.vecdot(user_bk[:, :d], self.item_Id.index_select(0, batch.item_b))
        scale = self.backbone.negative_weight / len(batch.negative)
        base, scale_b = self.weights.negative(batch.user_b)
        positive_b = self.weights.positive(batch.user_b, batch.item_b)
        score_bN, content_bc = user_bk[:, :d] @ id_Nd.T, user_bk[:, d:].contiguous()
        weight_N = self.weights.c_I[batch.negative]
        return Step(batch, score_bN, own_b, content_bc, positive_b, scale_b * scale, weight_N, base * scale)

    def fits(
        self, step: Step, assigned: Assigned, projection: Projection, scale_D: Tensor | None = None,
        share: float | None = None,
    ) -> losses.Fits:  # fmt: skip
        """The fit of every named environment to its rows, of x_r scaled by scale_D.

        share: what every row weighs; None: 1, and the moments of gradients are found too.
        """
        batch, E = step.batch, self.settings.environments
        count = torch.bincount(assigned.environment_b, minlength=E).tolist()
        order = torch.argsort(assigned.environment_b, stable=True)
        if len(assigned.names) < E:
            parts = order.split(count)
            order = torch.cat([parts[e] for e in assigned.names])
        weigh = 1.0 if share is None else share
        with torch.autocast(self.engine.device.type, enabled=False):
            x_bD, x_ND = (self.x[assigned.r].index_select(0, at) for at in (batch.item_b[order], batch.negative))
            if scale_D is not None:
                x_bD, x_ND = x_bD.mul_(scale_D), x_ND.mul_(scale_D)
            positives = losses.Positives(
                step.score_bN.index_select(0, order), step.own_b[order], step.content_bc.index_select(0, order), x_bD,
                step.positive_b[order].mul_(weigh), step.scale_b[order].mul_(weigh),
            )  # fmt: skip
            negatives = losses.Negatives(x_ND, step.weight_N, step.base * weigh)
            rows = [count[e] for e in assigned.names]
            return losses.projection_fits(positives, negatives, rows, projection, moments=share is None)


def fresh(seed: int, c: int, D: int, keys: Sequence[str | int]) -> Projection:
    """A projection W [c, D] and b [c] from a seed of its own."""
    return Projection(torch.randn(c, D, generator=torch_rng(seed, *keys)) / D**0.5, torch.zeros(c))


def environment_loss(
    frozen: Frozen, step: Step, assigned: Assigned, scale_D: Tensor, projections: Projection
) -> Tensor:
    """Eq. 7, this worker's share: every interaction under its own environment's model; x_r is scaled by scale_D.

    projections: W [g, c, D] and b [g, c] of the named environments.
    """
    detached = Projection(projections.W.detach(), projections.bias.detach())
    fits = frozen.fits(step, assigned, detached, scale_D, 1 / step.batch.size)
    return losses.known(fits.loss_G.sum().float(), [*projections], [fits.gradient_GcD, fits.bias_Gc])


def mask_loss(
    frozen: Frozen, step: Step, assigned: Assigned, mask_D: Tensor, projection: Projection
) -> dict[str, Tensor]:
    """What L_mask is made of for one representation, this worker's share: `fit`, mean_e L_e(Phi), `variance`, the mean
    of (Var o m)^2, and `size`, the mean of m^2.

    Var is measured on the whole representation and held constant: a mask entry pays for how unlike the environments
    are in its dimension, and cannot lower the price by shrinking. It is relative to its mean over dimensions, and both
    regularisers are means over D, so gamma and rho depend neither on widths nor on the scale of gradients.
    """
    engine, (W, b) = frozen.engine, projection
    with torch.no_grad():
        fits = frozen.fits(step, assigned, Projection((W * mask_D)[None], b.detach()[None]))
        assert fits.second_GD is not None
        count_E = torch.tensor(fits.rows, dtype=torch.float32, device=engine.device)
        second_ED, gradient_EcD = fits.second_GD, fits.gradient_GcD
        if engine.world > 1:
            second_ED, gradient_EcD = second_ED.clone(), gradient_EcD.clone()
            engine.add_up([count_E, second_ED, gradient_EcD])
        there = count_E > 0
        weight_E = there / (count_E.clamp(min=1) * there.sum())  # mean over environments of their means
        variance_D = losses.environment_variance(gradient_EcD[there], second_ED[there], count_E[there])
        relative_D = variance_D / variance_D.mean().clamp(min=1e-30)
        mean_cD = torch.tensordot(weight_E, fits.gradient_GcD, 1)
        gradients = [mean_cD * mask_D, weight_E @ fits.bias_Gc, (W * mean_cD).sum(0)]
    fit = losses.known(weight_E @ fits.loss_G.float(), [W, b, mask_D], gradients)
    part = step.batch.part
    return {
        "fit": fit,
        "variance": (relative_D * mask_D).square().mean() * part,
        "size": mask_D.square().mean() * part,
    }


class EnvironmentModels(nn.Module):
    """Projections of some environments of some representations; forward gives this worker's share of their loss."""

    def __init__(
        self, frozen: Frozen, environments: Mapping[int, Sequence[int]], scale: Mapping[int, Tensor], round_: int
    ):
        super().__init__()
        self.frozen, self.environments, self.scale = frozen, environments, scale
        for r, group in environments.items():
            D = frozen.x[r].shape[1]
            each = [fresh(frozen.seed, frozen.content, D, ("env", round_, r, e)) for e in group]
            for name, parts in zip((f"W_{r}", f"b_{r}"), zip(*each, strict=True), strict=True):
                self.register_parameter(name, nn.Parameter(torch.stack(parts)))

    def forward(self, step: Step, environment: dict[int, Tensor]) -> Tensor:
        total = torch.zeros((), device=self.frozen.engine.device)
        for r, group in self.environments.items():
            assigned = Assigned(r, environment[r][step.batch.index_b].long(), group)
            projections = Projection(getattr(self, f"W_{r}"), getattr(self, f"b_{r}"))
            total = total + environment_loss(self.frozen, step, assigned, self.scale[r], projections)
        return total


class Masks(nn.Module):
    """Gates of some representations, each with a projection of its own; forward gives their terms."""

    def __init__(self, frozen: Frozen, logits: Mapping[int, Tensor], round_: int):
        super().__init__()
        self.frozen = frozen
        settings = frozen.settings
        self.rho, self.gamma = settings.rho, gamma_of(settings, round_)
        self.gates = nn.ModuleDict()
        for r, logit_D in logits.items():
            gate = Gate(len(logit_D), settings.gate, settings.init, settings.gate_noise)
            gate.logit.data.copy_(logit_D)
            self.gates[str(r)] = gate
            W, b = fresh(frozen.seed, frozen.content, len(logit_D), ("mask", round_, r, 0))
            self.register_parameter(f"W_{r}", nn.Parameter(W))
            self.register_parameter(f"b_{r}", nn.Parameter(b))

    def forward(self, step: Step, environment: dict[int, Tensor]) -> dict[str, dict[str, Tensor]]:
        out = {}  # by str: DeepSpeed reads the keys
        for name, gate in self.gates.items():
            r, batch = int(name), step.batch
            mask_D = gate(derive(batch.seed, "gate", r))
            assigned = Assigned(r, environment[r][batch.index_b].long(), range(self.frozen.settings.environments))
            projection = Projection(getattr(self, f"W_{r}"), getattr(self, f"b_{r}"))
            terms = mask_loss(self.frozen, step, assigned, mask_D, projection)
            terms |= {"variance": self.gamma * terms["variance"], "size": self.rho * terms["size"]}
            out[name] = {**terms, "loss": terms["fit"] + terms["variance"] + terms["size"]}
        return out


def gamma_of(settings: Invariance, round_: int) -> float:
    """The variance penalty's weight in a round.

    In the first rounds Psi still holds causal dimensions, so environments also split users by taste and penalising
    their differences would punish what should stay; the fit separates first, the penalty follows.
    """
    return settings.gamma * (round_ / max(settings.rounds - 1, 1) if settings.gamma_warmup else 1.0)
