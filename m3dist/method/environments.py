"""Stage 2's parts: what it reads and never changes, its losses, and the modules that hold what it trains.

A step's gradients have closed forms (`losses.projection_fits`): no autograd over samples.

Shapes: n interactions, b this worker's share of a batch, N negatives, E environments, c content width of users, D
representation width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from m3dist import losses
from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.data.sampling import Batch, Sampler
from m3dist.distributed.engine import Engine
from m3dist.method.assignment import Blocks
from m3dist.models.gate import Gate
from m3dist.models.ultragcn import Weights
from m3dist.seeding import derive, torch_rng


class Frozen:
    """What stage 2 reads and never changes, from plain tensors, so that any process can build it."""

    def __init__(
        self, tensors: dict[str, Tensor], device: str | torch.device, config: Config, engine: Engine | None = None
    ):
        self.config, self.engine = config, engine or Engine(device=device)
        tensors = {name: x.to(device) for name, x in tensors.items()}
        self.user, self.item = tensors["user"], tensors["item"]
        self.user_Uk, self.item_Id = tensors["member.user"], tensors["member.item"]
        self.x = [tensors[f"representation.{r}"] for r in range(sum("representation" in name for name in tensors))]
        backbone = config.backbone
        w = (backbone.w1, backbone.w2, backbone.w3, backbone.w4)
        self._last: tuple[Batch, Any] | None = None
        self.interrupted: Callable[[], bool] = lambda: False  # of a process that leads itself
        self.weights = Weights(tensors["user_degree"], tensors["item_degree"], w, backbone.kappa).to(device)

    @staticmethod
    def tensors(dataset: Dataset, aligned: dict[str, Tensor]) -> dict[str, Tensor]:
        """The training split and stage 1's outputs, as the constructor takes them."""
        read = ("member.user", "member.item", "representation.")
        out = {name: x for name, x in aligned.items() if name.startswith(read)}
        for name, array in zip(("user", "item"), dataset.interactions("train"), strict=True):
            out[name] = torch.from_numpy(array.copy())
        for name, array in zip(("user_degree", "item_degree"), dataset.degrees(), strict=True):
            out[name] = torch.from_numpy(array)
        return out

    @functools.cached_property
    def blocks(self) -> Blocks:
        return Blocks.of(self.item)

    @property
    def content(self) -> int:
        """c"""
        return self.user_Uk.shape[1] - self.item_Id.shape[1]

    def sampler(self, purpose: str) -> Sampler:
        settings = self.config.invariance
        return Sampler(
            self.user, self.item, len(self.item_Id), batch_size=settings.batch_size, negatives=settings.negatives,
            per_positive=False, seed=self.config.seed, purpose=purpose,
        )  # fmt: skip

    def batch(self, sampler: Sampler, epoch: int, step: int) -> Batch:
        return sampler(epoch, step, self.engine.rank, self.engine.world)

    def heed(self) -> None:
        """Raises KeyboardInterrupt when the run was interrupted: a round of large data is long."""
        if self.interrupted():
            raise KeyboardInterrupt

    def fits(
        self, batch: Batch, r: int, environment_b: Tensor, names: Sequence[int], W: Tensor, bias: Tensor,
        scale_D: Tensor | None = None, share: float = 1.0, moments: bool = False,
    ) -> losses.Fits:  # fmt: skip
        """The fit of every named environment to its rows, times `share`, of x_r scaled by scale_D.

        W, bias: a projection for each, [g, c, D] and [g, c], or one for all, [1, c, D] and [1, c].
        """
        E = self.config.invariance.environments
        count = torch.bincount(environment_b, minlength=E).tolist()
        order = torch.argsort(environment_b, stable=True)
        if len(names) < E:
            parts = order.split(count)
            order = torch.cat([parts[e] for e in names])
        with torch.autocast(self.engine.device.type, enabled=False):
            score_bN, own_b, content_bc, positive_b, base, scale_b, weight_N = self._ids(batch)
            x_bD, x_ND = (self.x[r].index_select(0, at) for at in (batch.item_b[order], batch.negative))
            if scale_D is not None:
                x_bD, x_ND = x_bD.mul_(scale_D), x_ND.mul_(scale_D)
            return losses.projection_fits(
                score_bN.index_select(0, order), own_b[order], content_bc.index_select(0, order), x_bD,
                positive_b[order].mul_(share), x_ND, base * share, scale_b[order].mul_(share), weight_N,
                [count[e] for e in names], W, bias, moments,
            )  # fmt: skip

    def _ids(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, float, Tensor, Tensor]:
        """What no representation and no environment changes: the ids' part of scores, users' content, weights."""
        if self._last is None or self._last[0] is not batch:
            d = self.item_Id.shape[1]
            user_bk, id_Nd = self.user_Uk.index_select(0, batch.user_b), self.item_Id.index_select(0, batch.negative)
            own_b = torch.linalg.vecdot(user_bk[:, :d], self.item_Id.index_select(0, batch.item_b))
            scale = self.config.backbone.negative_weight / len(batch.negative)
            base, scale_b = self.weights.negative(batch.user_b)
            weights = base * scale, scale_b * scale, self.weights.c_I[batch.negative]
            positive_b = self.weights.positive(batch.user_b, batch.item_b)
            score_bN = user_bk[:, :d] @ id_Nd.T
            self._last = batch, (score_bN, own_b, user_bk[:, d:].contiguous(), positive_b, *weights)
        return self._last[1]


