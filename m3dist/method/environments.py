"""Stage 2's parts: what it reads and never changes, its losses, and the modules that hold what it trains.

A step's gradients have closed forms (`losses.projection`): no autograd over samples.

Shapes: n interactions, b places of this worker's share of a batch, N negatives, E environments, c content width of users,
D representation width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m3dist.config import Config, Invariance
from m3dist.data.dataset import Dataset
from m3dist.data.draws import Batch, Draws, Layout, Pairs, Plan, normal
from m3dist.distributed.engine import Engine
from m3dist.losses.known import known
from m3dist.losses.projection import (
    Fits,
    Negatives,
    Projection,
    Rows,
    Tiles,
    environment_variance,
    projection_fits,
)
from m3dist.method.backbone import spared
from m3dist.models.gate import Gate
from m3dist.models.ultragcn import Weights
from m3dist.seeding import derive, torch_rng


class Step(NamedTuple):
    """A batch, with what no representation and no environment changes of it: the ids' part of scores, and weights.

    Weights are of one interaction, 0 where there is none; `share_b` is what each is of the global batch.
    """

    batch: Batch
    share_b: Tensor
    score_bN: Tensor
    own_b: Tensor
    content_bc: Tensor
    weight_b: Tensor
    base_b: Tensor
    scale_b: Tensor
    weight_N: Tensor


class Frozen:
    """What stage 2 reads and never changes, from plain tensors, so that any process can build it."""

    def __init__(
        self, tensors: dict[str, Tensor], device: str | torch.device, config: Config, engine: Engine | None = None
    ):
        self.engine = engine or Engine(device=device)
        self.settings, self.backbone, self.seed = config.invariance, config.backbone, config.seed
        tensors = {name: x.to(device) for name, x in tensors.items()}
        self.user, self.item = tensors["user"], tensors["item"]
        self.user_Uk, self.item_Id = spared(tensors["member.user"]), spared(tensors["member.item"])
        count = sum(name.startswith("representation.") for name in tensors)
        self.x = [spared(tensors[f"representation.{r}"].float()) for r in range(count)]
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

    def draws(self, purpose: str) -> Draws:
        """Steps over the training interactions, of which each draws noise for the gates, too."""
        layout = Layout.of(min(self.settings.batch_size, len(self.user)), 1, self.engine.rank, self.engine.world)
        pairs = Pairs(self.user, self.item, len(self.user_Uk) - 1, len(self.item_Id) - 1)
        noise = sum(x.shape[1] for x in self.x) if self.settings.gate == "hard_sigmoid" else 0
        return Draws(pairs, Plan(self.settings.negatives, hashes=noise), layout, derive(self.seed, purpose))

    def step(self, draws: Draws) -> Step:
        """This worker's share of the step at which `draws` stands."""
        batch, d = draws.draw(), self.item_Id.shape[1]
        user_b, item_b, negative_N = batch.user_Pb[0], batch.item_Pb[0], batch.negative[0]
        valid_b = batch.valid_Pb[0].float()
        user_bk = self.user_Uk.index_select(0, user_b)
        own_b = torch.linalg.vecdot(user_bk[:, :d], self.item_Id.index_select(0, item_b))
        score_bN = user_bk[:, :d] @ self.item_Id.index_select(0, negative_N).T
        scale = self.backbone.negative_weight / len(negative_N)
        base, scale_b = self.weights.negative(user_b)
        positive_b = self.weights.positive(user_b, item_b).mul_(valid_b)
        return Step(
            batch, valid_b / batch.size, score_bN, own_b, user_bk[:, d:].contiguous(), positive_b,
            valid_b * (base * scale), scale_b.mul_(valid_b).mul_(scale), self.weights.c_I[negative_N],
        )  # fmt: skip

    def fits(self, step: Step, x_ID: Tensor, tiles: Tiles, projection: Projection, squares: bool = False) -> Fits:
        """The fit of every environment to its rows of a representation x_ID, each row weighing 1."""
        x_bD, x_ND = (x_ID.index_select(0, at) for at in (step.batch.item_Pb[0], step.batch.negative[0]))
        rows = Rows(step.own_b, step.content_bc, x_bD, step.weight_b, step.base_b, step.scale_b)
        with torch.autocast(self.engine.device.type, enabled=False):
            return projection_fits(rows, Negatives(x_ND, step.weight_N, step.score_bN), tiles, projection, squares)


def fresh(seed: int, c: int, D: int, keys: Sequence[str | int]) -> Projection:
    """A projection W [c, D] and b [c] from a seed of its own."""
    return Projection(torch.randn(c, D, generator=torch_rng(seed, *keys)) / D**0.5, torch.zeros(c))


