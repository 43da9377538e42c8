"""Backbones under training: their tables and projections, the rows that a step touches, and their loss.

The M backbones of a stage train on the same samples, so that their tables are read at the same ids and stored together.

Shapes: M members; U users, I items; w content width, d id width, c projected content width, k = d + c; P groups of b
positives, X = P b of them, N negatives of a group, s neighbours of each positive's item; L ids of items in a step and R
slots of distinct ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.config import Config, ResolvedBackbone
from m3dist.data.draws import Batch, Draws, Plan, mix, uniform
from m3dist.distributed.rows import RowTables, random_rows
from m3dist.distributed.tables import Touched, Wanted, ask, pull, push, routed
from m3dist.losses import logistic
from m3dist.losses.known import known
from m3dist.losses.logistic import Coefficients, Samples
from m3dist.losses.own import ultragcn_own
from m3dist.losses.softmax import COLDEST, softmax
from m3dist.models.ultragcn import UltraGCN
from m3dist.seeding import torch_rng
from m3dist.storage.artifacts import Output
from m3dist.training.data import DeviceData


def plan(backbone: ResolvedBackbone) -> Plan:
    """What a step of the backbone draws."""
    neighbours = backbone.neighbours if backbone.nu else 0
    return Plan(
        backbone.negatives, backbone.sampling == "per_positive", neighbours,
        min(backbone.neighbour_samples, neighbours), hashes=1 if backbone.id_dropout else 0,
    )  # fmt: skip


def scored(rows: Tensor, loss: str) -> Tensor:
    """Rows of users or items, of any shape [..., k], as products of them are scores."""
    return F.normalize(rows, dim=-1) if loss == "softmax" else rows


@dataclass(frozen=True)
class Sampled:
    """A step's batch, the rows of users and items that it touches, and what its samples weigh.

    The L ids of items are the s neighbours of every positive, [s, X], the positives [X] and the negatives, [P, N] or
    [X, n]. user_l2_R1, item_l2_R1: how much of L2 each slot's row has.
    kept_MR1: 0 where content alone speaks for a slot's item in this step, 1 elsewhere; None without `id_dropout`.
    """

    batch: Batch
    user: Touched
    item: Touched
    samples: Samples
    user_l2_R1: Tensor
    item_l2_R1: Tensor
    kept_MR1: Tensor | None = None

    @property
    def part(self) -> Tensor:
        """This worker's share of the global batch; shares add up to 1."""
        return self.samples.share_Pb.sum()


@dataclass(frozen=True)
class Rows:
    """A step's rows: users [M, R, k] and items' ids [M, R, d]."""

    user_MRk: Tensor
    id_MRd: Tensor


