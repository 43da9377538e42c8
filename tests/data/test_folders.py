"""The importers of published folders: InvRL and MMGCN, MMRec, sparse matrices."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from data_helpers import FEATURES, SMALL, pairs, sorted_pairs, text

from m3dist.data.dataset import DataError
from m3dist.data.importers import invrl, matrices, mmrec

USERS, ITEMS = 3, 4
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def grouped(rows, shift=USERS):
    out: dict[int, list[int]] = {}
    for u, i in rows:
        out.setdefault(u, []).append(i + shift)
    return out


def save_rows(path: Path, rows, kind=list) -> None:
    """Rows [user, item, item, ...] as an object array."""
    content = [kind([u, *items]) for u, items in grouped(rows).items()]
    array = np.empty(len(content), dtype=object)
    array[:] = content
    np.save(path, array, allow_pickle=True)


@pytest.fixture
def invrl_folder(tmp_path):
    src = tmp_path / "tiktok"
    src.mkdir()
    np.save(src / "train.npy", np.array([(u, i + USERS) for u, i in SMALL["train"]]))
    save_rows(src / "val_full.npy", SMALL["val"], np.array)
    save_rows(src / "test_full.npy", SMALL["test"])
    np.save(src / "feat_v.npy", FEATURES.astype(np.float64))
    np.save(src / "feat_smell.npy", FEATURES.astype(np.float16))
    return src


def everything(rows=SMALL):
    return {u: set(items) for u, items in grouped([p for r in rows.values() for p in r]).items()}


def test_invrl(invrl_folder, prepared):
    # the dict holds every split here, as published, and must not be read beside train.npy
    np.save(invrl_folder / "user_item_dict.npy", everything(), allow_pickle=True)
    data = prepared(invrl.read(invrl_folder))
    assert pairs(data) == sorted_pairs(SMALL)
    assert data.modalities == {"smell": 2, "visual": 2}
    assert data.features("smell").dtype == np.float16
    np.testing.assert_array_equal(data.features("visual"), FEATURES)


@pytest.mark.parametrize("train", ["user_item_train_dict.npy", "user_item_dict.npy", "object pairs", "list rows"])
def test_invrl_training_files(invrl_folder, prepared, train):
    (invrl_folder / "train.npy").unlink()
    shifted = [(u, i + USERS) for u, i in SMALL["train"]]
    if train == "user_item_train_dict.npy":
        np.save(
            invrl_folder / train, {u: set(items) for u, items in grouped(SMALL["train"]).items()}, allow_pickle=True
        )
    elif train == "user_item_dict.npy":
        np.save(invrl_folder / train, everything(), allow_pickle=True)
    else:
        array = np.array(shifted, dtype=object)
        if train == "list rows":
            array = np.empty(len(shifted), dtype=object)
            array[:] = [list(pair) for pair in shifted]
        np.save(invrl_folder / "train.npy", array, allow_pickle=True)
    source = invrl.read(invrl_folder)
    assert pairs(prepared(source)) == sorted_pairs(SMALL)
    assert any("4 pairs of val and test" in note for note in source.notes) == (train == "user_item_dict.npy")


def test_invrl_torch_features_and_words(invrl_folder, prepared):
    torch = pytest.importorskip("torch")
    (invrl_folder / "feat_v.npy").unlink()
    torch.save(torch.from_numpy(FEATURES).bfloat16(), invrl_folder / "feat_a.pt")
    # items 0 and 1 have the same words, item 2 others, item 3 none; ids shifted as those of interactions
    words = torch.tensor([[3, 3, 4, 4, 5], [7, 9, 9, 7, 2]])
    torch.save(words, invrl_folder / "feat_t.pt")
    data = prepared(invrl.read(invrl_folder))
    np.testing.assert_array_equal(data.features("acoustic"), FEATURES)
    text_features = data.features("textual")
    np.testing.assert_allclose(text_features[0], text_features[1], rtol=1e-6)
    assert abs(np.corrcoef(text_features[0], text_features[2])[0, 1]) < 0.5
    assert data.present("textual").tolist() == [True, True, True, False]


def test_invrl_users_whose_ids_do_not_show(invrl_folder, prepared):
    """With a fourth user who never occurs, items start at 4: only --users or the features can tell."""
    np.save(invrl_folder / "train.npy", np.array([(u, i + 4) for u, i in SMALL["train"]]))
    for split in ("val", "test"):
        rows = [np.array([u, *(i + 1 for i in items)]) for u, items in grouped(SMALL[split]).items()]
        array = np.empty(len(rows), dtype=object)
        array[:] = rows
        np.save(invrl_folder / f"{split}_full.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=r"4 feature rows, but item ids reach 7.*say --users"):
        invrl.read(invrl_folder)
    data = prepared(invrl.read(invrl_folder, users=4))
    assert pairs(data) == sorted_pairs(SMALL)
    assert data.n_users == 4


def bad_rows(name: str, rows: list):
    def change(src: Path) -> None:
        array = np.empty(len(rows), dtype=object)
        array[:] = rows
        np.save(src / name, array, allow_pickle=True)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "train.npy").unlink(), r"tiktok: no training interactions: expected train.npy"),
        (lambda s: (s / "val_full.npy").rename(s / "val.npy"), r"no val_full.npy; val.npy mixes sampled negatives"),
        (lambda s: np.save(s / "train.npy", np.zeros((3, 3), int)), r"train.npy: expected \[n, 2\] pairs"),
        (lambda s: np.save(s / "train.npy", np.zeros((3, 2))), r"train.npy: expected \[n, 2\] pairs"),
        (bad_rows("val_full.npy", [[0, 5], [1, 1]]), r"val_full.npy: pair 1 is user 1, item 1; .* from 3 on"),
        (bad_rows("val_full.npy", [[0, 5], ["a", 4]]), r"val_full.npy, row 1: expected integer"),
        (bad_rows("val_full.npy", [[0, 5], []]), r"val_full.npy, row 1: expected \[user, item"),
        (bad_rows("val_full.npy", [[0], [1]]), r"val_full.npy: no interactions"),
        (bad_rows("val_full.npy", [[0, 3]]), r"train.npy and val_full.npy: .* overlap"),
        (lambda s: np.save(s / "feat_v.npy", FEATURES[:2]), r"feat_v.npy: 2 feature rows, but item ids reach 6"),
        (lambda s: np.save(s / "feat_v.npy", np.vstack([FEATURES, FEATURES])), r"4 feature rows for 8 items"),
        (lambda s: np.save(s / "feat_v.npy", FEATURES + np.inf), r"feat_v.npy: row 0 holds NaN or infinity"),
        (lambda s: np.save(s / "train.npy", {"a": [4]}, allow_pickle=True), r"train.npy, key 'a': expected integer"),
        (lambda s: (s / "train.npy").write_bytes(b"x"), r"train.npy: not a .npy file"),
    ],
)
def test_invrl_refusals(invrl_folder, prepared, change, message):
    change(invrl_folder)
    with pytest.raises(DataError, match=message):
        prepared(invrl.read(invrl_folder))


def test_real_invrl(prepared):
    if not (REAL / "movielens-full").is_dir():
        pytest.skip("shared/data/movielens-full is not beside the repository")
    data = prepared(invrl.read(REAL / "movielens-full"))
    assert (data.n_users, data.n_items) == (55485, 5986)
    assert [data.size(s) for s in ("train", "val", "test")] == [922007, 149366, 174487]
    assert data.meta["cold_items"]["all"] == 867
    with pytest.raises(DataError, match="no training interactions"):
        invrl.read(REAL / "formats" / "invrl")


@pytest.fixture
def mmrec_folder(tmp_path):
    src = tmp_path / "baby"
    src.mkdir()
    rows = [(u, i, 5.0, 100, code) for code, split in enumerate(SMALL) for u, i in SMALL[split]]
    (src / "baby.inter").write_text(text(rows, "userID\titemID\trating\ttimestamp\tx_label"))
    np.save(src / "image_feat.npy", FEATURES.astype(np.float64))
    np.save(src / "text_feat.npy", FEATURES[:, :1])
    return src


def test_mmrec(mmrec_folder, prepared):
    data = prepared(mmrec.read(mmrec_folder))
    assert pairs(data) == sorted_pairs(SMALL)
    assert data.modalities == {"image": 2, "text": 1}
    assert data.meta["provenance"]["format"] == "mmrec"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"baby: expected one .inter table, found none"),
        ("userID\titemID\n0\t1\n", r"baby.inter: no x_label column"),
        ("userID\tx_label\n0\t1\n", r"baby.inter: no item column"),
        ("userID\titemID\tx_label\n0\t1\t0\n0\t2\t3\n", r"baby.inter, line 3: split '3'"),
        ("userID\titemID\tx_label\n0\t1\t0\n0\t9\t1\n", r"baby.inter, line 3: item id 9 is out of range 0..3"),
        ("userID\titemID\tx_label\n0\t1\t0\n0\t2\t1\n0\t1\t2\n", r"train and test overlap in 1"),
    ],
)
def test_mmrec_refusals(mmrec_folder, prepared, content, message):
    (mmrec_folder / "baby.inter").unlink() if content is None else (mmrec_folder / "baby.inter").write_text(content)
    with pytest.raises(DataError, match=message):
        prepared(mmrec.read(mmrec_folder))


def csr(rows, shape=(USERS, ITEMS), dtype="float32"):
    user, item = zip(*rows, strict=True)
    return scipy.sparse.csr_matrix((np.ones(len(rows), dtype=dtype), (user, item)), shape=shape)


@pytest.mark.parametrize("names", ["{}_mat", "{}_mat.pkl", "{}.npz", "{}.json"])
def test_matrices(tmp_path, prepared, names):
    for split, rows in SMALL.items():
        path = tmp_path / names.format(split)
        if path.suffix == ".npz":
            scipy.sparse.save_npz(path, csr(rows).tocoo())
        elif path.suffix == ".json":
            path.write_text(json.dumps({str(u): items for u, items in grouped(rows, 0).items()} | {"9": []}))
        else:
            path.write_bytes(pickle.dumps(csr(rows, dtype="float64")))
    np.save(tmp_path / "image_feat.npy", FEATURES)
    data = prepared(matrices.read(tmp_path))
    assert pairs(data) == sorted_pairs(SMALL)
    assert data.modalities == {"image": 2}


def instead(name: str, content: bytes):
    """val.npz becomes another file."""

    def change(src: Path) -> None:
        (src / "val.npz").unlink()
        (src / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "val.npz").unlink(), r"no val matrix; expected val_mat or valMat"),
        (
            lambda s: scipy.sparse.save_npz(s / "val.npz", csr([(0, 2)], (3, 5))),
            r"val.npz: shape \(3, 5\), but train.npz",
        ),
        (lambda s: np.savez(s / "val.npz", a=np.ones(3)), r"val.npz: not a sparse matrix"),
        (lambda s: (s / "val.npz").write_bytes(b"x"), r"val.npz: not a .npz file"),
        (
            lambda s: scipy.sparse.save_npz(s / "val.npz", csr([(0, 0), (0, 2)])),
            r"train.npz and val.npz: .* overlap in 1",
        ),
        (lambda s: scipy.sparse.save_npz(s / "val.npz", csr([(0, 2)]) * 0), r"val.npz: val is empty"),
        (lambda s: np.save(s / "image_feat.npy", np.ones((5, 2))), r"image_feat.npy: 5 feature rows for 4 items"),
        (instead("val.pkl", pickle.dumps([1])), r"val.pkl: expected a sparse matrix or .*, got list"),
        (instead("val.json", b"{"), r"val.json: not JSON"),
        (instead("val.json", b'{"a": [1]}'), r"val.json, key 'a': expected an integer user id"),
        (instead("val.json", b'{"0": [9]}'), r"val.json: interaction 0 of val has item id 9"),
        (instead("val.json", b'{"0": [1.5]}'), r"val.json, key '0': expected a list of integer"),
    ],
)
def test_matrices_refusals(tmp_path, prepared, change, message):
    src = tmp_path / "src"
    src.mkdir()
    for split, rows in SMALL.items():
        scipy.sparse.save_npz(src / f"{split}.npz", csr(rows))
    np.save(src / "image_feat.npy", FEATURES)
    change(src)
    with pytest.raises(DataError, match=message):
        prepared(matrices.read(src))
