"""Backbones under training: their tables and projections, the rows that a step touches, and their loss.

The M backbones of a stage train on the same samples, so that their tables are read at the same ids and stored together.

Shapes: M members; U users, I items; w content width, d id width, c projected content width, k = d + c; P groups of b
positives, X = P b of them, N negatives of a group, s neighbours of each positive's item; L ids of items in a step and R
slots of distinct ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.config import Backbone, Config
from m3dist.data.draws import Batch, Plan
from m3dist.distributed.rows import RowTables, random_rows
from m3dist.distributed.tables import Touched, Wanted, pull, push, touch
from m3dist.losses import logistic
from m3dist.losses.known import known
from m3dist.losses.logistic import Coefficients, Found, Samples
from m3dist.models.ultragcn import UltraGCN
from m3dist.seeding import torch_rng
from m3dist.training.data import DeviceData


def plan(backbone: Backbone) -> Plan:
    """What a step of the backbone draws."""
    neighbours = backbone.neighbours if backbone.nu else 0
    return Plan(
        backbone.negatives, backbone.sampling == "per_positive", neighbours,
        min(backbone.neighbour_samples, neighbours),
    )  # fmt: skip


def spared(x_Iw: Tensor) -> Tensor:
    """Items' content with a row of zeros behind, for places of a step where there is no item, [I + 1, w]."""
    return torch.cat([x_Iw, x_Iw.new_zeros(1, x_Iw.shape[1])])


@dataclass(frozen=True)
class Sampled:
    """A step's batch, the rows of users and items that it touches, and what its samples weigh.

    The L ids of items are the s neighbours of every positive, [s, X], the positives [X], the negatives [P, N], and
    whatever else the stage reads.
    """

    batch: Batch
    user: Touched
    item: Touched
    samples: Samples
    scored: int  # how many of the L ids the loss scores

    @property
    def part(self) -> Tensor:
        """This worker's share of the global batch; shares add up to 1."""
        return self.samples.share_Pb.sum()


@dataclass(frozen=True)
class Rows:
    """A step's rows: users [M, R, k] and the ids' part of items [M, R, d]."""

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
        backbone, self.data, self.engine = config.backbone, data, data.engine
        self.config, self.weights = backbone, data.weights(backbone)
        content = backbone.content_dim if any(widths) else 0
        self.models, users, items = [], [], []
        for width, key in zip(widths, keys, strict=True):
            rng = torch_rng(config.seed, *key)
            std, (U, I), d = backbone.init_std, (data.n_users, data.n_items), backbone.dim
            users.append(random_rows((U, d + content), std, rng, data.bounds(U)))
            items.append(random_rows((I, d), std, rng, data.bounds(I)))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(rng.initial_seed())
                self.models.append(UltraGCN(width, content))
        dense = config.optimizer == "dense"

        def tables(n: int, rows: list[Tensor]) -> RowTables:
            low = (data.bounds(n) or (0, n))[0]
            return RowTables(torch.stack(rows).to(data.device), dense, low, n if data.sharded else None)

        self.user, self.item = tables(data.n_users, users), tables(data.n_items, items)
        if init is not None:
            for name, x in (("user", self.user), ("item", self.item)):
                x.weight[:, :, : backbone.dim] = init[name][x.low : x.low + x.weight.shape[1], : backbone.dim]
        l2_k = torch.full((backbone.dim + content,), backbone.l2, device=data.device)
        l2_k[backbone.dim :] = backbone.content_l2
        self.coefficients = Coefficients(backbone.nu, backbone.negative_weight, l2_k)

    def sample(self, batch: Batch, more: Tensor | None = None) -> Sampled:
        """What a step reads for a batch. more: further items [C] that the stage reads."""
        weights = self.weights
        user_X, item_X = batch.user_Pb.view(-1), batch.item_Pb.view(-1)
        ids, everyone, omega_sX = [item_X, batch.negative.view(-1)], [batch.item_B, batch.negative_B.view(-1)], None
        if self.config.nu:
            near_sX, omega_sX = weights.neighbours(item_X, batch.columns_s)
            ids.insert(0, near_sX.view(-1))
            if self.engine.world > 1:
                everyone.append(weights.neighbours(batch.item_B, batch.columns_s)[0].view(-1))
        base, scale_Pb = weights.negative(batch.user_Pb)
        samples = Samples(
            batch.valid_Pb / batch.size, weights.positive(batch.user_Pb, batch.item_Pb), base, scale_Pb,
            weights.c_I[batch.negative], omega_sX,
        )  # fmt: skip
        scored = sum(x.numel() for x in ids)
        ids += [] if more is None else [more]
        wanted = [Wanted(self.user, user_X, batch.user_B), Wanted(self.item, torch.cat(ids), torch.cat(everyone))]
        user, item = touch(self.engine, wanted)
        return Sampled(batch, user, item, samples, scored)

    def rows(self, sampled: Sampled) -> Rows:
        """The rows that a step reads."""
        return Rows(*pull(self.engine, [sampled.user, sampled.item]))

    def move(self, sampled: Sampled, rows: Rows, grads: Rows, lr: Tensor) -> None:
        """One Adam step of the tables; overwrites the rows."""
        touched = [sampled.user, sampled.item]
        push(self.engine, touched, [rows.user_MRk, rows.id_MRd], [grads.user_MRk, grads.id_MRd], lr)

    def tables(self, name: str) -> dict[str, Tensor]:
        """The live rows that this worker holds, of every member; name: of member m, as in "{}.user" with {} for m."""
        parts = {"user": self.user, "item": self.item}
        return {f"{name.format(m)}{kind}": x for kind, table in parts.items() for m, x in enumerate(table.weight)}