class Backbones:
    """M backbones: id tables trained by rows, and a content projection each.

    widths: of each one's content, 0 for ids alone. keys: of their seeds. init: tables that the id part of all rows
    starts from, instead of random ones.
    """

    def __init__(
        self,
        data: DeviceData,
        config: Config,
        widths: Sequence[int],
        keys: Sequence[tuple[str | int, ...]],
        init: dict[str, Tensor] | None = None,
    ):
        self.config = backbone = config.backbone.resolved
        self.data, self.engine, self.weights = data, data.engine, data.weights(backbone)
        self.adds = any(widths) and backbone.content == "add"
        content = backbone.content_columns if any(widths) else 0
        self._reads_content = any(widths)
        self.pool = data.seen_items if any(widths) and backbone.pool == "seen" else None
        self.models, users, items = [], [], []
        for width, key in zip(widths, keys, strict=True):
            rng = torch_rng(config.seed, *key)
            std, (U, I), d = backbone.init_std, (data.n_users, data.n_items), backbone.dim
            users.append(random_rows((U, d + content), std, rng, data.bounds(0)))
            items.append(random_rows((I, d), std, rng, data.bounds(1)))
            if self.pool is not None:  # nothing is learned of the others' ids: content alone speaks for them
                items[-1] *= data.with_interactions(1, data.bounds(1)).unsqueeze(1).cpu()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(rng.initial_seed())
                self.models.append(UltraGCN(width, content or d, self.adds))
        dense = config.optimizer == "dense"

        def tables(kind: int, rows: list[Tensor]) -> RowTables:
            return RowTables(torch.stack(rows).to(data.device), dense, data.owners(kind), self.engine.rank)

        self.user, self.item = tables(0, users), tables(1, items)
        if init is not None:
            for name, x in (("user", self.user), ("item", self.item)):
                x.weight[:, :, : backbone.dim] = init[name][x.low : x.low + x.weight.shape[1], : backbone.dim]
        self.known_U1 = data.with_interactions(0, data.bounds(0)).unsqueeze(1)
        self._unknown_n = (self.known_U1.squeeze(1) == 0).nonzero().squeeze(1)
        self.l2_k = torch.full((backbone.dim + content,), backbone.l2, device=data.device)
        self.l2_k[backbone.dim :] = backbone.content_l2
        self.coefficients = Coefficients(backbone.nu, backbone.negative_weight)

    def parameters(self, lr: float) -> dict[str, Any]:
        """The projections, as a group of an optimiser whose tables' learning rate is lr."""
        found = [x for model in self.models for x in model.parameters()]
        return {"params": found, "lr": lr * self.config.projection_rate}

    def draws(self, key: int, batch_size: int) -> Draws:
        """Steps over the training interactions."""
        return self.data.draws(key, batch_size, plan(self.config), self.config.groups, self.pool)

    def sample(self, batch: Batch) -> Sampled:
        """What a step reads for a batch."""
        return self.routed(self.ask(batch))

    def routed(self, sampled: Sampled) -> Sampled:
        """The same, and owners know which rows of sharded tables this worker reads."""
        user, item = routed(self.engine, [sampled.user, sampled.item])
        return replace(sampled, user=user, item=item)

    def ask(self, batch: Batch) -> Sampled:
        """What a step reads for a batch; owners of sharded tables know how many rows."""
        weights = self.weights
        user_X, item_X = batch.user_Pb.view(-1), batch.item_Pb.view(-1)
        ids, omega_sX = [item_X, batch.negative.view(-1)], None
        if self.config.nu:
            near_sX, omega_sX = weights.neighbours(item_X, batch.columns_s)
            ids.insert(0, near_sX.view(-1))
        base, scale_Pb = weights.negative(batch.user_Pb)
        samples = Samples(
            batch.valid_Pb / batch.size, weights.positive(batch.user_Pb, batch.item_Pb), base, scale_Pb,
            weights.c_I[batch.negative].flatten(0, -2), omega_sX, batch.filled,
        )  # fmt: skip
        wanted = [Wanted(self.user, user_X), Wanted(self.item, torch.cat(ids), lambda: self._everyone(batch))]
        user, item = ask(self.engine, wanted)
        l2 = user.slots.sum(samples.share_Pb.view(1, -1, 1)), item.slots.sum(self._l2(samples, batch))
        kept_MR1 = self._kept(item.slots.ids_R, batch) if self.config.id_dropout and self._reads_content else None
        return Sampled(batch, user, item, samples, l2[0].squeeze(0), l2[1].squeeze(0), kept_MR1)

    def _everyone(self, batch: Batch) -> Tensor:
        """Ids of items that a step of all workers reads."""
        ids = [batch.item_B, batch.negative_B.view(-1)]
        if self.config.nu:
            ids.append(self.weights.neighbours(batch.item_B, batch.columns_s)[0].view(-1))
        return torch.cat(ids)

    def _kept(self, ids_R: Tensor, batch: Batch) -> Tensor:
        """Which items' ids a step keeps, drawn for every member of its own: the same for an item on every worker."""
        member_M1 = torch.arange(1, len(self.models) + 1, device=ids_R.device).unsqueeze(1)
        hash_MR = mix(mix(ids_R + batch.hashes_X[0]) + member_M1)
        return (uniform(hash_MR) >= self.config.id_dropout).float().unsqueeze(2)

    def _l2(self, samples: Samples, batch: Batch) -> Tensor:
        """How much of L2 the L ids of items have, [1, L, 1]: as samples, and under the softmax as negatives alone.

        These are drawn alike, so that L2 holds the ids of popular items as much as others: beside content, ids that
        were held by their positives would leave it nothing to say of items that have many.
        """
        n = batch.negative.shape[-1]
        share = samples.share_Pb if batch.negative.ndim == 3 else samples.share_Pb.sum(1)
        each = (share / n).unsqueeze(-1).expand(batch.negative.shape)
        parts = [samples.share_Pb.view(-1), each.reshape(-1)]
        if self.config.loss == "softmax":
            parts[0] = torch.zeros_like(parts[0])
        before = 0 if samples.omega_sX is None else samples.omega_sX.numel()
        return F.pad(torch.cat(parts), (before, 0)).view(1, -1, 1)

    def rows(self, sampled: Sampled) -> Rows:
        """The rows that a step reads."""
        return Rows(*pull(self.engine, [sampled.user, sampled.item]))

    def send(self, sampled: Sampled, rows: Rows, grads: Rows) -> Callable[[Tensor], None]:
        """Send gradients; what it returns takes one Adam step of the tables at a rate, and overwrites the rows."""
        touched = [sampled.user, sampled.item]
        return push(self.engine, touched, [rows.user_MRk, rows.id_MRd], [grads.user_MRk, grads.id_MRd])

    @torch.no_grad()
    def users(self) -> Tensor:
        """The rows that this worker's users rank by, [M, U, k].

        Cosines are products of rows of length 1. A user without training interactions has the mean of the others' rows.
        """
        out = self.scored(self.user.weight)
        if self.config.loss != "softmax":
            out = out.clone()  # which are the tables' own rows then
        total_M1k, count = self.known_U1.T @ out, self.known_U1.sum()
        self.engine.add_up([total_M1k, count])
        out[:, self._unknown_n] = total_M1k / count
        return out

    def scored(self, rows: Tensor) -> Tensor:
        """Rows as products of them are scores."""
        return scored(rows, self.config.loss)

    def tables(self, name: str) -> dict[str, Tensor]:
        """The rows that this worker holds, of every member: users' as they rank, and ids of items as they are.

        name: of member m, as in "{}.user" with {} for m.
        """
        parts = {"user": self.users(), "item": self.item.weight}
        return {f"{name.format(m)}{kind}": x for kind, rows in parts.items() for m, x in enumerate(rows)}

    def output(self, tensors: dict[str, Tensor], meta: dict[str, Any], tables: dict[str, Tensor]) -> Output:
        """What a stage leaves behind: tensors that every worker has alike, and the rows that this one holds of tables,
        whose names end in ".user" or ".item"."""
        parted = {"user": self.user.sharded, "item": self.item.sharded}
        rows = {name: x for name, x in tables.items() if parted[name.rpartition(".")[2]]}
        return Output(tensors | {name: x for name, x in tables.items() if name not in rows}, meta, rows)


