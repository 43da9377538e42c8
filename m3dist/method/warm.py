"""A run that starts from an earlier one, on data that have grown since.

Users and items are matched by their ids. The loss, encoders, masks and the choice between them are taken over as they
are. Stage 3 takes over projections and rows and trains on for a share of its epochs (`warm.share`): a user who is new
starts where a history alone puts a user (`method.foldin`), an item that is new where its content alone puts it, and
whatever has neither history nor content as in any run.

Adam's moments start anew: taken over, they changed NDCG@10 by 0.0006 to 0.0011 of 0.25 on the periods of MovieLens
latest, and a run's folder would be three times as large with them.

Shapes: M members; U users, I items, n of either; k width of rows, d of ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from m3dist.config import Config, ResolvedBackbone
from m3dist.data.dataset import Dataset
from m3dist.distributed.rows import RowTables
from m3dist.evaluation.ranking import Seen
from m3dist.method.align import encoded
from m3dist.method.foldin import FoldIn
from m3dist.storage.artifacts import Output
from m3dist.training.context import Context

if TYPE_CHECKING:
    from m3dist.method.merge import MergeTask

_SAME = ("dim", "content_dim")  # of the backbone: widths of rows
_ENCODERS = ("dim", "encoder", "shared")  # of stage 1: what masks and projections were learned on


def refuse(config: Config, dataset: Dataset, before: Context) -> None:
    """Raises ValueError, in one line, where a run cannot start from `before`: its model, features or widths differ."""
    source, was = f"warm_from={(config.warm_from or '').rpartition('@')[0]}", before.config
    if was.model != config.model:
        raise ValueError(f"{source}: is a run of model={was.model}; give model={was.model}, or leave warm_from out")
    if before.dataset.modalities != dataset.modalities:
        there, here = (_told(x.modalities) for x in (before.dataset, dataset))
        raise ValueError(f"{source}: reads {there}; data={config.data} has {here}; prepare the same features")
    backbone = was.backbone.resolved
    values = [(f"backbone.{key}", getattr(backbone, key), getattr(config.backbone, key)) for key in _SAME]
    values += [
        (f"backbone.{key}", getattr(backbone, key), given)
        for key in ("loss", "content")
        if (given := getattr(config.backbone, key)) not in (None, "auto")
    ]
    if config.model == "m3-invrl":
        values += [(f"align.{key}", getattr(was.align, key), getattr(config.align, key)) for key in _ENCODERS]
    for key, there, here in values:
        if there != here:
            raise ValueError(f"{source}: has {key}={there} and this run {here}; give {key}={there}, or train it anew")


def _told(modalities: dict[str, int]) -> str:
    return ", ".join(f"{name} of {width}" for name, width in modalities.items()) or "no features"


def _before(context: Context) -> Context:
    assert context.before is not None
    return context.before


def loss(context: Context) -> Output:
    """In place of a race: the loss of the run before, with what this config leaves open."""
    was = _before(context).config.backbone.resolved
    given = {key: x for key, x in context.config.backbone.model_dump().items() if x is not None and key != "loss"}
    chosen = ResolvedBackbone.model_validate({**was.model_dump(), **given})
    context.tracker.say(f"race: {chosen.loss}, as in the run before")
    second = _before(context).meta("race").get("second") if "second" in _before(context).inputs else None
    return Output({}, {"backbone": chosen.model_dump(mode="json"), "second": second, "tried": {}})


def representations(context: Context) -> Output:
    """In place of stage 1: its encoders, and this data set's representations by them."""
    trained = {name: x for name, x in _before(context).read("align").items() if name.startswith("aligner.")}
    found = encoded(context.config.align, trained, context.data.features)
    return Output(trained | {f"representation.{r}": x for r, x in enumerate(found)}, {})


def masks(context: Context) -> Output:
    """In place of stage 2: its masks. Environments are those of the earlier run's interactions, and stay there."""
    trained = _before(context).read("invariance")
    return Output({name: x for name, x in trained.items() if name.startswith("mask.")}, {"rounds": []})


def selection(context: Context) -> Output:
    """In place of the choice between masks: the one of the run before."""
    return Output({}, {"masks": _before(context).masks, "tried": {}})


