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
from m3dist.data.arrays import shared
from m3dist.data.dataset import Dataset
from m3dist.data.draws import Batch, Draws, Layout, Pairs, Plan, normal
from m3dist.data.shards import Part
from m3dist.distributed.engine import Engine
from m3dist.losses.known import known
from m3dist.losses.masks import Columns, Everyone, Moments, Penalties, Sums, mask_loss
from m3dist.losses.projection import Projection, Samples, Tiles, projection_fits
from m3dist.losses.softmax import COLDEST
from m3dist.method.content import spared
from m3dist.models.gate import Gate
from m3dist.models.ultragcn import Weights
from m3dist.seeding import derive, torch_rng

_NEVER = -1e9  # the score of a negative that is the positive itself


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
        self.settings, self.backbone, self.seed = config.invariance, config.backbone.resolved, config.seed
        tensors = {name: x.to(device) for name, x in tensors.items()}
        self.user, self.item, self.part = tensors["user"], tensors["item"], Part.of(tensors["part"].tolist())
        user_Uk, self.item_Id = spared(tensors["member.user"]), spared(tensors["member.item"])
        adds, d = self.backbone.content == "add", self.item_Id.shape[1]
        self.id_Ud, self.content_Uc = user_Uk[:, :d], (user_Uk if adds else user_Uk[:, d:]).contiguous()
        self.tau: float | None = None
        if self.backbone.loss == "softmax":
            self.tau = max(self.backbone.tau, COLDEST)
            self.content_Uc = F.normalize(self.content_Uc, dim=1)
        self.pool: Tensor | None = None
        if self.backbone.pool == "seen" and bool((tensors["item_degree"] == 0).any()):
            self.pool = tensors["item_degree"].nonzero().squeeze(1)
        count = sum(name.startswith("representation.") for name in tensors)
        self.x = [spared(tensors[f"representation.{r}"].float()) for r in range(count)]
        backbone = self.backbone
        w = (backbone.w1, backbone.w2, backbone.w3, backbone.w4)
        self.weights = Weights((tensors["user_degree"], tensors["item_degree"]), w, backbone.kappa).to(device)

    @staticmethod
    def tensors(dataset: Dataset, aligned: dict[str, Tensor], part: Part | None = None) -> dict[str, Tensor]:
        """A worker's part of the training split, by default all of it, and the first stage's outputs, for the
        constructor."""
        read = ("member.user", "member.item", "representation.")
        out = {name: x for name, x in aligned.items() if name.startswith(read)}
        part = part or dataset.part(0, 1)
        out["part"] = torch.tensor(part.numbers)
        for name, array in zip(("user", "item"), dataset.of_users("train", part.users), strict=True):
            out[name] = shared(array)
        for name, array in zip(("user_degree", "item_degree"), dataset.degrees, strict=True):
            out[name] = torch.from_numpy(array)
        return out

    @property
    def content(self) -> int:
        """c"""
        return self.content_Uc.shape[1]

    def tiles(self, environments: int) -> Tiles:
        """What fits of a worker's share of a batch need."""
        return Tiles(self.layout.position_Pb.shape[1], environments, self.engine.device)

    @functools.cached_property
    def layout(self) -> Layout:
        """This worker's share of a batch."""
        return Layout.of(self.part.total, self.settings.batch_size, 1, self.part.pairs)

    def noise(self, batch: Batch) -> Sequence[Tensor | None]:
        """Standard normal numbers for every dimension of every representation, where gates have noise."""
        if not len(batch.hashes_X):
            return [None] * len(self.x)
        return normal(batch.hashes_X).split([x.shape[1] for x in self.x])

    def draws(self, purpose: str) -> Draws:
        """Steps over the training interactions, of which each draws noise for the gates, too."""
        pairs = Pairs(self.user, self.item, len(self.id_Ud) - 1, len(self.item_Id) - 1, self.pool, self.part)
        noise = sum(x.shape[1] for x in self.x) if self.settings.gate == "hard_sigmoid" else 0
        return Draws(pairs, Plan(self.settings.negatives, hashes=noise), self.layout, derive(self.seed, purpose))

    def step(self, draws: Draws) -> Step:
        """This worker's share of the step at which `draws` stands."""
        batch = draws.draw()
        user_b, item_b, negative_N = batch.user_Pb[0], batch.item_Pb[0], batch.negative[0]
        valid_b = batch.valid_Pb[0].float()
        content_bc = self.content_Uc.index_select(0, user_b)
        if self.tau is not None:
            itself_bN = negative_N == item_b.unsqueeze(1)
            score_bN = torch.zeros_like(itself_bN, dtype=torch.float32).masked_fill_(itself_bN, _NEVER)
            samples = Samples(
                score_bN, torch.zeros_like(valid_b), content_bc, valid_b, valid_b, valid_b,
                self.weights.c_I[negative_N], item_b, negative_N, self.tau,
            )  # fmt: skip
            return Step(batch, valid_b / batch.size, samples)
        id_bd = self.id_Ud.index_select(0, user_b)
        own_b = torch.linalg.vecdot(id_bd, self.item_Id.index_select(0, item_b))
        score_bN = id_bd @ self.item_Id.index_select(0, negative_N).T
        scale = self.backbone.negative_weight / len(negative_N)
        base, scale_b = self.weights.negative(user_b)
        positive_b = self.weights.positive(user_b, item_b).mul_(valid_b)
        samples = Samples(
            score_bN, own_b, content_bc, positive_b, valid_b * (base * scale),
            scale_b.mul_(valid_b).mul_(scale), self.weights.c_I[negative_N], item_b, negative_N,
        )  # fmt: skip
        return Step(batch, valid_b / batch.size, samples)


