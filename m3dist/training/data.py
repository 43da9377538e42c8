"""A data set on the device of one worker: what every stage reads of it, made once and shared by all stages.

Shapes: n training interactions, n_w of this worker, U users, I items, d_m width of modality m.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.config import ResolvedBackbone
from m3dist.data.arrays import shared
from m3dist.data.dataset import Dataset
from m3dist.data.draws import Draws, Gather, Layout, Pairs, Plan
from m3dist.data.graphs import item_neighbours
from m3dist.data.parts import share
from m3dist.data.shards import Part
from m3dist.distributed.engine import Engine
from m3dist.models.ultragcn import Weights


class DeviceData:
    """Training interactions, features and the backbone's constants.

    sharded: each worker holds a contiguous part of the items' rows, and not all of them. graph: what the stage `graph`
    left; without it the item-item graph is made here when a loss first asks.
    """

    def __init__(
        self,
        dataset: Dataset,
        engine: Engine,
        sharded: bool = False,
        graph: Callable[[], dict[str, Tensor]] | None = None,
    ):
        self.dataset, self.engine = dataset, engine
        self.device = engine.device
        self.n_users, self.n_items = dataset.n_users, dataset.n_items
        self.sharded = sharded and engine.world > 1
        self._graph = graph
        self._weights: dict[ResolvedBackbone, Weights] = {}

    @functools.cached_property
    def part(self) -> Part:
        """The shards of users that this worker owns."""
        return self.dataset.part(self.engine.rank, self.engine.world)

    @functools.cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Users and items of this worker's training interactions, int32 [n_w] each."""
        user, item = map(shared, self.dataset.of_users("train", self.part.users))
        return user.to(self.device), item.to(self.device)

    def all_pairs(self) -> tuple[Tensor, Tensor]:
        """Those of all workers, [n] each, for recommenders that propagate along them."""
        if self.engine.world == 1:
            return self.pairs
        user, item = map(shared, self.dataset.interactions("train"))
        return user.to(self.device), item.to(self.device)

    @functools.cached_property
    def features(self) -> list[Tensor]:
        """Every modality [I, d_m]: standardised per column over the items that have it, then rows of length 1.

        An item that lacks the modality has a row of zeros, and a column that is constant is one of zeros.
        """
        return [self.prepared(name, *self._given(name)) for name in self.dataset.modalities]

    def prepared(self, name: str, x_nd: Tensor, present_n: Tensor) -> Tensor:
        """Features of any items as `features` has those of the data set, whose columns give mean and spread.

        present_n: bool, which items have the modality.
        """
        x_Id, present_I = self._given(name)
        return (F.normalize(standardised(x_nd, x_Id[present_I]), dim=1) * present_n[:, None]).to(self.device)

    def _given(self, name: str) -> tuple[Tensor, Tensor]:
        """A modality as it was given, float32 [I, d], and which items have it, on the host."""
        x_Id = torch.from_numpy(np.array(self.dataset.features(name), dtype=np.float32))
        return x_Id, torch.from_numpy(self.dataset.present(name))

    @property
    def all_features(self) -> Tensor | None:
        """All modalities side by side, [I, sum of d_m]; None for a data set without features."""
        return torch.cat(self.features, dim=1) if self.features else None

    def weights(self, backbone: ResolvedBackbone) -> Weights:
        """UltraGCN's constants, with the item-item graph where the loss reads it."""
        if backbone not in self._weights:
            neighbours = self._neighbours(backbone.neighbours) if backbone.nu else None
            degrees = [torch.from_numpy(x) for x in self.dataset.degrees]
            w = (backbone.w1, backbone.w2, backbone.w3, backbone.w4)
            made = Weights((degrees[0], degrees[1]), w, backbone.kappa, neighbours)
            self._weights[backbone] = made.to(self.device)
        return self._weights[backbone]

    def _neighbours(self, k: int) -> tuple[Tensor, Tensor]:
        """Of every item, and of none, [I + 1, k], as `graphs.item_neighbours` has them."""
        if self._graph is not None:
            found = self._graph()
            return found["neighbour"], found["omega"]
        near, omega = item_neighbours(self.dataset.interactions("train"), (self.n_users, self.n_items), k)
        return torch.from_numpy(near), torch.from_numpy(omega)

    @functools.cached_property
    def seen_items(self) -> Tensor | None:
        """Ids of the items with training interactions; None where these are all."""
        seen = np.flatnonzero(self.dataset.degrees[1])
        return None if len(seen) == self.n_items else torch.from_numpy(seen).to(self.device)

    def with_interactions(self, kind: int, bounds: tuple[int, int] | None = None) -> Tensor:
        """1 for every user (kind 0) or item (kind 1) within bounds that has training interactions, else 0; float32."""
        low, high = bounds or (0, (self.n_users, self.n_items)[kind])
        return torch.from_numpy((self.dataset.degrees[kind][low:high] > 0).astype(np.float32)).to(self.device)

    def draws(self, key: int, batch_size: int, plan: Plan, groups: int = 1, pool: Tensor | None = None) -> Draws:
        """Global steps over the training interactions. key: of the purpose. pool: where negatives are drawn from."""
        pairs = Pairs(*self.pairs, self.n_users, self.n_items, pool, self.part)
        layout = Layout.of(pairs.total, batch_size, groups, self.part.pairs, self.dataset.shards[1].tolist())
        return Draws(pairs, plan, layout, key, self._gather(layout))

    def _gather(self, layout: Layout) -> Gather | None:
        """How the rows of a step's positions come to all workers."""
        if self.engine.world == 1:
            return None
        counts = self.engine.collect(layout.position_Pb.numel())
        return lambda x_cd: self.engine.gather(x_cd, counts)

    def owners(self, kind: int) -> list[int] | None:
        """The first user (kind 0) or item (kind 1) whose row each worker holds, and behind them how many there are;
        None where every worker holds all rows.

        Users' rows lie where their interactions are: no other worker reads them.
        """
        world = self.engine.world
        if world == 1 or (kind == 1 and not self.sharded):
            return None
        if kind == 0:
            return [*(self.dataset.part(rank, world).users[0] for rank in range(world)), self.n_users]
        return [*(share(self.n_items, rank, world)[0] for rank in range(world)), self.n_items]

    def bounds(self, kind: int) -> tuple[int, int] | None:
        """The rows of users (kind 0) or items (kind 1) that this worker holds; None where these are all."""
        owners, rank = self.owners(kind), self.engine.rank
        return None if owners is None else (owners[rank], owners[rank + 1])

    def mine(self, user_n: Tensor) -> Tensor:
        """bool [n]: the users whose interactions this worker holds."""
        low, high = self.part.users
        return (user_n >= low) & (user_n < high)

    def joined(self, x_nd: Tensor) -> Tensor:
        """What every worker found for its own users, in ascending order of users: all of it, on every worker."""
        if self.engine.world == 1:
            return x_nd
        return self.engine.gather(x_nd, self.engine.collect(len(x_nd)))


def standardised(x_Id: Tensor, have_nd: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1 over the n rows of `have_nd`; sums in float64.

    A column whose spread is no more than float32's rounding of its mean is constant and becomes 0: scaled up, the
    rounding errors would outweigh every other column.
    """
    mean_d = have_nd.mean(0, dtype=torch.float64)
    shift_d = mean_d.float()
    spread_d = torch.linalg.vector_norm(have_nd - shift_d, dim=0, dtype=torch.float64) / max(1, len(have_nd)) ** 0.5
    constant_d = spread_d <= 1e-6 * mean_d.abs()
    return ((x_Id - shift_d) / spread_d.clamp(min=1e-6).float()).masked_fill(constant_d, 0.0)