def backbone_loss(
    backbones: Backbones, sampled: Sampled, rows: Rows, contents: Sequence[Tensor | None]
) -> tuple[dict[str, Tensor], Tensor, Rows]:
    """L_O + kappa L_C + nu L_I + L2 of every member, this worker's share.

    contents: projected content of the item slots, [R, c] each, which is what the loss is differentiable in. Returns
    the terms [M], their sum over members and terms, and the gradients of the rows.
    """
    with torch.no_grad(), torch.autocast(rows.user_MRk.device.type, enabled=False):
        item_MRk = rows.id_MRd
        if contents[0] is not None:
            content_MRc = torch.stack([x.detach().float() for x in contents if x is not None])
            item_MRk = torch.cat([rows.id_MRd, content_MRc], dim=2)
        M, d = len(item_MRk), rows.id_MRd.shape[2]
        user_slots, item_slots = sampled.user.slots, sampled.item.slots
        user_MPbk = rows.user_MRk.index_select(1, user_slots.slot_L).view(M, *sampled.batch.user_Pb.shape, -1)
        item_MLk = item_MRk.index_select(1, item_slots.slot_L[: sampled.scored])
        found: Found = logistic.ultragcn(user_MPbk, item_MLk, sampled.samples, backbones.coefficients)
        user_grad = user_slots.sum(found.user_grad_MPbk.flatten(1, 2))
        further = len(item_slots.slot_L) - sampled.scored  # items that the loss does not score
        scored = F.pad(found.item_grad_MLk, (0, 0, 0, further)) if further else found.item_grad_MLk
        item_grad = item_slots.sum(scored)
        value = torch.stack([*found.terms.values()]).sum()
    grads = Rows(user_grad, item_grad[:, :, :d].contiguous())  # a fused Adam takes memory as it lies
    inputs = [x for x in contents if x is not None and x.requires_grad]
    if not inputs:
        return found.terms, value, grads
    content_grads = [x.to(y.dtype) for x, y in zip(item_grad[:, :, d:], inputs, strict=True)]
    return found.terms, known(value, inputs, content_grads), grads
