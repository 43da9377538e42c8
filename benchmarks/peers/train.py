"""`PYTHON train.py PEER FOLDER THREADS`: train another library's recommender, one epoch after another.

Runs under any Python that has the peer, which need not have m3dist. FOLDER holds train.npy, int32 [n, 2] of users and
items, and features.npy, float32 [items, w]. After every epoch it writes scores.npy, float32 [users, items], says on
standard output how many seconds of training it has behind it, and waits for a line: `go`, or anything else to end.
The clock stands still meanwhile. Widths are 64 everywhere, 64 + 64 where a model takes content.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

WIDTH = 64


class Enough(Exception):
    """No further epochs are wanted."""


class Given:
    def __init__(self, folder: Path, threads: int):
        self.folder, self.threads = folder, threads
        self.user, self.item = np.load(folder / "train.npy").T
        self.features = np.load(folder / "features.npy")
        self.users, self.items = json.loads((folder / "counts.json").read_text())
        self._seconds, self._since = 0.0, 0.0

    def matrix(self) -> sp.csr_matrix:
        ones = np.ones(len(self.user), dtype=np.float32)
        return sp.csr_matrix((ones, (self.user, self.item)), shape=(self.users, self.items))

    def start(self) -> None:
        """The model is ready and its training begins."""
        self._since = time.perf_counter()

    def told(self, scores: Callable[[], np.ndarray]) -> None:
        """An epoch is over. Raises Enough when it was the last."""
        self._seconds += time.perf_counter() - self._since
        np.save(self.folder / "scores.npy", np.asarray(scores(), dtype=np.float32))
        print("epoch", self._seconds, flush=True)
        if sys.stdin.readline().strip() != "go":
            raise Enough
        self.start()


def _implicit_bpr(given: Given) -> Any:
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    class Told(BayesianPersonalizedRanking):
        """Says when an epoch is over."""

        def fit(self, user_items: Any, show_progress: bool = True, callback: Any = None) -> None:
            def over(*args: Any) -> None:
                given.told(lambda: self.user_factors @ self.item_factors.T)

            given.start()
            super().fit(user_items, show_progress=False, callback=over)

    return Told(
        factors=WIDTH, learning_rate=0.05, regularization=0.01, iterations=10_000, num_threads=given.threads,
        random_state=0,
    )  # fmt: skip


def implicit_bpr(given: Given) -> None:
    _implicit_bpr(given).fit(given.matrix())


def rectools_bpr(given: Given) -> None:
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import ImplicitBPRWrapperModel

    frame = pd.DataFrame({Columns.User: given.user, Columns.Item: given.item, Columns.Weight: 1.0})
    frame[Columns.Datetime] = pd.Timestamp("2020-01-01")
    dataset = Dataset.construct(frame)
    users, items = dataset.user_id_map.external_ids, dataset.item_id_map.external_ids
    model, inner = _implicit_bpr(given), given.told

    def told(scores: Callable[[], np.ndarray]) -> None:
        def ours() -> np.ndarray:
            out = np.zeros((given.users, given.items), dtype=np.float32)
            out[np.ix_(users, items)] = scores()
            return out

        inner(ours)

    given.told = told  # type: ignore[method-assign]
    ImplicitBPRWrapperModel(model).fit(dataset)


def cornac_bpr(given: Given) -> None:
    import cornac.models.bpr.recom_bpr as module

    model = module.BPR(k=WIDTH, max_iter=10_000, learning_rate=0.05, lambda_reg=0.01, num_threads=given.threads)
    dataset = _cornac(given)
    real = module.trange

    def trange(*args: Any, **kwargs: Any) -> Any:
        return _Told(real(*args, **kwargs), lambda: model.u_factors @ model.i_factors.T + model.i_biases, given)

    module.trange = trange
    model.fit(dataset)


class _Told:
    """A progress bar over epochs that says when one is over."""

    def __init__(self, bar: Any, scores: Callable[[], np.ndarray], given: Given):
        self.bar, self.scores, self.given = bar, scores, given

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def __iter__(self) -> Iterator[int]:
        self.given.start()
        for epoch in self.bar:
            yield epoch
            self.given.told(self.scores)

    def set_postfix(self, *args: Any, **kwargs: Any) -> None:
        pass


def _cornac(given: Given, **modalities: Any) -> Any:
    """Its data set, with ids equal to ours; items that no one has are added by a user that does not exist."""
    from cornac.data import Dataset

    uid = {u: u for u in range(given.users)}
    iid = {i: i for i in range(given.items)}
    pairs = [(int(u), int(i), 1.0) for u, i in zip(given.user, given.item, strict=True)]
    dataset = Dataset.build(pairs, global_uid_map=uid, global_iid_map=iid, exclude_unknowns=False)
    return dataset


def cornac_vbpr(given: Given) -> None:
    import cornac.models.vbpr.recom_vbpr as module
    from cornac.data import ImageModality

    dataset = _cornac(given)
    dataset.add_modalities(item_image=ImageModality(features=given.features, ids=list(range(given.items))).build(
        id_map={i: i for i in range(given.items)}
    ))  # fmt: skip
    model = module.VBPR(k=WIDTH, k2=WIDTH, n_epochs=10_000, batch_size=1024, learning_rate=0.001, lambda_w=0.01)
    first = True

    def bar(*args: Any, **kwargs: Any) -> Any:
        """Its progress bar of an epoch is where one has ended and the next begins."""
        nonlocal first
        inside = sys._getframe(1).f_locals
        Gu, Gi, Tu, E, Bi, Bp, F = (inside[name].detach() for name in ("Gu", "Gi", "Tu", "E", "Bi", "Bp", "F"))
        if first:
            given.start()
        else:
            given.told(lambda: (Gu @ Gi.T + Tu @ (F @ E).T + Bi + (F @ Bp).squeeze(1)).numpy())
        first = False
        return real(*args, **kwargs)

    real = module.tqdm
    module.tqdm = bar
    model.fit(dataset)


def _recbole(given: Given, name: str, **options: Any) -> None:
    import torch

    load, torch.load = torch.load, lambda *a, **k: load(*a, **{"weights_only": False, **k})
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer

    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "ours").mkdir()
        rows = "".join(f"{u}\t{i}\n" for u, i in zip(given.user, given.item, strict=True))
        (Path(root) / "ours" / "ours.inter").write_text("user_id:token\titem_id:token\n" + rows)
        settings = {
            "data_path": root, "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "use_gpu": False,
            "load_col": {"inter": ["user_id", "item_id"]}, "embedding_size": WIDTH, "show_progress": False,
            "train_batch_size": 2048, "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "RO", "mode": "full"},
            "checkpoint_dir": root, "state": "ERROR", "seed": 0, **options,
        }  # fmt: skip
        sys.argv = sys.argv[:1]  # it reads them
        config = Config(model=name, dataset="ours", config_dict=settings)
        logging.disable(logging.CRITICAL)
        dataset = create_dataset(config)
        train, *_ = data_preparation(config, dataset)
        model = get_model(name)(config, train.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        users = torch.as_tensor(np.array(dataset.field2id_token["user_id"][1:], dtype=np.int64))
        items = torch.as_tensor(np.array(dataset.field2id_token["item_id"][1:], dtype=np.int64))

        @torch.no_grad()
        def scores() -> np.ndarray:
            model.eval()
            user, item = (
                model.forward() if name == "LightGCN" else (model.user_embedding.weight, model.item_embedding.weight)
            )
            out = torch.full((given.users, given.items), -1e9)
            out[users[:, None], items] = user[1:] @ item[1:].T
            return out.numpy()

        torch.set_num_threads(given.threads)
        given.start()
        epoch = 0
        while True:
            trainer._train_epoch(train, epoch)
            given.told(scores)
            epoch += 1


def recbole_bpr(given: Given) -> None:
    _recbole(given, "BPR", learning_rate=0.001)


def recbole_lightgcn(given: Given) -> None:
    _recbole(given, "LightGCN", learning_rate=0.002, n_layers=2, reg_weight=1e-4)


PEERS = {
    "implicit BPR": implicit_bpr,
    "cornac BPR": cornac_bpr,
    "cornac VBPR": cornac_vbpr,
    "recbole BPR": recbole_bpr,
    "recbole LightGCN": recbole_lightgcn,
    "rectools BPR": rectools_bpr,
}


if __name__ == "__main__":
    given = Given(Path(sys.argv[2]), int(sys.argv[3]))
    with contextlib.suppress(Enough):
        PEERS[sys.argv[1]](given)