def fresh(config: Config, c: int, D: int, *keys: str | int) -> tuple[Tensor, Tensor]:
    """A projection W [c, D] and b [c] from a seed of its own."""
    return torch.randn(c, D, generator=torch_rng(config.seed, *keys)) / D**0.5, torch.zeros(c)


def environment_loss(
    frozen: Frozen, batch: Batch, r: int, scale_D: Tensor, environment_b: Tensor, names: Sequence[int], W_gcD: Tensor,
    b_gc: Tensor,
) -> Tensor:  # fmt: skip
    """Eq. 7, this worker's share: every interaction under its own environment's model; x_r is scaled by scale_D."""
    fits = frozen.fits(batch, r, environment_b, names, W_gcD.detach(), b_gc.detach(), scale_D, 1 / batch.size)
    return losses.known(fits.loss_G.sum().float(), [W_gcD, b_gc], [fits.gradient_GcD, fits.bias_Gc])


def mask_loss(
    frozen: Frozen, batch: Batch, r: int, mask_D: Tensor, environment_b: Tensor, W: Tensor, b: Tensor, gamma: float
) -> dict[str, Tensor]:
    """L_mask of one representation, this worker's share: mean_e L_e(Phi) + gamma Var-term + rho mean(m^2).

    Var is measured on the whole representation and held constant: a mask entry pays for how unlike the environments
    are in its dimension, and cannot lower the price by shrinking. It is relative to its mean over dimensions, and both
    regularisers are means over D, so gamma and rho depend neither on widths nor on the scale of gradients.
    """
    config, engine = frozen.config.invariance, frozen.engine
    E = config.environments
    with torch.no_grad():
        fits = frozen.fits(batch, r, environment_b, range(E), (W * mask_D)[None], b.detach()[None], moments=True)
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
    fit_ = losses.known(weight_E @ fits.loss_G.float(), [W, b, mask_D], gradients)
    penalty = gamma * (relative_D * mask_D).square().mean() * batch.part
    size = config.rho * mask_D.square().mean() * batch.part
    return {"fit": fit_, "variance": penalty, "size": size, "loss": fit_ + penalty + size}


class EnvironmentModels(nn.Module):
    """Projections of some environments of some representations; forward gives this worker's share of their loss."""

    def __init__(
        self, frozen: Frozen, environments: Mapping[int, Sequence[int]], scale: Mapping[int, Tensor], round_: int
    ):
        super().__init__()
        self.frozen, self.environments, self.scale = frozen, environments, scale
        for r, group in environments.items():
            each = [fresh(frozen.config, frozen.content, frozen.x[r].shape[1], "env", round_, r, e) for e in group]
            for name, parts in zip((f"W_{r}", f"b_{r}"), zip(*each, strict=True), strict=True):
                self.register_parameter(name, nn.Parameter(torch.stack(parts)))

    def forward(self, batch: Batch, environment: dict[int, Tensor]) -> Tensor:
        total = torch.zeros((), device=self.frozen.engine.device)
        for r, group in self.environments.items():
            at, W, b = environment[r][batch.index_b].long(), getattr(self, f"W_{r}"), getattr(self, f"b_{r}")
            total = total + environment_loss(self.frozen, batch, r, self.scale[r], at, group, W, b)
        return total


class Masks(nn.Module):
    """Gates of some representations, each with a projection of its own; forward gives their terms."""

    def __init__(self, frozen: Frozen, logits: Mapping[int, Tensor], round_: int):
        super().__init__()
        self.frozen = frozen
        settings = frozen.config.invariance
        # In the first rounds Psi still holds causal dimensions, so environments also split users by taste and
        # penalising their differences would punish what should stay; the fit separates first, the penalty follows.
        warm = round_ / max(settings.rounds - 1, 1) if settings.gamma_warmup else 1.0
        self.gamma = warm * settings.gamma
        self.gates = nn.ModuleDict()
        for r, logit_D in logits.items():
            gate = Gate(len(logit_D), settings.gate, settings.init, settings.gate_noise)
            gate.logit.data.copy_(logit_D)
            self.gates[str(r)] = gate
            W, b = fresh(frozen.config, frozen.content, len(logit_D), "mask", round_, r, 0)
            self.register_parameter(f"W_{r}", nn.Parameter(W))
            self.register_parameter(f"b_{r}", nn.Parameter(b))

    def forward(self, batch: Batch, environment: dict[int, Tensor]) -> dict[str, dict[str, Tensor]]:
        out = {}  # by str: DeepSpeed reads the keys
        for name, gate in self.gates.items():
            r = int(name)
            mask_D = gate(derive(batch.seed, "gate", r))
            at = environment[r][batch.index_b].long()
            W, b = getattr(self, f"W_{r}"), getattr(self, f"b_{r}")
            out[name] = mask_loss(self.frozen, batch, r, mask_D, at, W, b, self.gamma)
        return out
