"""Stage 2's parts: what it reads and never changes, its losses, and the modules that hold what it trains.

A step's gradients have closed forms (`losses.projection`): no autograd over samples.

Shapes: n interactions, b places of this worker's share of a batch, N negatives, E environments, c content width of
users, D representation width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.config import Config, Invariance
from m3dist.data.dataset import Dataset
from m3dist.data.draws import Batch, Draws, Layout, Pairs, Plan, normal
from m3dist.distributed.engine import Engine
from m3dist.losses.known import known
from m3dist.losses.masks import Columns, Penalties, mask_loss
from m3dist.losses.projection import Projection, Samples, Tiles, projection_fits
from m3dist.method.backbone import spared
from m3dist.models.gate import Gate
from m3dist.models.ultragcn import Weights
from m3dist.seeding import derive, torch_rng


class Step(NamedTuple):
    """A batch, what each of its interactions is of the global batch, 0 where there is none, and what no representation
    and no environment changes of it: the ids' part of scores, and weights of single interactions."""

    batch: Batch
    share_b: Tensor
    samples: Samples


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

    def tiles(self, environments: int) -> Tiles:
        """What fits of a worker's share of a batch need."""
        return Tiles(self.layout.position_Pb.shape[1], environments, self.engine.device)

    @functools.cached_property
    def layout(self) -> Layout:
        """This worker's share of a batch."""
        return Layout.of(min(self.settings.batch_size, len(self.user)), 1, self.engine.rank, self.engine.world)

    def noise(self, batch: Batch) -> Sequence[Tensor | None]:
        """Standard normal numbers for every dimension of every representation, where gates have noise."""
        if not len(batch.hashes_X):
            return [None] * len(self.x)
        return normal(batch.hashes_X).split([x.shape[1] for x in self.x])

    def draws(self, purpose: str) -> Draws:
        """Steps over the training interactions, of which each draws noise for the gates, too."""
        pairs = Pairs(self.user, self.item, len(self.user_Uk) - 1, len(self.item_Id) - 1)
        noise = sum(x.shape[1] for x in self.x) if self.settings.gate == "hard_sigmoid" else 0
        return Draws(pairs, Plan(self.settings.negatives, hashes=noise), self.layout, derive(self.seed, purpose))

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
        samples = Samples(
            score_bN, own_b, user_bk[:, d:].contiguous(), positive_b, valid_b * (base * scale),
            scale_b.mul_(valid_b).mul_(scale), self.weights.c_I[negative_N], item_b, negative_N,
        )  # fmt: skip
        return Step(batch, valid_b / batch.size, samples)


class Trained(NamedTuple):
    """Projections of environments: W [g, c, D] and b [g, c]; of one, without g."""

    W: Tensor
    b: Tensor


def fresh(seed: int, c: int, D: int, keys: Sequence[str | int]) -> Trained:
    """A projection W [c, D] and b [c] from a seed of its own."""
    return Trained(torch.randn(c, D, generator=torch_rng(seed, *keys)) / D**0.5, torch.zeros(c))


class EnvironmentModels(nn.Module):
    """Projections of environments of some representations; forward gives this worker's share of their loss (eq. 7).

    names: of as many environments of each. psi: 1 - m of every representation, [D].
    """

    def __init__(self, frozen: Frozen, names: Mapping[int, Sequence[int]], psi: Mapping[int, Tensor], round_: int):
        super().__init__()
        self.frozen, self.names = frozen, names
        self.x = {r: frozen.x[r] * psi[r] for r in names}
        device, E, most = frozen.engine.device, frozen.settings.environments, max(map(len, names.values()))
        place_RE = torch.full((len(names), E), most)
        for place_E, (r, group) in zip(place_RE, names.items(), strict=True):
            keys = [("env", round_, r, e) for e in group]
            each = [fresh(frozen.seed, frozen.content, frozen.x[r].shape[1], key) for key in keys]
            for name, parts in zip((f"W_{r}", f"b_{r}"), zip(*each, strict=True), strict=True):
                stacked = torch.stack(parts)
                filled = F.pad(stacked, (*[0, 0] * (stacked.ndim - 1), 0, most - len(group)))
                self.register_parameter(name, nn.Parameter(filled))
            place_E[[*group]] = torch.arange(len(group))
        self.place_RE = place_RE.to(device)
        self.tiles = frozen.tiles(most)

    def forward(self, step: Step, environment_Rn: Tensor) -> Tensor:
        """environment_Rn: of every interaction, in the order of `names`."""
        place_Rb = self.place_RE.gather(1, environment_Rn.index_select(1, step.batch.index_Pb[0]).long())
        parameters = [(getattr(self, f"W_{r}"), getattr(self, f"b_{r}")) for r in self.names]
        projections = [
            Projection(self.x[r], W.detach(), b.detach()) for r, (W, b) in zip(self.names, parameters, strict=True)
        ]
        share_b, samples = step.share_b, step.samples
        weighted = replace(
            samples, positive_b=samples.positive_b * share_b, base_b=samples.base_b * share_b,
            scale_b=samples.scale_b * share_b,
        )  # fmt: skip
        with torch.autocast(share_b.device.type, enabled=False):
            fits = projection_fits(weighted, projections, place_Rb, self.tiles)
        value = torch.stack([fit.loss_E for fit in fits]).sum()
        gradients = [x for fit in fits for x in (fit.gradient_EcD, fit.bias_Ec)]
        return known(value, [x for pair in parameters for x in pair], gradients)

    def trained(self, state: Mapping[str, Tensor]) -> dict[int, Trained]:
        """The projections of the named environments, from the module's state."""
        return {r: Trained(state[f"W_{r}"][: len(g)], state[f"b_{r}"][: len(g)]) for r, g in self.names.items()}


