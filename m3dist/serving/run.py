"""A finished run, opened for use: evaluate and recommend.

Shapes: u users of a block, k list length, M recommenders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch

from m3dist import config as configs
from m3dist.evaluation import ranking
from m3dist.method.backbone import Data
from m3dist.method.merge import Fused
from m3dist.pipeline import artifact_store, final_stage, keys, open_data, scorer
from m3dist.storage.folders import Folder


class Run:
    """`root` is a folder or its URI. Raises ValueError when it is no finished run, or its data set changed since."""

    def __init__(self, root: str | Path):
        folder = Folder(root)
        try:
            finished = folder.exists("result.json")
        except OSError as error:
            raise ValueError(f"{root}: cannot be read ({error})") from None
        if not finished:
            raise ValueError(f"{root}: not a finished run (no result.json); train it first with out={root}")
        with folder.local("config.yaml") as path:
            self.config = configs.load(path).model_copy(update={"out": folder.uri})
        self.dataset = open_data(self.config)
        stage = final_stage(self.config)
        key = keys(self.config, self.dataset)[stage]
        store = artifact_store(self.config)
        if not store.has(stage, key):
            raise ValueError(f"{root}: no {stage} stage for this config and data; train it again with out={root}")
        self.score = scorer(self.config, store.load(stage, key)[0])

    def evaluate(self, split: str) -> dict[str, float]:
        """Metrics on `val` or `test`."""
        return Data(self.dataset, self.config).evaluate(self.score, split)[0]

    def recommend(self, user_ids: Sequence | None = None, k: int = 20) -> pa.Table:
        """The k best unseen items of each user (original ids): user, rank, item, score and weight_<modality>.

        A model without fusion has one weight, weight_model, of 1.
        Items of all splits count as seen. Raises ValueError on an unknown user.
        """
        everyone = self.dataset.user_ids
        if user_ids is None:
            user_n = torch.arange(self.dataset.n_users)
        else:
            at = pc.index_in(pa.array(user_ids).cast(everyone.type), value_set=everyone)
            if at.null_count:
                unknown = user_ids[pc.index(at.is_null(), True).as_py()]
                raise ValueError(f"user {unknown!r} is not in {self.dataset.root}")
            user_n = torch.from_numpy(at.to_numpy().astype("int64"))
        pairs = [self.dataset.interactions(split) for split in ("train", "val", "test")]
        seen = ranking.Seen.of(pairs, self.dataset.n_users)
        fused = self.score if isinstance(self.score, Fused) and self.score.models > 1 else None
        names = list(self.dataset.modalities) if fused else ["model"]
        parts = []
        with torch.no_grad():
            for user_u, item_uk, score_uk in ranking.rank(self.score, user_n, seen, k, self.config.evaluation.block):
                listed = (score_uk > float("-inf")).flatten()
                width = item_uk.shape[1]
                weight_uM = fused.weights(fused.scores(user_u)) if fused else torch.ones(len(user_u), 1)
                weight_uM = weight_uM.repeat_interleave(width, 0)[listed]
                columns = {
                    "user": everyone.take(pa.array(user_u.repeat_interleave(width)[listed].numpy())),
                    "rank": torch.arange(1, width + 1).repeat(len(user_u))[listed].numpy(),
                    "item": self.dataset.item_ids.take(pa.array(item_uk.flatten()[listed].numpy())),
                    "score": score_uk.flatten()[listed].numpy(),
                }
                weights = {f"weight_{name}": weight_uM[:, m].numpy() for m, name in enumerate(names)}
                parts.append(pa.table({**columns, **weights}))
        return pa.concat_tables(parts)
