"""Hostile and damaged pickles do not run; honest ones of every numpy and scipy generation read right."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from m3dist.data.dataset import DataError
from m3dist.data.importers import featurefiles, invrl, matrices
from m3dist.data.importers.options import Columns
from m3dist.data.importers.pickles import Array, Dtype, Sparse, as_array, coordinates, load_npy, load_pickle


class Payload:
    """Makes a file when it is unpickled the ordinary way."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def npy_header(shape: str = "()") -> bytes:
    fields = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(fields).to_bytes(2, "little") + fields


def test_the_payload_works(tmp_path):
    """The control: an ordinary unpickler runs it, so the tests below prove something."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["npy", "pkl", "in a dict", "in a matrix"])
def test_hostile_pickles_do_not_run(tmp_path, protocol, where):
    payload, path = Payload(tmp_path / "ran"), tmp_path / "train.pkl"
    if where == "npy":
        path = tmp_path / "train.npy"
        path.write_bytes(npy_header() + pickle.dumps(payload, protocol))
    elif where == "pkl":
        path.write_bytes(pickle.dumps(payload, protocol))
    elif where == "in a dict":
        path.write_bytes(pickle.dumps({0: [1, 2, payload]}, protocol))
    else:
        matrix = scipy.sparse.csr_matrix(np.eye(3))
        matrix.note = payload
        path.write_bytes(pickle.dumps(matrix, protocol))
    with pytest.raises(DataError, match=rf"{path.name}: refused to unpickle it \(it uses \w+.mkdir\)"):
        (load_npy if where == "npy" else load_pickle)(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b'cbuiltins\neval\n(S\'open("ran", "w")\'\ntR.',
        b"c__builtin__\nexec\n(S'1'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",  # dotted names reach into what is allowed
        b"\x80\x04\x8c\x0bcollections\x8c\x0b_sys.modules\x93.",
        b"cnumpy.core.multiarray\nfromfile\n(S'/etc/passwd'\ntR.",
        b"cscipy.sparse\nload_npz\n(S'x'\ntR.",
        b"cscipy.sparse._csr\nos\n.",
        b"cnumpy\nload\n.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\ndtype\n(S'V8'\ntR.",
        b"cnumpy\ndtype\n(S'f8'\ntR(I3\nS'<'\nNS'a'\nNI8\nI1\nI0\ntb.",
        b"ccollections\ndefaultdict\n(cos\ngetcwd\ntR.",
        b"(lp0\nh5\n.",  # a memo that is not there
        b"\x80\x04" + b"(" * 10 + b".",
        b"\x80\x04r\xff\xff\xff\x7f.",  # a memo slot two billion in
        b"\x80\x05\x8e" + (1 << 60).to_bytes(8, "little") + b"x.",  # bytes of an exabyte
        b"P1\n.",
        b"",
        b"\x80\xff.",
        b"not a pickle",
    ],
)
def test_crafted_pickles_are_refused(tmp_path, code, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(code)
    with pytest.raises(DataError, match=r"a.pkl: refused to unpickle it"):
        load_pickle(tmp_path / "a.pkl")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pkl"]


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD sets attributes of what a name stands for: nothing of ours may carry that on to the next file."""
    before = (Array.__setstate__, Dtype.__setstate__, as_array)
    for name in (b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct", b"scipy.sparse._csr\ncsr_matrix"):
        (tmp_path / "a.pkl").write_bytes(b"c" + name + b"\n(N(dS'__setstate__'\nI1\nsS'__defaults__'\n(I1\ntstb.")
        with contextlib.suppress(DataError):
            load_pickle(tmp_path / "a.pkl")
    assert before == (Array.__setstate__, Dtype.__setstate__, as_array)
    honest = scipy.sparse.csr_matrix(np.eye(2))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(honest))
    assert coordinates(load_pickle(tmp_path / "b.pkl"), "b.pkl")[0].tolist() == [0, 1]