class Masks(nn.Module):
    """Gates of some representations, each with a projection of its own; forward gives `losses.masks.mask_loss`."""

    def __init__(self, frozen: Frozen, logits: Mapping[int, Tensor], round_: int):
        super().__init__()
        self.frozen, self.rs = frozen, [*logits]
        settings = frozen.settings
        self.rho, self.gamma = settings.rho, gamma_of(settings, round_)
        self.tiles = frozen.tiles(settings.environments)
        self.columns = Columns([len(x) for x in logits.values()], frozen.engine.device)
        self.gates = nn.ModuleDict()
        for r, logit_D in logits.items():
            gate = Gate(len(logit_D), settings.gate, settings.init, settings.gate_noise)
            gate.logit.data.copy_(logit_D)
            self.gates[str(r)] = gate
            W, b = fresh(frozen.seed, frozen.content, len(logit_D), ("mask", round_, r, 0))
            self.register_parameter(f"W_{r}", nn.Parameter(W))
            self.register_parameter(f"b_{r}", nn.Parameter(b))

    def forward(self, step: Step, environment_Rn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and every representation's terms. environment_Rn: of every interaction."""
        noise = self.frozen.noise(step.batch)
        masks = [gate(noise[int(r)]) for r, gate in self.gates.items()]
        W, b = ([getattr(self, f"{name}_{r}") for r in self.rs] for name in "Wb")
        with torch.no_grad(), torch.autocast(step.share_b.device.type, enabled=False):
            environment_Rb = environment_Rn.index_select(1, step.batch.index_Pb[0]).long()
            # an interaction that is not there belongs to no environment
            environment_Rb = torch.where(step.share_b > 0, environment_Rb, self.frozen.settings.environments)
            xs = [self.frozen.x[r] for r in self.rs]
            scaled = [Projection(x, (W * m)[None], b[None]) for x, W, b, m in zip(xs, W, b, masks, strict=True)]
            fits = projection_fits(step.samples, scaled, environment_Rb, self.tiles, moments=True)
            penalties = Penalties(self.gamma, self.rho, step.share_b.sum())
            parameters = torch.cat(W, dim=1), torch.cat(masks)
            found = mask_loss(fits, parameters, penalties, self.columns, self.frozen.engine.add_up)
        terms = {"fit": found.fit_R, "variance": found.variance_R, "size": found.size_R}
        terms["loss"] = found.fit_R + found.variance_R + found.size_R
        widths = self.columns.widths
        gradients = [
            *found.W_grad_cV.split(widths, dim=1), *found.bias_grad_Rc.unbind(), *found.mask_grad_V.split(widths)
        ]  # fmt: skip
        named = {f"{r}/{name}": x for name, x_R in terms.items() for r, x in zip(self.rs, x_R, strict=True)}
        return known(terms["loss"].sum(), [*W, *b, *masks], gradients), named


def gamma_of(settings: Invariance, round_: int) -> float:
    """The variance penalty's weight in a round.

    In the first rounds Psi still holds causal dimensions, so environments also split users by taste and penalising
    their differences would punish what should stay; the fit separates first, the penalty follows.
    """
    return settings.gamma * (round_ / max(settings.rounds - 1, 1) if settings.gamma_warmup else 1.0)
