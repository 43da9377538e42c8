"""A finished run, opened for use: evaluate, recommend and export.

Shapes: M members, n users with histories, I items.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from m3dist import pipeline
from m3dist.config import ResolvedBackbone
from m3dist.data.dataset import SPLITS
from m3dist.data.importers.newitems import NewItems, read_new_items
from m3dist.distributed import devices
from m3dist.distributed.engine import Engine
from m3dist.evaluation.evaluator import Evaluator
from m3dist.evaluation.ranking import Mask, Seen, Users, block_size
from m3dist.method import second
from m3dist.method.foldin import Both, FoldIn
from m3dist.method.fused import Fused
from m3dist.method.merge import new_rows
from m3dist.plan import stage_keys
from m3dist.run_folder import Finished
from m3dist.serving import export
from m3dist.serving.catalogue import Catalogue, typed
from m3dist.serving.lists import Group, Lists
from m3dist.serving.notebook import show
from m3dist.serving.plots import Plots
from m3dist.serving.rules import Rules
from m3dist.serving.similar import similar
from m3dist.serving.vectors import Vectors
from m3dist.storage.folders import Folder


class Run:
    """`root` is a folder or its URI; device: where it ranks, by default on a GPU where there is one.

    Raises ValueError when it is no finished run, its data set changed since, or its tensors do not fit these.
    """

    def __init__(self, root: str | Path, device: str | torch.device = "auto"):
        self.finished = found = Finished.of(root)
        self.root, self.config, self.result, self.dataset = found.root, found.config, found.result, found.dataset
        self.tensors = found.load(pipeline.final_stage(self.config))[0]
        self._try_out()
        self.context = found.context(Engine(device=devices.found(device)))

    def _try_out(self) -> None:
        """Rank the first and the last user on the CPU, where a place outside of a table is an error that is told."""
        n_users, n_items = self.dataset.n_users, self.dataset.n_items
        users = Users.of(np.array([0, n_users - 1]), "cpu")
        with self._fitting():
            score = pipeline.scorer(self.config, self.tensors)(users.there_u, Mask([], users, n_items))[0]
            if score.shape != (2, n_items):
                raise IndexError(f"{score.shape[1]} items rank, of {n_items}")

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Raises ValueError in place of the errors by which tensors of other shapes, or other tensors, show."""
        try:
            yield
        except (LookupError, RuntimeError, TypeError, AttributeError) as error:
            stage = pipeline.final_stage(self.config)
            path, why = self.finished.store.path(stage, self.finished.key[stage]), str(error).partition("\n")[0]
            raise ValueError(
                f"{path}/tensors.safetensors: does not fit this run's config and data ({why}); train it again with "
                f"out={self.root}"
            ) from None

    @property
    def evaluator(self) -> Evaluator:
        return self.context.evaluator

    def verify(self) -> None:
        """Read every file of the run and of its data set. Raises ValueError, which names the first damaged one."""
        self.dataset.verify()
        store = self.finished.store
        for stage, key in stage_keys(self.root, self.result).items():
            if store.has(stage, key):
                store.load(stage, key)
                store.interactions(stage, key)

    @functools.cached_property
    def score(self) -> Any:
        """The run's `evaluation.ranking.Scorer`."""
        return pipeline.scorer(self.config, self.tensors, self.context.engine.device)

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """The items that it ranks; `catalogue.ids` are their ids in the order of scores."""
        return Catalogue.of(self.context.data)

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Metrics on `val` or `test`."""
        score = pipeline.scorer(self.config, self.tensors, self.context.engine.device)
        return self.evaluator.evaluate(score, split)[0]

    def add_items(self, items: str | Path | NewItems) -> Run:
        """The same run with items that it was not trained on, which rank beside the others, or alone under
        `Rules(only_new=True)` or `Rules(candidates=...)`.

        items: a folder with an items table and features by modality in its order, or features with ids, as `m3dist
        prepare tables` reads them; or `NewItems`. The run's own standardisation, encoders, masks and projections make
        their rows; an item may lack modalities. Metrics of `evaluate` are those without them. Raises ValueError on
        items that are not new, on modalities that the run does not have, and where the model reads no content.
        """
        given = items if isinstance(items, NewItems) else read_new_items(Path(items))
        widths, data = self.dataset.modalities, self.context.data
        if not isinstance(self.score, Fused) or not widths:
            raise ValueError(
                f"new items: model={self.config.model} on {self.dataset.name} knows items by their ids alone"
            )
        for name, values in given.features.items():
            if values.shape[1:] != (widths.get(name),):
                have = ", ".join(f"{known} of {width}" for known, width in widths.items())
                raise ValueError(f"new items: {name} of {values.shape[-1]} columns; the run has {have}")
        x: list[torch.Tensor] = []
        for name, width in widths.items():
            values = given.features.get(name, np.zeros((len(given.ids), width), np.float32))
            here = given.present.get(name, np.full(len(given.ids), name in given.features))
            x.append(data.prepared(name, torch.from_numpy(values), torch.from_numpy(here)))
        more = copy.copy(self)
        more.__dict__.pop("fold_in", None)
        more.catalogue = self.catalogue.extended(given.ids, x)
        with self._fitting():
            members = self.score.members.with_items(new_rows(self.context, self.tensors, x))
        more.score = Fused(members, self.score.fusion)
        return more

    def recommend(
        self,
        user_ids: Sequence | None = None,
        k: int = 20,
        histories: Mapping[Any, Iterable[Any]] | None = None,
        rules: Rules | None = None,
        reasons: bool = False,
    ) -> pa.Table:
        """The k best unseen items of each user (original ids): user, rank, item, score and weight_<modality>.

        A model without fusion has one weight, weight_model, of 1. Items of all splits count as seen.

        histories: items of new users by an id of any kind. Such a user's row is found from the history alone, with
        items as they are trained; an empty history gets what suits users on average. A user who is named in `user_ids`
        too is one of the data set, and the history is added to what the data set has. Without `user_ids` these users
        alone are ranked. Users with histories come last.

        rules: what lists may hold, see `Rules`. reasons: also say of every item which modality weighed most (`reason`)
        and which items of the user's history are nearest to it (because_1, because_2, because_3, null where there are
        fewer).

        Raises ValueError on an unknown user or item, and where the model cannot do what is asked.
        """
        rules = rules or Rules()
        lists = Lists(self.catalogue, k, self._block, list(self.dataset.modalities), rules, reasons)
        if histories is None:
            return lists.table(self._trained(self._users(user_ids)))
        named = self._users(user_ids or [])
        new, known = self._folded(histories, named, rules.skip_unknown)
        groups = [self._trained(named[~np.isin(named, known)]), new]
        tables = [lists.table(group) for group in groups if len(group.users)]
        if not tables:
            raise ValueError("histories: none are given, and no users; give one or the other")
        kind = tables[-1]["user"].type
        return pa.concat_tables([x.set_column(0, "user", x["user"].cast(kind)) for x in tables])

    def export(self, dst: str | Path, kind: str = "vectors") -> dict[str, str]:
        """Write the run for other programs into a folder or URI; the files' SHA-256 by name.

        vectors: users.parquet and items.parquet, `id` and `vector`, whose inner products are the scores. faiss: an
        exact index of the items' vectors, too. onnx: a model that gives users' best items, too. onnx-histories: one
        that gives the best items for histories, of users who were trained or not. A model card
        (card.json, README.md) travels with each. Raises ValueError where the model's scores are no inner products, or a
        package is missing.
        """
        return export.write(self, self._vectors, Folder(dst), kind)

    def embeddings(self) -> tuple[pa.Table, pa.Table]:
        """Users' and items' rows as tables: `id` (original) and a column vector_<modality> of float32 lists.

        A score is the sum over modalities of their weights (see `recommend`) times the inner products of the rows; a
        model without fusion has vector_model alone. Raises ValueError where scores are no inner products.
        """
        fused = isinstance(self.score, Fused) and self.score.fusion is not None
        return self._vectors.rows(list(self.dataset.modalities) if fused else ["model"], self.catalogue.ids)

    def similar_items(self, item_ids: Sequence, k: int = 20, by: str = "fused") -> pa.Table:
        """The k items most like each of those given: item, rank, similar and cosine, of the rows that it ranks by.

        by: "fused", the members' cosines by their mean weights over validation users, or one modality alone; a model
        without fusion has only the first. New items of `add_items` can be asked for, and be found. Raises ValueError
        on unknown items or modalities, and where scores are no inner products.
        """
        vectors, modalities = self._vectors, list(self.dataset.modalities)
        fused = isinstance(self.score, Fused) and self.score.fusion is not None
        if by != "fused" and not (fused and by in modalities):
            have = ", ".join(["fused", *(modalities if fused else [])])
            raise ValueError(f"by={by}: expected one of {have}")
        weight_M = torch.ones(len(vectors.items))
        if fused:
            final = self.result["stages"][pipeline.final_stage(self.config)]["fusion_weight"]
            weight_M = torch.tensor([float(m == by) for m in modalities] if by != "fused" else final)
        at = self.catalogue.places(item_ids, "similar_items")
        return similar(self.catalogue, vectors.items, weight_M, (at, k))

    def metrics(self) -> pa.Table:
        """What validation and test said in the end: metric, validation and test; null where one was not measured."""
        found = [self.result.get(split, {}) for split in ("validation", "test")]
        names = sorted({*found[0], *found[1]})
        columns = {
            split: [x.get(name) for name in names] for split, x in zip(("validation", "test"), found, strict=True)
        }
        return pa.table({"metric": names, **columns})

    @property
    def plot(self) -> Plots:
        """Plots of the run: `masks()`, `environments()`, `fusion()` and `curves()`, each as matplotlib's axes."""
        return Plots(self)

    def _repr_html_(self) -> str:
        return show(self.metrics(), 100)._repr_html_()

    @property
    def _vectors(self) -> Vectors:
        """Those of all trained users."""
        return Vectors(self._trained(self._users(None)), self.config.model, self.tensors, self._block)

    @property
    def _block(self) -> int:
        """Users that rank at once."""
        return block_size(self.config.evaluation.block, len(self.catalogue), self.context.engine.device)

    def _trained(self, users: np.ndarray) -> Group:
        """Users of the data set by their dense ids."""
        return Group(self.dataset.user_ids, users, self.evaluator.seen(None), self.score)

    def _folded(
        self, histories: Mapping[Any, Iterable[Any]], named: np.ndarray, skip_unknown: bool
    ) -> tuple[Group, np.ndarray]:
        """Users with histories, and the dense ids of those among them who are named, whose interactions are added."""
        if not isinstance(self.score, Fused):
            raise ValueError(f"histories: model={self.config.model} ranks no new users; m3-invrl, invrl, ultragcn do")
        given = [list(items) for items in histories.values()]
        at = self.catalogue.places([x for items in given for x in items], "histories", skip_unknown)
        user = np.repeat(np.arange(len(given)), [len(items) for items in given])
        pairs = [np.stack([user, at])[:, at >= 0]]
        known_n = self._known(list(histories), named)
        place_U = np.full(self.dataset.n_users, -1)
        place_U[known_n[known_n >= 0]] = np.flatnonzero(known_n >= 0)
        for split in SPLITS if (known_n >= 0).any() else ():
            who, what = self.dataset.interactions(split)
            pairs.append(np.stack([place_U[who], what])[:, place_U[who] >= 0])
        row, item = np.concatenate(pairs, axis=1).astype(np.int64)
        seen = Seen.distinct((row, item), (len(given), len(self.catalogue)), self.context.engine.device)
        with self._fitting():
            members = self.score.members.of(list(self.fold_in.rows(seen)))
        group = Group(self._ids(list(histories)), np.arange(len(given)), [seen], Fused(members, self.score.fusion))
        return group, known_n[known_n >= 0]

    @functools.cached_property
    def fold_in(self) -> FoldIn | Both:
        """How new users' rows are found."""
        context, members = self.context, self.score.members
        means = torch.stack([user_Uk.mean(0) for user_Uk in members.user])
        backbone, other = context.config.backbone.resolved, second.backbone(context)
        if other is None or second.SCALE not in self.tensors:
            return self._fold_in(backbone, members.item, means)
        trained = context.read(second.STAGE)
        K = trained["0.matrix"].shape[1]
        items = [second.split(item_Ik, K) for item_Ik in members.item]
        others = torch.stack([trained[f"{m}.user"].mean(0) for m in range(members.count)]).to(means.device)
        return Both(
            self._fold_in(backbone, [item for item, _ in items], second.split(means, K)[0]),
            self._fold_in(other, [item for _, item in items], others),
            self.tensors[second.SCALE].unsqueeze(1).to(means.device),
        )

    def _fold_in(self, backbone: ResolvedBackbone, items: list[torch.Tensor], means: torch.Tensor) -> FoldIn:
        """Of members under one loss, by their rows of items and the means of those of users."""
        data = self.context.data
        content = any(name.endswith("model.project.weight") for name in self.tensors)
        pool = data.seen_items if content and backbone.pool == "seen" else None
        return FoldIn(backbone, data.weights(backbone), items, means, pool)

    def _ids(self, given: list[Any]) -> pa.Array:
        """Ids of users with histories: of the data set's type where all are, else text."""
        ids = typed(given, self.dataset.user_ids.type)
        return pa.array([str(user) for user in given], pa.string()) if ids.null_count else ids

    def _known(self, given: list[Any], named: np.ndarray) -> np.ndarray:
        """Dense ids of those who are among the named, -1 for others."""
        ids = typed(given, self.dataset.user_ids.type)
        at = pc.index_in(ids, value_set=self.dataset.user_ids).fill_null(-1).to_numpy().astype(np.int64)
        return np.where(np.isin(at, named), at, -1)

    def _users(self, user_ids: Sequence | None) -> np.ndarray:
        """Dense ids of those given, or of all."""
        if user_ids is None:
            return np.arange(self.dataset.n_users)
        everyone = self.dataset.user_ids
        at = pc.index_in(typed(user_ids, everyone.type), value_set=everyone)
        if at.null_count:
            unknown = user_ids[pc.index(at.is_null(), True).as_py()]
            raise ValueError(f"user {unknown!r} is not in {self.dataset.root}, whose users are such as {everyone[0]}")
        return at.to_numpy().astype("int64")