class EnvironmentModels(nn.Module):
    """Projections of some environments of some representations; forward gives this worker's share of their loss (eq. 7).

    names: of the environments. psi: 1 - m of every representation, [D].
    """

    def __init__(self, frozen: Frozen, names: Mapping[int, Sequence[int]], psi: Mapping[int, Tensor], round_: int):
        super().__init__()
        self.frozen, self.names = frozen, names
        self.x = {r: frozen.x[r] * psi_D for r, psi_D in psi.items()}
        self.place = {}
        for r, group in names.items():
            each = [fresh(frozen.seed, frozen.content, frozen.x[r].shape[1], ("env", round_, r, e)) for e in group]
            for name, parts in zip((f"W_{r}", f"b_{r}"), zip(*each, strict=True), strict=True):
                self.register_parameter(name, nn.Parameter(torch.stack(parts)))
            place_E = torch.full((frozen.settings.environments,), -1)
            place_E[[*group]] = torch.arange(len(group))
            self.place[r] = place_E.to(frozen.engine.device)

    def forward(self, step: Step, environment: Mapping[int, Tensor]) -> Tensor:
        total = torch.zeros((), device=self.frozen.engine.device)
        for r, group in self.names.items():
            place_b = self.place[r][environment[r][step.batch.index_Pb[0]].long()]
            share_b = step.share_b * (place_b >= 0)  # an interaction of an environment that is not here weighs nothing
            mine = step._replace(
                weight_b=step.weight_b * share_b, base_b=step.base_b * share_b, scale_b=step.scale_b * share_b
            )  # fmt: skip
            tiles = Tiles.of(place_b.clamp(min=0), len(group))
            W, b = getattr(self, f"W_{r}"), getattr(self, f"b_{r}")
            fits = self.frozen.fits(mine, self.x[r], tiles, Projection(W.detach(), b.detach()))
            total = total + known(fits.loss_E.sum(), [W, b], [fits.gradient_EcD, fits.bias_Ec])
        return total


class Masks(nn.Module):
    """Gates of some representations, each with a projection of its own; forward gives their terms.

    L_mask is mean_e L_e(Phi), `fit`, + gamma the mean of (Var o m)^2, `variance`, + rho the mean of m^2, `size`. Var is
    measured on the whole representation and held constant: a mask entry pays for how unlike the environments are in its
    dimension, and cannot lower the price by shrinking. It is relative to its mean over dimensions, and both regularisers
    are means over D, so gamma and rho depend neither on widths nor on the scale of gradients.
    """

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

    def forward(self, step: Step, environment: Mapping[int, Tensor]) -> dict[str, dict[str, Tensor]]:
        out, E = {}, self.frozen.settings.environments
        widths = [x.shape[1] for x in self.frozen.x]
        noise = normal(step.batch.hashes_X).split(widths) if len(step.batch.hashes_X) else [None] * len(widths)
        for name, gate in self.gates.items():  # by str: DeepSpeed reads the keys
            mask_D = gate(noise[int(name)])
            tiles = Tiles.of(environment[int(name)][step.batch.index_Pb[0]].long(), E)
            terms = self._terms(step, int(name), mask_D, tiles)
            terms |= {"variance": self.gamma * terms["variance"], "size": self.rho * terms["size"]}
            out[name] = {**terms, "loss": terms["fit"] + terms["variance"] + terms["size"]}
        return out

    def _terms(self, step: Step, r: int, mask_D: Tensor, tiles: Tiles) -> dict[str, Tensor]:
        frozen, W, b = self.frozen, getattr(self, f"W_{r}"), getattr(self, f"b_{r}")
        with torch.no_grad():
            fits = frozen.fits(step, frozen.x[r], tiles, Projection(W * mask_D, b), squares=True)
            assert fits.square_bD is not None
            valid_b = (step.share_b > 0).float()
            count_E, second_ED = tiles.one_hot_Eb @ valid_b, tiles.one_hot_Eb @ fits.square_bD
            gradient_EcD = fits.gradient_EcD
            if frozen.engine.world > 1:
                gradient_EcD = gradient_EcD.clone()
                frozen.engine.add_up([count_E, second_ED, gradient_EcD])
            there_E = (count_E > 0).float()
            weight_E = there_E / (count_E.clamp(min=1) * there_E.sum())  # mean over environments of their means
            variance_D = environment_variance(gradient_EcD, second_ED, count_E)
            relative_D = variance_D / variance_D.mean().clamp(min=1e-30)
            mean_cD = (weight_E @ fits.gradient_EcD.flatten(1)).view(W.shape)
            gradients = [mean_cD * mask_D, weight_E @ fits.bias_Ec, (W * mean_cD).sum(0)]
            value, part = weight_E @ fits.loss_E, step.share_b.sum()
        return {
            "fit": known(value, [W, b, mask_D], gradients),
            "variance": (relative_D * mask_D).square().mean() * part,
            "size": mask_D.square().mean() * part,
        }


def gamma_of(settings: Invariance, round_: int) -> float:
    """The variance penalty's weight in a round.

    In the first rounds Psi still holds causal dimensions, so environments also split users by taste and penalising
    their differences would punish what should stay; the fit separates first, the penalty follows.
    """
    return settings.gamma * (round_ / max(settings.rounds - 1, 1) if settings.gamma_warmup else 1.0)
