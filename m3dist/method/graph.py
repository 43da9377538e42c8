"""The item-item graph, made once for a run before anything is trained; whoever trains maps it into memory.

Its rows are found in parts, by Ray actors where the run is on Ray and there are several, and else one after the other
in this process, with the same bits.

Shapes: I items, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from m3dist.config import Config
from m3dist.data import graphs
from m3dist.data.graphs import ItemGraph, Neighbours, Pairs
from m3dist.storage.artifacts import Output
from m3dist.training.context import Context

Parts = list[tuple[int, int]]  # ranges of items


def run(context: Context) -> Output:
    """Tensors neighbour int32 and omega float32, [I + 1, k]; in the meta, how many interactions were left out.

    Raises KeyboardInterrupt when the tracker is interrupted.
    """
    config, dataset, tracker = context.config, context.dataset, context.tracker
    tracker.begin("graph", context.checkpoints.key if context.checkpoints else "")
    given, most = dataset.interactions("train"), config.graph.per_user
    pairs, shape = graphs.capped(given, most), (dataset.n_users, dataset.n_items)
    left_out = len(given[0]) - len(pairs[0])
    if left_out:
        tracker.say(f"graph: {left_out:,} interactions of users with more than graph.per_user={most} do not count")
    parts = graphs.parts(pairs, shape)
    shared = len(parts) > 1 and (config.workers or config.actors)  # one part is found sooner than an actor starts
    found = (_on_actors if shared else _here)(context, pairs, shape, parts)
    neighbour, omega = graphs.joined(found, dataset.n_items)
    return Output({"neighbour": torch.from_numpy(neighbour), "omega": torch.from_numpy(omega)}, {"left_out": left_out})


def _here(context: Context, pairs: Pairs, shape: tuple[int, int], parts: Parts) -> Iterator[Neighbours]:
    graph = ItemGraph(pairs, shape, context.config.backbone.neighbours)
    for done, part in enumerate(parts):
        if context.tracker.interrupted():
            raise KeyboardInterrupt
        yield graph.rows(*part)
        context.tracker.progress("graph", len(parts), done + 1)


def _on_actors(context: Context, pairs: Pairs, shape: tuple[int, int], parts: Parts) -> list[Neighbours]:
    from m3dist.distributed.actors import Pool

    config = context.config
    tensors = {name: torch.from_numpy(x.copy()) for name, x in zip(("user", "item"), pairs, strict=True)}
    with Pool(_held, tensors, _settings(config), shape, config.backbone.neighbours) as pool:
        found = pool.map(ItemGraph.rows, parts, context.tracker.interrupted)
    return [(neighbour.numpy(), omega.numpy()) for neighbour, omega in found]


def _held(tensors: dict[str, Tensor], device: str, shape: tuple[int, int], k: int) -> ItemGraph:
    """What an actor holds."""
    return ItemGraph((tensors["user"].numpy(), tensors["item"].numpy()), shape, k)


def _settings(config: Config) -> Any:
    """As many actors as the run has workers, in whose place they are, or as stage 2 has.

    Raises ValueError where the cluster cannot hold the workers.
    """
    from m3dist.distributed import placement
    from m3dist.distributed.actors import ActorSettings

    count, each, key = config.actors, dict(config.actor_resources), "actors"
    if config.workers:
        placement.connect()
        placement.check(config)
        count, key = placement.least_workers(config), "workers"
        each = {name: n for name, n in placement.per_worker(config).items() if name != "GPU"}
    return ActorSettings(count, each, config.max_failures, config.autoscaling, "graph", key)