class Trained(NamedTuple):
    """Projections of environments: W [g, c, D] and b [g, c]; of one, without g."""

    W: Tensor
    b: Tensor


def fresh(seed: int, c: int, D: int, keys: Sequence[str | int]) -> Trained:
    """A projection W [c, D] and b [c] from a seed of its own."""
    return Trained(torch.randn(c, D, generator=torch_rng(seed, *keys)) * (0.5 / D**0.5), torch.zeros(c))


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
        frozen, share_b, samples = self.frozen, step.share_b, step.samples
        weighted = replace(
            samples, positive_b=samples.positive_b * share_b, base_b=samples.base_b * share_b,
            scale_b=samples.scale_b * share_b,
        )  # fmt: skip
        with torch.autocast(share_b.device.type, enabled=False):
            fits = projection_fits(weighted, projections, place_Rb, self.tiles)
        # L2 as each environment's own mean over samples would have it
        l2 = share_b.sum() * (frozen.settings.projection_l2 / frozen.settings.environments)
        value = torch.stack(
            [fit.loss_E.sum() + x.W.square().sum() * l2 for fit, x in zip(fits, projections, strict=True)]
        )
        gradients = [
            x for fit, projection in zip(fits, projections, strict=True)
            for x in (fit.gradient_EcD.add_(projection.W * (2 * l2)), fit.bias_Ec)
        ]  # fmt: skip
        value = value.sum()
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
        self.settings, self.gamma = settings, gamma_of(settings, round_)
        self.tiles = frozen.tiles(settings.environments)
        self.columns = Columns([len(x) for x in logits.values()], frozen.engine.device)
        window = max(1, min(frozen.layout.steps, settings.mask_steps // 6))
        self.moments = Moments(settings.environments, frozen.content, self.columns, window)
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
            sums, settings = Sums.of(fits), self.settings
            penalties = Penalties(self.gamma, settings.rho, settings.projection_l2, step.share_b.sum())
            parameters = torch.cat(W, dim=1), torch.cat(masks)
            everyone = self._everyone(sums)
            found = mask_loss(sums, parameters, penalties, self.columns, everyone)
        terms = {"fit": found.fit_R, "variance": found.variance_R, "size": found.size_R}
        terms["loss"] = found.fit_R + found.variance_R + found.size_R
        widths = self.columns.widths
        named = {f"{r}/{name}": x for name, x_R in terms.items() for r, x in zip(self.rs, x_R, strict=True)}
        effect_R = self.columns.mean(everyone.effect_V) * penalties.share
        named |= {f"{r}/effect": x for r, x in zip(self.rs, effect_R, strict=True)}
        gradients = [
            *found.W_grad_cV.split(widths, dim=1), *found.bias_grad_Rc.unbind(), *found.mask_grad_V.split(widths)
        ]  # fmt: skip
        return known(terms["loss"].sum(), [*W, *b, *masks], gradients), named

    def _everyone(self, sums: Sums) -> Everyone:
        """Add the step's moments, over all workers, to those before, and what these say."""
        engine = self.frozen.engine
        step = [sums.gradient_EcV, sums.second_EV, sums.count_RE]
        if engine.world > 1:
            step = [x.clone() for x in step]
            engine.add_up(step)
        self.moments.add(*step)
        return Everyone(step[2], self.moments.effect(self.columns, self.settings.effect))


def gamma_of(settings: Invariance, round_: int) -> float:
    """The variance penalty's weight in a round.

    In the first rounds Psi still holds causal dimensions, so environments also split users by taste and penalising
    their differences would punish what should stay; the fit separates first, the penalty follows.
    """
    return settings.gamma * (round_ / max(settings.rounds - 1, 1) if settings.gamma_warmup else 1.0)