def shortened(config: Config, interactions: int) -> Config:
    """The same with stage 3 as long, and its learning rate as high, as training on needs."""
    merge, warm = config.merge, config.warm
    epochs = max(1, round(merge.length(interactions) * warm.share)) if merge.epochs else 0
    return config.model_copy(
        update={"merge": merge.model_copy(update={"epochs": epochs, "lr": merge.lr * warm.lr})},
    )


@torch.no_grad()
def carry(context: Context, task: MergeTask) -> None:
    """Give stage 3 the projections and rows of the run before; every worker calls it alike."""
    before, data, tables = _before(context), context.data, task.tables
    second = context.stage is not None and context.stage.name == "second"
    trained = before.read("second" if second else before.stage.name)  # type: ignore[union-attr]
    state = {f"backbones.{name.replace('model.', '', 1)}": x for name, x in trained.items() if ".model." in name}
    task.dense.load({name: x.to(data.device) for name, x in state.items()})
    place_U, place_I = (_places(context.dataset, before.dataset, kind) for kind in (0, 1))
    members = range(len(task.contents.parts))
    k = tables["user"].weight.shape[2]  # what stands beside is of the second loss
    user_MUk, item_MId = (torch.stack([trained[f"{m}.{kind}"][:, :k] for m in members]) for kind in ("user", "item"))
    if any(task.contents.widths):
        tables["item"].weight.zero_()  # an item that is new starts by its content alone
    _put(tables["item"], item_MId, place_I)
    _put(tables["user"], user_MUk, place_U)
    known_U, known_I = (int((place >= 0).sum()) for place in (place_U, place_I))
    new_U = (place_U < 0) & (context.dataset.degrees[0] > 0)
    if new_U.any():
        mean_Mk = user_MUk[:, torch.from_numpy(before.dataset.degrees[0] > 0)].mean(1)
        place_U = np.where(new_U, np.cumsum(new_U) - 1, -1)
        _put(tables["user"], _folded(context, task, mean_Mk, place_U), place_U)
    stage = "second" if second else "merge"
    context.tracker.say(
        f"{stage}: {known_U:,} users and {known_I:,} items as they were, {new_U.sum():,} users by their histories, "
        f"{len(place_I) - known_I:,} items by their content"
    )


def _folded(context: Context, task: MergeTask, mean_Mk: Tensor, place_U: np.ndarray) -> Tensor:
    """Rows of all new users, [M, n, k], of whom each worker finds its own.

    mean_Mk: of the others' rows. place_U: everybody's place among the new ones, in ascending order of users; or -1.
    """
    data, backbone = context.data, context.config.backbone.resolved
    items = [*task.matrices().values()]
    fold_in = FoldIn(backbone, data.weights(backbone), items, mean_Mk.to(data.device), task.members.pool)
    user, item = context.dataset.of_users("train", data.part.users)
    here, mine = place_U[user] >= 0, place_U[slice(*data.part.users)]
    mine = mine[mine >= 0]
    histories = Seen.of((place_U[user[here]], item[here]), len(mine), data.device, int(mine[0]) if len(mine) else 0)
    rows_Mnk = fold_in.rows(histories)
    return data.joined(rows_Mnk.transpose(0, 1).flatten(1)).unflatten(1, rows_Mnk.shape[::2]).transpose(0, 1)


def _places(here: Dataset, before: Dataset, kind: int) -> np.ndarray:
    """Where the users (kind 0) or items (kind 1) of a data set stand in an earlier one, -1 for those that have not been
    trained there: int64 [U] or [I]. Ids of unlike types are compared as text."""
    ids, known = (x.user_ids if kind == 0 else x.item_ids for x in (here, before))
    if ids.type != known.type:
        ids, known = ids.cast(pa.string()), known.cast(pa.string())
    at = pc.index_in(ids, value_set=known).fill_null(-1).to_numpy().astype(np.int64)
    return np.where((at >= 0) & (before.degrees[kind][at] > 0), at, -1)


def _put(table: RowTables, from_Mnd: Tensor, place_n: np.ndarray) -> None:
    """Rows of a table, of those that this worker holds, which have a place among others."""
    part = place_n[table.low : table.low + table.weight.shape[1]]
    here, there = (torch.from_numpy(x) for x in (np.flatnonzero(part >= 0), part[part >= 0]))
    weight, device = table.weight, table.weight.device
    weight[:, here.to(device)] = from_Mnd[:, there.to(from_Mnd.device)].to(device)
