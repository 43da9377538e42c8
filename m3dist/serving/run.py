"""A finished run, opened for use: evaluate and recommend.

Shapes: u users of a block, k list length, M recommenders.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from m3dist import config as configs
from m3dist import pipeline
from m3dist.distributed import devices
from m3dist.distributed.engine import Engine
from m3dist.evaluation.evaluator import Evaluator
from m3dist.evaluation.ranking import Block, Users
from m3dist.storage.folders import Folder


class Run:
    """`root` is a folder or its URI; device: where it ranks, by default on a GPU where there is one.

    Raises ValueError when it is no finished run, or its data set changed since.
    """

    def __init__(self, root: str | Path, device: str | torch.device = "auto"):
        folder = Folder(root)
        try:
            finished = folder.exists("result.json")
        except OSError as error:
            raise ValueError(f"{root}: cannot be read ({error})") from None
        if not finished:
            raise ValueError(f"{root}: not a finished run (no result.json); train it first with out={root}")
        with folder.local("config.yaml") as path:
            own = configs.load_own(path, f"{root}/config.yaml")
        self.config = own.model_copy(update={"out": folder.uri})
        self.result: dict[str, Any] = folder.read_json("result.json")
        self.dataset = pipeline.open_data(self.config)
        stage = pipeline.final_stage(self.config)
        key = pipeline.keys(self.config, self.dataset)[stage]
        store = pipeline.artifact_store(self.config)
        if not store.has(stage, key):
            raise ValueError(f"{root}: no {stage} stage for this config and data; train it again with out={root}")
        self.tensors = store.load(stage, key)[0]
        self.evaluator = Evaluator(self.dataset, self.config.evaluation, Engine(device=devices.found(device)))

    def verify(self) -> None:
        """Read every file of the run and of its data set. Raises ValueError, which names the first damaged one."""
        self.dataset.verify()
        store = pipeline.artifact_store(self.config)
        for stage, key in self.result["keys"].items():
            if store.has(stage, key):
                store.load(stage, key)

    @functools.cached_property
    def score(self) -> Any:
        """The run's `evaluation.ranking.Scorer`."""
        return pipeline.scorer(self.config, self.tensors, self.evaluator.engine.device)

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Metrics on `val` or `test`."""
        return self.evaluator.evaluate(self.score, split)[0]

    def recommend(self, user_ids: Sequence | None = None, k: int = 20) -> pa.Table:
        """The k best unseen items of each user (original ids): user, rank, item, score and weight_<modality>.

        A model without fusion has one weight, weight_model, of 1.
        Items of all splits count as seen. Raises ValueError on an unknown user.
        """
        users = Users.of(self._users(user_ids), self.evaluator.engine.device)
        with torch.no_grad():
            blocks = self.evaluator.ranking(self.score, k, None).blocks(users)
            return pa.concat_tables([self._table(block) for block in blocks])

    def _users(self, user_ids: Sequence | None) -> np.ndarray:
        """Dense ids of those given, or of all."""
        if user_ids is None:
            return np.arange(self.dataset.n_users)
        everyone = self.dataset.user_ids
        at = pc.index_in(pa.array(user_ids).cast(everyone.type), value_set=everyone)
        if at.null_count:
            unknown = user_ids[pc.index(at.is_null(), True).as_py()]
            raise ValueError(f"user {unknown!r} is not in {self.dataset.root}")
        return at.to_numpy().astype("int64")

    def _table(self, block: Block) -> pa.Table:
        """A block's lists, a row each recommendation."""
        item_uk, score_uk = block.item_uk.cpu(), block.score_uk.cpu()
        users, width = item_uk.shape
        listed = (score_uk > float("-inf")).flatten()
        weight_uM = torch.ones(users, 1) if block.weight_uM is None else block.weight_uM.cpu()
        names = ["model"] if block.weight_uM is None else list(self.dataset.modalities)
        columns = {
            "user": self.dataset.user_ids.take(pa.array(np.repeat(block.users.here, width)[listed.numpy()])),
            "rank": torch.arange(1, width + 1).repeat(users)[listed].numpy(),
            "item": self.dataset.item_ids.take(pa.array(item_uk.flatten()[listed].numpy())),
            "score": score_uk.flatten()[listed].numpy(),
        }
        weight_nM = weight_uM.repeat_interleave(width, 0)[listed]
        return pa.table({**columns, **{f"weight_{name}": weight_nM[:, m].numpy() for m, name in enumerate(names)}})
