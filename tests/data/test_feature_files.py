"""Feature files of every kind: what is read, how rows find their items, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch

from m3dist.data.dataset import DataError, Dataset
from m3dist.data.importers import tables

ITEMS = [f"B{i}" for i in range(6)]
MATRIX = np.arange(1, 19, dtype=np.float32).reshape(6, 3) / 7
SHUFFLED = [3, 0, 5, 1, 4, 2]
IDS = [ITEMS[i] for i in SHUFFLED]
ROWS = MATRIX[SHUFFLED]


def interactions(folder: Path, items: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    split = ["train", "val", "test"]
    rows = [f"{u},{item},{split[(u + k) % 3]}\n" for u in range(3) for k, item in enumerate(items)]
    (folder / "interactions.csv").write_text("user_id,item_id,split\n" + "".join(rows))
    return folder


def vectors(ids: list[Any], rows: np.ndarray) -> dict[Any, np.ndarray]:
    return dict(zip(ids, rows, strict=True))


def frame(ids: list[Any] = IDS) -> pd.DataFrame:
    return pd.DataFrame({"item_id": ids, **{f"f{j}": ROWS[:, j] for j in range(3)}})


def lists(ids: list[Any] = IDS) -> pd.DataFrame:
    return pd.DataFrame({"item_id": ids, "vector": list(ROWS)})


def hdf5(path: Path, **arrays: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


BY_POSITION = {
    "a.npy": lambda p: np.save(p, MATRIX),
    "double.npy": lambda p: np.save(p, MATRIX.astype(np.float64)),
    "columns.npy": lambda p: np.save(p, np.asfortranarray(MATRIX)),
    "a.npz": lambda p: np.savez(p, MATRIX),
    "packed.npz": lambda p: np.savez_compressed(p, features=MATRIX),
    "a.pt": lambda p: torch.save(torch.from_numpy(MATRIX), p),
    "grad.pt": lambda p: torch.save(torch.from_numpy(MATRIX).requires_grad_(), p),
    "parameter.pt": lambda p: torch.save(torch.nn.Parameter(torch.from_numpy(MATRIX)), p),
    "one.pt": lambda p: torch.save({"features": torch.from_numpy(MATRIX)}, p),
    "a.h5": lambda p: hdf5(p, features=MATRIX),
    "a.pkl": lambda p: p.write_bytes(pickle.dumps(MATRIX)),
    "a.parquet": lambda p: pq.write_table(pa.table({f"f{j}": MATRIX[:, j] for j in range(3)}), p),
    "lists.parquet": lambda p: pq.write_table(pa.table({"vector": list(MATRIX)}), p),
    "index.parquet": lambda p: pd.DataFrame({"a": MATRIX[:, 0], "b": MATRIX[:, 1], "c": MATRIX[:, 2]}, IDS).to_parquet(
        p
    ),
    "a.csv": lambda p: pd.DataFrame(MATRIX, columns=list("abc")).to_csv(p),
}
BY_ID = {
    "ids.npz": lambda p: np.savez(p, item_ids=np.array(IDS), features=ROWS),
    "vectors.npz": lambda p: np.savez(p, **vectors(IDS, ROWS)),
    "dict.npy": lambda p: np.save(p, vectors(IDS, ROWS), allow_pickle=True),
    "dict.pkl": lambda p: p.write_bytes(pickle.dumps({k: v.tolist() for k, v in vectors(IDS, ROWS).items()})),
    "arrays.pkl": lambda p: p.write_bytes(pickle.dumps(vectors(IDS, ROWS), 2)),
    "dict.pt": lambda p: torch.save({k: torch.from_numpy(v.copy()) for k, v in vectors(IDS, ROWS).items()}, p),
    "ids.pt": lambda p: torch.save({"ids": IDS, "emb": torch.from_numpy(ROWS.copy())}, p),
    "ids.h5": lambda p: hdf5(p, ids=IDS, emb=ROWS),
    "vectors.hdf5": lambda p: hdf5(p, **vectors(IDS, ROWS)),
    "dict.json": lambda p: p.write_text(json.dumps({k: v.tolist() for k, v in vectors(IDS, ROWS).items()})),
    "a.parquet": lambda p: frame().to_parquet(p),
    "lists.parquet": lambda p: lists().to_parquet(p),
    "index.parquet": lambda p: frame().set_index("item_id").to_parquet(p),
    "sorted.parquet": lambda p: frame().sort_values("f0").to_parquet(p),
    "a.feather": lambda p: feather.write_feather(pa.Table.from_pandas(frame()), str(p)),
    "a.csv": lambda p: frame().to_csv(p),
    "a.tsv.gz": lambda p: frame().to_csv(p, sep="\t", index=False),
    "lists.csv": lambda p: lists().assign(vector=[str(r.tolist()) for r in ROWS]).to_csv(p, index=False),
    "spaces.csv": lambda p: lists().assign(vector=[" ".join(map(str, r)) for r in ROWS]).to_csv(p, index=False),
    "a.jsonl": lambda p: lists().assign(vector=ROWS.tolist()).to_json(p, orient="records", lines=True),
    "a.json": lambda p: frame().to_json(p, orient="records"),
}


@pytest.mark.parametrize("name", BY_POSITION)
def test_rows_by_position(tmp_path: Path, prepared, name: str) -> None:
    src = interactions(tmp_path / "src", list(range(6)))
    BY_POSITION[name](src / name)
    data: Dataset = prepared(tables.read(src, features={"visual": src / name}))
    np.testing.assert_allclose(data.features("visual"), MATRIX, rtol=1e-6)
    assert data.present("visual").all()


@pytest.mark.parametrize("name", BY_ID)
def test_rows_by_id(tmp_path: Path, prepared, name: str) -> None:
    src = interactions(tmp_path / "src", ITEMS)
    BY_ID[name](src / name)
    data: Dataset = prepared(tables.read(src, features={"visual": src / name}))
    assert data.item_ids.to_pylist() == ITEMS
    np.testing.assert_allclose(data.features("visual"), MATRIX, rtol=1e-6)


@pytest.mark.parametrize("ids", [[10, 20, 30], [10.0, 20.0, 30.0], ["10", "20", "30"]])
def test_ids_of_features_are_ids_like_others(tmp_path: Path, prepared, ids: list[Any]) -> None:
    """Integers, floats and text join the same items; an item without a row lacks the modality."""
    src = interactions(tmp_path / "src", [10, 20, 30, 40])
    (src / "x.pkl").write_bytes(pickle.dumps({i: [float(i), 1.0] for i in ids}))
    data: Dataset = prepared(tables.read(src, features={"visual": src / "x.pkl"}))
    assert data.features("visual").tolist() == [[10, 1], [20, 1], [30, 1], [0, 0]]
    assert data.present("visual").tolist() == [True, True, True, False]


def test_items_behind_the_rows_lack_the_modality(tmp_path: Path, prepared) -> None:
    src = interactions(tmp_path / "src", list(range(6)))
    np.save(src / "visual.npy", MATRIX[:4])
    np.save(src / "audio.npy", MATRIX)
    source = tables.read(src)
    assert "visual.npy has 4 rows: the last 2 items lack it" in source.notes
    data: Dataset = prepared(source)
    assert data.present("visual").tolist() == [True] * 4 + [False] * 2
    assert data.present("audio").all()


def test_ids_that_count_from_one(tmp_path: Path, prepared) -> None:
    src = interactions(tmp_path / "src", list(range(1, 7)))
    np.save(src / "visual.npy", MATRIX)
    with pytest.raises(
        DataError, match=r"visual.npy: 6 rows, but item ids go up to 6 and 0 never occurs: .*--first-item 1"
    ):
        tables.read(src)
    data: Dataset = prepared(tables.read(src, first_item=1))
    assert data.item_ids.to_pylist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(data.features("visual"), MATRIX)


def test_one_array_of_several(tmp_path: Path) -> None:
    src = interactions(tmp_path / "src", list(range(6)))
    np.savez(src / "all.npz", image=MATRIX, text=MATRIX[:, :2])
    with pytest.raises(
        DataError, match=r"several matrices \(image, text\); choose one with --feature NAME=all.npz#image"
    ):
        tables.read(src, features={"text": src / "all.npz"})
    assert tables.read(src, features={"text": src / "all.npz#text"}).features[0].blocks().shape == (6, 2)  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"no array 'sound'; it has image, text"):
        tables.read(src, features={"text": src / "all.npz#sound"})


def sparse_tensor() -> torch.Tensor:
    return torch.eye(6).to_sparse()


REFUSED = {
    "sparse.pt": (lambda p: torch.save(sparse_tensor(), p), r"it is a sparse tensor"),
    "csr.pt": (lambda p: torch.save(torch.eye(6).to_sparse_csr(), p), r"it is a sparse tensor"),
    "quantised.pt": (
        lambda p: torch.save(torch.quantize_per_tensor(torch.eye(6), 0.1, 0, torch.qint8), p),
        r"quantised.pt: ",
    ),
    "float8.pt": (lambda p: torch.save(torch.eye(6).to(torch.float8_e4m3fn), p), r"it is of torch.float8_e4m3fn"),
    "meta.pt": (lambda p: torch.save(torch.eye(6, device="meta"), p), r"a meta tensor, without values"),
    "nested.pt": (lambda p: torch.save(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), p), r"nested.pt: "),
    "view.pt": (lambda p: torch.save(torch.ones(1).expand(6, 1000), p), r"larger than its values"),
    "complex.pt": (lambda p: torch.save(torch.eye(6).to(torch.complex64), p), r"of torch.complex64"),
    "model.pt": (lambda p: torch.save(torch.nn.Linear(2, 2), p), r"not a plain tensor file"),
    "state.pt": (lambda p: torch.save(torch.nn.Linear(2, 2).state_dict(), p), r"rows of state.pt are items 0..1"),
    "integers.pt": (
        lambda p: torch.save(torch.ones(6, 2, dtype=torch.int64), p),
        r"expected a tensor of floats, got int64",
    ),
    "list.pt": (lambda p: torch.save([torch.ones(2)], p), r"it is list"),
    "zip.npz": (lambda p: zip_of(p, {"a.txt": b"hello"}), r"a zip of something else than arrays \(a.txt\)"),
    "empty.npz": (lambda p: zip_of(p, {}), r"it is empty"),
    "encrypted.npz": (lambda p: encrypted(p), r"an encrypted zip"),
    "objects.npz": (lambda p: np.savez(p, a=np.array([{}, {}], dtype=object)), r"a.npy holds object"),
    "short.npz": (lambda p: zip_of(p, {"a.npy": npy_claim((1 << 40, 4))}), r"a.npy is damaged: its bytes do not fit"),
    "text.npz": (lambda p: p.write_text("hello"), r"text.npz: not a .npz file"),
    "sparse.npz": (
        lambda p: scipy.sparse.save_npz(p, scipy.sparse.eye(6)),
        r"sparse.npz: a sparse matrix, expected dense features",
    ),
    "vectors.npz": (
        lambda p: np.savez(p, a=np.ones(3), b=np.ones(2)),
        r"key 'b': 2 feature values, those before it have 3",
    ),
    "short.npy": (lambda p: p.write_bytes(npy_claim((1 << 40, 4))), r"short.npy: .*too short for its shape"),
    "structure.npy": (lambda p: np.save(p, np.zeros((6, 2), dtype=[("a", "f4")])), r"features must be numbers"),
    "complex.npy": (lambda p: np.save(p, np.ones((6, 2), complex)), r"features must be numbers, got complex128"),
    "matrix.pkl": (
        lambda p: p.write_bytes(pickle.dumps(scipy.sparse.eye(6).tocsr())),
        r"a sparse matrix, expected dense",
    ),
    "frame.pkl": (lambda p: frame().to_pickle(p), r"refused to unpickle it \(it uses pandas"),
    "words.pkl": (lambda p: p.write_bytes(pickle.dumps({"B0": ["a", "b"]})), r"words.pkl.*must be numbers"),
    "nan.pkl": (lambda p: p.write_bytes(pickle.dumps({"B0": [1.0, float("nan")]})), r"key 'B0': a feature is NaN"),
    "words.parquet": (lambda p: pd.DataFrame({"item_id": IDS, "x": IDS}).to_parquet(p), r"features must be numbers"),
    "text.h5": (lambda p: p.write_text("hello"), r"text.h5: not an HDF5 file"),
    "elsewhere.h5": (lambda p: elsewhere(p), r"'a' lies in another file"),
    "unwritten.h5": (lambda p: unwritten(p), r"its arrays would take .* out of a file of"),
    "nothing.csv": (lambda p: p.write_text("item_id,x\n"), r"no feature rows"),
    "ids.csv": (lambda p: p.write_text("item_id\nB0\n"), r"no feature column beside 'item_id'"),
}


def zip_of(path: Path, members: dict[str, bytes]) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def encrypted(path: Path) -> None:
    """A .npz whose members say that they are encrypted."""
    np.savez(path, a=MATRIX)
    data = bytearray(path.read_bytes())
    data[6] |= 1
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(bytes(data))


def npy_claim(shape: tuple[int, ...]) -> bytes:
    """A .npy header of a large matrix without its values."""
    fields = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(fields).to_bytes(2, "little") + fields


def elsewhere(path: Path) -> None:
    (path.parent / "secret.bin").write_bytes(bytes(24))
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (6, 1), dtype="f4", external=[(str(path.parent / "secret.bin"), 0, 24)])


def unwritten(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (1 << 30, 64), dtype="f4", chunks=(1024, 64))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, prepared, name: str) -> None:
    make, message = REFUSED[name]
    src = interactions(tmp_path / "src", ITEMS)
    (tmp_path / "f").mkdir()
    make(tmp_path / "f" / name)
    with pytest.raises(DataError, match=message) as error:
        prepared(tables.read(src, features={"visual": tmp_path / "f" / name}))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_hdf5_without_h5py_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    hdf5(tmp_path / "a.h5", features=MATRIX)
    monkeypatch.setitem(sys.modules, "h5py", None)
    src = interactions(tmp_path / "src", list(range(6)))
    with pytest.raises(DataError, match=r'a.h5: HDF5 needs h5py: pip install "m3dist\[hdf5\]"'):
        tables.read(src, features={"visual": tmp_path / "a.h5"})


def test_files_of_a_folder_are_used_or_named(tmp_path: Path, prepared) -> None:
    src = interactions(tmp_path / "src", list(range(6)))
    np.savez(src / "visual.npz", MATRIX)
    np.save(src / "text_feat.npy", MATRIX)
    frame(list(range(6))).to_csv(src / "audio.csv", index=False)
    np.savez(src / "pairs.npz", train=np.ones((9, 2), int), test=np.ones((9, 2), int))
    (src / "ids.pkl").write_bytes(pickle.dumps([1, 2]))
    (src / "users.csv").write_text("id,age,weight\n0,30,70.5\n1,40,71.5\n")
    (src / "links.csv").write_text("movieId,imdbId,tmdbId\n0,30,70\n1,40,71\n")
    (src / "README.md").write_text("hello")
    (src / "holiday.jpg").write_bytes(b"x")
    (src / ".DS_Store").write_bytes(b"x")
    (src / "old").mkdir()
    source = tables.read(src)
    assert sorted(f.name for f in source.features) == ["audio", "text", "visual"]
    said = "\n".join(source.said())
    for name in ("pairs.npz", "ids.pkl", "users.csv", "links.csv", "README.md", "holiday.jpg", ".DS_Store", "old/"):
        assert name in said
    for used in ("visual.npz", "text_feat.npy", "audio.csv", "interactions.csv"):
        assert f"not used: {used}" not in said
    assert prepared(source).modalities == {"audio": 3, "text": 3, "visual": 3}