class Ahead:
    """What each step of a fit reads, as `Backbones.sample` has it of its batch.

    A step's batch says which rows it reads, and follows from the step's number alone. So where items' tables are
    sharded, the next step of the epoch asks for its rows while this one runs, and what comes after needs only numbers
    that its worker's device has had for long: no step but an epoch's first makes the host wait for its own.
    """

    def __init__(self, backbones: Backbones, draws: Draws):
        self.backbones, self.draws = backbones, draws
        self._early = backbones.engine.world > 1 and backbones.item.sharded
        self._next: tuple[int, Sampled] | None = None

    def __call__(self) -> Sampled:
        """Of the step at which `draws` stands; every worker must call it alike."""
        draws, backbones = self.draws, self.backbones
        if not self._early:
            return backbones.sample(draws.draw())
        number, early = draws.number_here, self._next
        asked = early[1] if early and early[0] == number else backbones.ask(draws.draw())
        sampled, last = backbones.routed(asked), draws.here + 1 == draws.steps
        self._next = None if last else (number + 1, backbones.ask(draws.draw(1)))
        return sampled


def backbone_loss(
    backbones: Backbones, sampled: Sampled, rows: Rows, contents: Sequence[Tensor | None]
) -> tuple[dict[str, Tensor], Tensor, Rows]:
    """The configured loss and L2 of every member, this worker's share.

    contents: projected content of the item slots, [R, c] each, which is what the loss is differentiable in. Returns
    the terms [M], their sum over members and terms, and the gradients of the rows.
    """
    settings = backbones.config
    with torch.no_grad(), torch.autocast(rows.user_MRk.device.type, enabled=False):
        kept_MR1 = sampled.kept_MR1
        item_MRk = id_MRd = rows.id_MRd if kept_MR1 is None else rows.id_MRd * kept_MR1
        if contents[0] is not None:
            content_MRc = torch.stack([x.detach().float() for x in contents if x is not None])
            item_MRk = id_MRd + content_MRc if backbones.adds else torch.cat([id_MRd, content_MRc], dim=2)
        M, d = len(item_MRk), id_MRd.shape[2]
        user_slots, item_slots = sampled.user.slots, sampled.item.slots
        user_MPbk = rows.user_MRk.index_select(1, user_slots.slot_L).view(M, *sampled.batch.user_Pb.shape, -1)
        own = sampled.batch.negative.numel() if sampled.batch.negative.ndim == 3 else 0  # whose rows are not copied
        slot_L, slot_n = item_slots.slot_L.split([len(item_slots.slot_L) - own, own])
        item_MLk, at_own = item_MRk.index_select(1, slot_L), None
        if own:
            at_Xn = slot_n.view(-1, sampled.batch.negative.shape[2])
            found, at_own = ultragcn_own(
                user_MPbk, item_MLk, (item_MRk, at_Xn), sampled.samples, backbones.coefficients
            )
        elif settings.loss == "softmax":
            tau = max(settings.tau, COLDEST)
            found = softmax(user_MPbk, item_MLk, sampled.samples, backbones.coefficients, tau)
        else:
            found = logistic.ultragcn(user_MPbk, item_MLk, sampled.samples, backbones.coefficients)
        user_grad = user_slots.sum(found.user_grad_MPbk.flatten(1, 2))
        item_grad = item_slots.sum(F.pad(found.item_grad_MLk, (0, 0, 0, own)) if own else found.item_grad_MLk)
        if at_own is not None:
            item_grad += at_own
        content_MRc = item_grad.clone() if backbones.adds else item_grad[:, :, d:]  # the gradient of content
        if kept_MR1 is not None:
            item_grad[:, :, :d] *= kept_MR1
        l2_M = _add_l2(rows.user_MRk, backbones.l2_k, sampled.user_l2_R1, user_grad)
        held_MRk = id_MRd if backbones.adds else item_MRk
        l2_M += _add_l2(held_MRk, backbones.l2_k[: held_MRk.shape[2]], sampled.item_l2_R1, item_grad)
        terms = {**found.terms, "l2": l2_M}
        value = torch.stack([*terms.values()]).sum()
    grads = Rows(user_grad, item_grad[:, :, :d].contiguous())  # a fused Adam takes memory as it lies
    inputs = [x for x in contents if x is not None and x.requires_grad]
    if not inputs:
        return terms, value, grads
    content_grads = [x.to(y.dtype) for x, y in zip(content_MRc, inputs, strict=True)]
    return terms, known(value, inputs, content_grads), grads


def _add_l2(row_MRk: Tensor, l2_k: Tensor, part_R1: Tensor, grad_MRk: Tensor) -> Tensor:
    """Add the gradients of L2 on rows of which each has a part; its value, [M]."""
    held_MRk = row_MRk * (l2_k * part_R1)
    grad_MRk.add_(held_MRk, alpha=2)
    return torch.linalg.vecdot(held_MRk, row_MRk).sum(1)
