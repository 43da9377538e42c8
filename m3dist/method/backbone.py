"""One backbone under training: its tables, the rows that a step touches, and its loss.

Shapes: U users, I items, w content width, b positives, R distinct rows, N negatives, s sampled neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from m3dist import losses
from m3dist.config import Backbone, Config
from m3dist.data.sampling import Batch, Distinct, Draws
from m3dist.distributed.tables import RowTable, Touched, routes
from m3dist.models.ultragcn import UltraGCN, interaction_loss
from m3dist.seeding import numpy_rng, torch_rng
from m3dist.training.data import DeviceData


def draws(backbone: Backbone) -> Draws:
    """How the backbone's negatives are drawn."""
    return Draws(backbone.negatives, backbone.sampling == "per_positive", backbone.groups)


class Member:
    """One backbone: id tables trained by rows, and a content projection. width: of its items' content.

    init: tables that the id part of its rows starts from, instead of random ones.
    """

    def __init__(
        self,
        data: DeviceData,
        config: Config,
        width: int,
        keys: tuple[str | int, ...],
        init: dict[str, Tensor] | None = None,
    ):
        backbone = config.backbone
        rng = torch_rng(config.seed, *keys)
        content = backbone.content_dim if width else 0
        dense = config.optimizer == "dense"
        self.engine = data.engine

        def table(n: int, d: int) -> RowTable:
            bounds = data.engine.share(n) if data.sharded else None
            return RowTable.random((n, d), backbone.init_std, rng, bounds).on(data.device, dense)

        self.user, self.item = table(data.n_users, backbone.dim + content), table(data.n_items, backbone.dim)
        with torch.random.fork_rng():
            torch.manual_seed(rng.initial_seed())
            self.model = UltraGCN(width, content)
        if init is not None:
            for name, x in (("user", self.user), ("item", self.item)):
                x.weight[:, : backbone.dim] = init[name][x.low : x.low + len(x.weight), : backbone.dim]

    def tables(self, prefix: str) -> dict[str, Tensor]:
        """The live rows that this worker holds."""
        return {f"{prefix}user": self.user.weight, f"{prefix}item": self.item.weight}


class Rows:
    """The distinct rows that a worker's share of a step touches, and where its samples stand among them.

    items: ids [n] of further items that the worker needs, for which `more_at` is their place.
    """

    def __init__(self, data: DeviceData, backbone: Backbone, batch: Batch, items: Tensor | None = None):
        self.batch, weights = batch, data.weights(backbone)
        distinct_user, distinct_item = Distinct(data.n_users), Distinct(data.n_items)
        user_R, (self.user_at,) = distinct_user(batch.user_b)
        more = [] if items is None else [items]
        columns: Tensor | None = None
        self.omega: Tensor | None = None
        if backbone.nu:
            drawn = numpy_rng(batch.seed, "neighbours").permutation(backbone.neighbours)[: backbone.neighbour_samples]
            columns = torch.from_numpy(drawn).to(data.device)
            more.append(weights.neighbour_Ik[batch.item_b][:, columns])
            scale = backbone.neighbours / len(columns)
            self.omega = weights.omega_Ik[batch.item_b][:, columns] * scale
        item_R, (self.item_at, self.negative_at, *at) = distinct_item(batch.item_b, batch.negative, *more)
        self.more_at = None if items is None else at[0]
        self.neighbour_at = at[-1] if columns is not None else None
        self.user, self.item = Touched(user_R), Touched(item_R)
        if data.sharded:
            user, item = routes(data.engine, [(user_R, data.n_users), (item_R, data.n_items)])
            self.user, self.item = Touched(user_R, route=user), Touched(item_R, route=item)
        elif data.engine.world > 1:  # whose gradients all workers add up
            everyone = [] if columns is None else [weights.neighbour_Ik[batch.item_B][:, columns]]
            item_G, _ = distinct_item(batch.item_B, batch.negative_B, *everyone)
            user_G, _ = distinct_user(batch.user_B)
            self.user = Touched(user_R, user_G, torch.searchsorted(user_G, user_R))
            self.item = Touched(item_R, item_G, torch.searchsorted(item_G, item_R))


