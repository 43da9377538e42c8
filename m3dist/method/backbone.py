"""What stages share: the training split as tensors, content, and one backbone with its tables.

Shapes: U users, I items, w content width, b positives, R distinct rows, N negatives, s sampled neighbours.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist import losses
from m3dist.config import Backbone, Config
from m3dist.data.dataset import Dataset
from m3dist.data.graphs import item_neighbours
from m3dist.data.sampling import Batch, Distinct, Sampler
from m3dist.distributed.engine import Engine
from m3dist.distributed.tables import RowTable, Spread, Touched, routes
from m3dist.evaluation import ranking
from m3dist.models.ultragcn import UltraGCN, Weights, interaction_loss
from m3dist.seeding import numpy_rng, torch_rng
from m3dist.storage.folders import Stored


class Data:
    """A data set as a stage uses it on one worker; splits are read when asked for."""

    def __init__(self, dataset: Dataset, config: Config, engine: Engine | None = None):
        self.dataset, self.config = dataset, config
        self.engine = engine or Engine()
        self.device = self.engine.device
        self.n_users, self.n_items = dataset.n_users, dataset.n_items
        user, item = dataset.interactions("train")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # read-only memory that processes share; nothing writes to it
            self.user, self.item = (torch.from_numpy(x).to(self.device) for x in (user, item))
        self.cold_I = torch.from_numpy(dataset.degrees()[1] == 0).to(self.device)
        self.sharded = config.embeddings == "sharded" and self.engine.world > 1
        self.distinct_user, self.distinct_item = Distinct(self.n_users), Distinct(self.n_items)

    @functools.cached_property
    def weights(self) -> Weights:
        """UltraGCN's constants; the item-item graph behind them is made when a loss first asks."""
        user_degree, item_degree = (torch.from_numpy(x) for x in self.dataset.degrees())
        backbone = self.config.backbone
        neighbour = omega = None
        if backbone.nu:
            user, item = self.dataset.interactions("train")
            pair = item_neighbours(user, item, self.n_users, self.n_items, backbone.neighbours)
            neighbour, omega = (torch.from_numpy(x) for x in pair)
        w = (backbone.w1, backbone.w2, backbone.w3, backbone.w4)
        return Weights(user_degree, item_degree, w, backbone.kappa, neighbour, omega).to(self.device)

    def features(self) -> list[Tensor]:
        """Every modality [I, d_m]: standardised per column over the items that have it, then rows of length 1.

        An item that lacks the modality has a row of zeros.
        """
        out = []
        for name in self.dataset.modalities:
            x = torch.from_numpy(np.array(self.dataset.features(name), dtype=np.float32))
            present = torch.from_numpy(self.dataset.present(name))
            have = x[present]
            x = (x - have.mean(0)) / have.std(0, correction=0).clamp(min=1e-6)
            out.append((F.normalize(x, dim=1) * present[:, None]).to(self.device))
        return out

    def sampler(self, batch_size: int, purpose: str, negatives: int | None = None) -> Sampler:
        backbone = self.config.backbone
        return Sampler(
            self.user, self.item, self.n_items, batch_size=batch_size, negatives=negatives or backbone.negatives,
            per_positive=negatives is None and backbone.sampling == "per_positive",
            seed=self.config.seed, purpose=purpose, groups=backbone.groups if negatives is None else 1,
        )  # fmt: skip

    def evaluate(
        self, score: ranking.Scorer, split: str, users: Tensor | None = None, keep: bool = False
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics of a scorer on `val` (training items masked) or `test` (validation items masked too).

        `/cold`: of items without training interactions alone, over the users who hold one out.

        Workers share out the users, by id modulo their number or, where tables are sharded, by who owns their rows;
        all get the same metrics, and with `keep` the table of their own users.
        """
        masked = ["train"] if split == "val" else ["train", "val"]
        seen = ranking.Seen.of([self.dataset.interactions(name) for name in masked], self.n_users, self.device)
        relevant = ranking.Seen.of([self.dataset.interactions(split)], self.n_users, self.device)
        evaluation, engine = self.config.evaluation, self.engine
        everyone = torch.arange(self.n_users) if users is None else users
        if self.sharded:
            mine = everyone[self.mine(everyone)].to(self.device)
        else:
            mine = everyone[everyone % engine.world == engine.rank].to(self.device)
        with torch.no_grad():
            total, table = ranking.evaluate(
                score, mine, seen, relevant, self.n_items, evaluation.k, evaluation.block, keep, self.cold_I
            )
        total.sums = engine.totals(total.sums)
        counts = engine.totals({"users": total.users, "cold": total.cold_users})
        total.users, total.cold_users = int(counts["users"]), int(counts["cold"])
        engine.add_up(total.listed.values())
        return total.means(), table

    def mine(self, user_n: Tensor) -> Tensor:
        """bool [n]: the users whose rows this worker holds; all of them where tables are replicated."""
        low, high = self.engine.share(self.n_users) if self.sharded else (0, self.n_users)
        return (user_n >= low) & (user_n < high)

    def joined(self, x_nd: Tensor) -> Tensor:
        """What every worker found for its own users, in ascending order of users: all of it, on every worker."""
        if not self.sharded:
            return x_nd
        return self.engine.gather(x_nd, self.engine.collect(len(x_nd)))


class Member:
    """One backbone: id tables trained by rows, and a content projection."""

    def __init__(self, data: Data, width: int, *keys: str | int, init: dict[str, Tensor] | None = None):
        config: Backbone = data.config.backbone
        self.config = config
        rng = torch_rng(data.config.seed, *keys)
        content = config.content_dim if width else 0
        dense = data.config.optimizer == "dense"
        self.engine = data.engine

        def table(n: int, d: int) -> RowTable:
            bounds = data.engine.share(n) if data.sharded else None
            return RowTable.random(n, d, config.init_std, rng, dense, data.device, bounds)

        self.user, self.item = table(data.n_users, config.dim + content), table(data.n_items, config.dim)
        with torch.random.fork_rng():
            torch.manual_seed(rng.initial_seed())
            self.model = UltraGCN(width, content)
        if init is not None:
            for name, x in (("user", self.user), ("item", self.item)):
                x.weight[:, : config.dim] = init[name][x.low : x.low + len(x.weight), : config.dim]

    def state(self, prefix: str) -> dict[str, Stored]:
        """The live tables."""
        tables = {f"{prefix}user": self.user, f"{prefix}item": self.item}
        return {name: Spread(x, self.engine) if x.sharded else x.weight for name, x in tables.items()}


class Rows:
    """The distinct rows that a worker's share of a step touches, and where its samples stand among them.

    items: ids [n] of further items that the worker needs, for which `more_at` is their place.
    """

    def __init__(self, data: Data, batch: Batch, items: Tensor | None = None):
        backbone, weights = data.config.backbone, data.weights
        user_R, (self.user_at,) = data.distinct_user(batch.user_b)
        more = [] if items is None else [items]
        columns: Tensor | None = None
        self.omega: Tensor | None = None
        if backbone.nu:
            drawn = numpy_rng(batch.seed, "neighbours").permutation(backbone.neighbours)[: backbone.neighbour_samples]
            columns = torch.from_numpy(drawn).to(data.device)
            more.append(weights.neighbour_Ik[batch.item_b][:, columns])
            scale = backbone.neighbours / len(columns)
            self.omega = weights.omega_Ik[batch.item_b][:, columns] * scale
        item_R, (self.item_at, self.negative_at, *at) = data.distinct_item(batch.item_b, batch.negative, *more)
        self.more_at = None if items is None else at[0]
        self.neighbour_at = at[-1] if columns is not None else None
        self.user, self.item = Touched(user_R), Touched(item_R)
        if data.sharded:
            user, item = routes(data.engine, [(user_R, data.n_users), (item_R, data.n_items)])
            self.user, self.item = Touched(user_R, route=user), Touched(item_R, route=item)
        elif data.engine.world > 1:  # whose gradients all workers add up
            everyone = [] if columns is None else [weights.neighbour_Ik[batch.item_B][:, columns]]
            item_G, _ = data.distinct_item(batch.item_B, batch.negative_B, *everyone)
            user_G, _ = data.distinct_user(batch.user_B)
            self.user = Touched(user_R, user_G, torch.searchsorted(user_G, user_R))
            self.item = Touched(item_R, item_G, torch.searchsorted(item_G, item_R))


def backbone_loss(
    data: Data, batch: Batch, rows: Rows, user_Rd: Tensor, id_Rd: Tensor, content_Rw: Tensor | None, model: UltraGCN
) -> dict[str, Tensor]:
    """L_O + kappa L_C + nu L_I + L2 of one member, this worker's share. Only `loss` is sure to have a gradient."""
    item_Rd = model.item_rows(id_Rd, content_Rw)
    one = _own_negatives if batch.negative.ndim > 1 else _shared_negatives
    out, loss = one(data, batch, rows, user_Rd, item_Rd)
    if model.project is not None:
        penalty = data.config.backbone.projection_l2 * model.project.weight.square().sum() * batch.part
        out["l2"], loss = out["l2"] + penalty, loss + penalty
    return {**out, "loss": loss}


Terms = tuple[dict[str, Tensor], Tensor]  # by name, and their sum


def _shared_negatives(data: Data, batch: Batch, rows: Rows, user_Rd: Tensor, item_Rd: Tensor) -> Terms:
    """Terms of whole item rows, whose sum alone has a gradient."""
    config, weights = data.config.backbone, data.weights
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


def _own_negatives(data: Data, batch: Batch, rows: Rows, user_Rd: Tensor, item_Rd: Tensor) -> Terms:
    """The same where every positive has negatives of its own."""
    config = data.config.backbone
    user_bd = user_Rd[rows.user_at]
    positive, negative = interaction_loss(
        user_bd, item_Rd, rows.item_at, rows.negative_at, data.weights, batch.user_b, batch.item_b,
        batch.negative, batch.size, config.negative_weight,
    )  # fmt: skip
    out = {"positive": positive, "negative": negative}
    if rows.neighbour_at is not None and rows.omega is not None:
        score_bs = (user_bd[:, None] * item_Rd[rows.neighbour_at]).sum(2)
        out["neighbours"] = config.nu * losses.neighbours(score_bs, rows.omega) / batch.size
    square = user_bd.square().sum(0) / batch.size + item_Rd[rows.item_at].square().sum(0) / batch.size
    if len(batch.user_b):  # the mean over negatives is the batch's, of which each worker takes its part
        times_R = torch.bincount(rows.negative_at.flatten(), minlength=len(item_Rd)).to(item_Rd.dtype)
        square = square + (times_R @ item_Rd.square()) * (batch.part / rows.negative_at.numel())
    out["l2"] = config.l2 * square[: config.dim].sum() + config.content_l2 * square[config.dim :].sum()
    return out, torch.stack(list(out.values())).sum()