def test_hostile_files_through_the_importers(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    hostile = pickle.dumps(Payload(tmp_path / "ran"))
    (src / "train.npy").write_bytes(npy_header() + hostile)
    np.save(src / "val_full.npy", np.array([[0, 2]]))
    np.save(src / "test_full.npy", np.array([[0, 2]]))
    with pytest.raises(DataError, match=r"train.npy: refused"):
        invrl.read(src)
    for name in ("train_mat", "val_mat", "test_mat"):
        (src / name).write_bytes(hostile)
    with pytest.raises(DataError, match=r"train_mat: refused"):
        matrices.read(src)
    (src / "feat_v.npy").write_bytes(npy_header("(2, 2)") + hostile)
    with pytest.raises(DataError, match=r"feat_v.npy: refused to unpickle"):
        featurefiles.open_feature("v", src / "feat_v.npy", Columns())
    np.savez(src / "train.npz", data=np.array([Payload(tmp_path / "ran")], dtype=object), format=np.array(b"csr"))
    with pytest.raises(DataError, match=r"train.npz: data.npy holds object, expected an array of numbers"):
        matrices._entries(src / "train.npz")
    assert not (tmp_path / "ran").exists()


def test_hostile_torch_file(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(Payload(tmp_path / "ran"), tmp_path / "feat_v.pt")
    with pytest.raises(DataError, match=r"feat_v.pt: not a plain tensor file"):
        featurefiles.open_feature("v", tmp_path / "feat_v.pt", Columns())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
@pytest.mark.parametrize("family", ["matrix", "array"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int8", "bool"])
def test_sparse_matrices(tmp_path, protocol, kind, family, dtype):
    rng = np.random.default_rng(protocol)
    dense = (rng.random((5, 7)) < 0.4).astype(dtype)
    dense[4] = 0
    matrix = getattr(scipy.sparse, f"{kind}_{family}")(dense)
    matrix.data[0] = 0  # a stored zero is no interaction
    (tmp_path / "a").write_bytes(pickle.dumps(matrix, protocol))
    loaded = load_pickle(tmp_path / "a")
    assert isinstance(loaded, Sparse)
    row, col, shape = coordinates(loaded, "a")
    assert shape == (5, 7)
    expected = sorted((int(a), int(b)) for a, b in zip(*matrix.nonzero(), strict=True))
    assert sorted(zip(row.tolist(), col.tolist(), strict=True)) == expected


def test_old_and_new_numpy_names(tmp_path):
    """numpy 1 says numpy.core, numpy 2 numpy._core: the same bytes otherwise."""
    for protocol in range(6):
        new = pickle.dumps({1: np.arange(3)}, protocol)
        names = {op[1] for op in pickletools.genops(new) if isinstance(op[1], str)}
        assert any("core" in name for name in names)
        for data in (new, _renamed({1: np.arange(3)}, protocol)):
            (tmp_path / "a").write_bytes(data)
            assert as_array(load_pickle(tmp_path / "a")[1]).tolist() == [0, 1, 2]


def _renamed(value: object, protocol: int) -> bytes:
    text = pickletools.optimize(pickle.dumps(value, min(protocol, 3)))
    return text.replace(b"numpy._core.", b"numpy.core.")


@pytest.mark.parametrize("protocol", range(6))
def test_containers_scalars_and_object_arrays(tmp_path, protocol):
    content = collections.defaultdict(list, {np.int64(3): [1, 2], 4: {5, 6}, 7: np.array([8, 9], dtype=">i4")})
    (tmp_path / "a").write_bytes(pickle.dumps(content, protocol))
    loaded = load_pickle(tmp_path / "a")
    assert {int(k): sorted(as_array(v).tolist()) for k, v in loaded.items()} == {3: [1, 2], 4: [5, 6], 7: [8, 9]}
    rows = np.empty(3, dtype=object)
    rows[:] = [[0, 1], np.array([1, 2, 3]), (2,)]
    (tmp_path / "b.npy").write_bytes(npy_header("(3,)") + pickle.dumps(rows, protocol))
    assert [as_array(row).tolist() for row in load_npy(tmp_path / "b.npy")] == [[0, 1], [1, 2, 3], [2]]


def test_npy_that_lies(tmp_path):
    rows = np.empty(3, dtype=object)
    for name, data in {
        "shape.npy": npy_header("(4,)") + pickle.dumps(rows),
        "kind.npy": npy_header("(3,)") + pickle.dumps([1, 2, 3]),
        "short.npy": npy_header("(3,)")[:50],
        "magic.npy": b"PK\x03\x04",
        "header.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': 1/0}  \n",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            load_npy(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"indptr": np.array([0, 9, 9])},
        {"indptr": np.array([0, 2, 1])},
        {"indptr": np.array([0, 1])},
        {"data": np.ones(1)},
        {"indices": np.array([0.5, 1.0])},
        {"_shape": (2,)},
        {"_shape": None},
    ],
)
def test_damaged_matrices(change):
    matrix = Sparse()
    matrix.kind = "csr"
    matrix.state = {"_shape": (2, 3), "indptr": np.array([0, 1, 2]), "indices": np.array([0, 1]), "data": np.ones(2)}
    assert coordinates(matrix, "a.pkl")[1].tolist() == [0, 1]
    matrix.state |= change
    with pytest.raises(DataError, match=r"a.pkl: a damaged sparse matrix"):
        coordinates(matrix, "a.pkl")