class Leaves(NamedTuple):
    """A member's rows of a step: users [R, d + c], items' ids [R, d] and their content [R, w]."""

    user_Rd: Tensor
    id_Rd: Tensor
    content_Rw: Tensor | None


Terms = tuple[dict[str, Tensor], Tensor]  # by name, and their sum


class BackboneLoss:
    """L_O + kappa L_C + nu L_I + L2 of one member, this worker's share."""

    def __init__(self, data: DeviceData, config: Backbone):
        self.config, self.weights, self.device = config, data.weights(config), data.device

    def __call__(self, rows: Rows, leaves: Leaves, model: UltraGCN) -> dict[str, Tensor]:
        """Every term, of which only `loss` is sure to have a gradient."""
        item_Rd = model.item_rows(leaves.id_Rd, leaves.content_Rw)
        one = self._own_negatives if rows.batch.negative.ndim > 1 else self._shared_negatives
        out, loss = one(rows, leaves.user_Rd, item_Rd)
        if model.project is not None:
            penalty = self.config.projection_l2 * model.project.weight.square().sum() * rows.batch.part
            out["l2"], loss = out["l2"] + penalty, loss + penalty
        return {**out, "loss": loss}

    def _shared_negatives(self, rows: Rows, user_Rd: Tensor, item_Rd: Tensor) -> Terms:
        """Terms of whole item rows, whose sum alone has a gradient."""
        config, weights, batch = self.config, self.weights, rows.batch
        base, scale_b = weights.negative(batch.user_b)
        l2_d = user_Rd.new_full((user_Rd.shape[1],), config.l2)
        l2_d[config.dim :] = config.content_l2
        at = losses.Sampled(
            rows.user_at, rows.item_at, rows.negative_at, weights.positive(batch.user_b, batch.item_b), base, scale_b,
            weights.c_I[batch.negative], rows.neighbour_at, rows.omega, config.nu, config.negative_weight, l2_d,
            batch.size, batch.parts,
        )  # fmt: skip
        with torch.autocast(user_Rd.device.type, enabled=False):
            out, user_grad, item_grad = losses.ultragcn(user_Rd, item_Rd.to(user_Rd.dtype), at)
        total = torch.stack(list(out.values())).sum()
        return out, losses.known(total, [user_Rd, item_Rd], [user_grad, item_grad.to(item_Rd.dtype)])

    def _own_negatives(self, rows: Rows, user_Rd: Tensor, item_Rd: Tensor) -> Terms:
        """The same where every positive has negatives of its own."""
        config, batch = self.config, rows.batch
        user_bd = user_Rd[rows.user_at]
        places, ids = (rows.item_at, rows.negative_at), (batch.user_b, batch.item_b, batch.negative)
        positive, negative = interaction_loss(user_bd, item_Rd, places, ids, self.weights)
        drawn = batch.size * batch.negative.shape[-1]
        out = {"positive": positive / batch.size, "negative": config.negative_weight * negative / drawn}
        if rows.neighbour_at is not None and rows.omega is not None:
            score_bs = (user_bd[:, None] * item_Rd[rows.neighbour_at]).sum(2)
            out["neighbours"] = config.nu * losses.neighbours(score_bs, rows.omega) / batch.size
        square = user_bd.square().sum(0) / batch.size + item_Rd[rows.item_at].square().sum(0) / batch.size
        if len(batch.user_b):  # the mean over negatives is the batch's, of which each worker takes its part
            times_R = torch.bincount(rows.negative_at.flatten(), minlength=len(item_Rd)).to(item_Rd.dtype)
            square = square + (times_R @ item_Rd.square()) * (batch.part / rows.negative_at.numel())
        out["l2"] = config.l2 * square[: config.dim].sum() + config.content_l2 * square[config.dim :].sum()
        return out, torch.stack(list(out.values())).sum()
