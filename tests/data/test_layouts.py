"""Published layouts by name, `prepare auto`, --dry-run, and an importer that is added."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_helpers import call
from data_helpers import everything

from m3dist.data import importers
from m3dist.data.dataset import DataError, Dataset
from m3dist.data.importers.options import Options

U, I = 4, 10
GRID = [(u, i) for u in range(U) for i in range(I)]


def put(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def rows(form: str, pairs: list[tuple[int, int]] = GRID) -> str:
    return "".join(form.format(u=u, i=i, r=(u + i) % 5 + 1, t=1_000_000_000 + 100 * u + i) + "\n" for u, i in pairs)


SPLITS = {"train": GRID[:8] + GRID[10:18] + GRID[20:28] + GRID[30:38], "val": GRID[8::10], "test": GRID[9::10]}


def recbole(folder: Path) -> None:
    put(
        folder,
        "toy.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + rows('{u}\tB"{i}\t{r}\t{t}'),
    )
    put(folder, "toy.item", "item_id:token\ttitle:token_seq\n" + "".join(f'B"{i}\tTitle {i}\n' for i in range(I + 2)))
    put(folder, "toy.user", "user_id:token\tage:float\n0\t7\n")


def recbole_benchmark(folder: Path) -> None:
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        put(folder, f"toy.{name}.inter", "user_id:token\titem_id:token\n" + rows("{u}\tB{i}", SPLITS[split]))


def mmrec(folder: Path) -> None:
    labels = {pair: code for code, split in enumerate(SPLITS) for pair in SPLITS[split]}
    table = "".join(f"{u}\t{i}\t5.0\t{labels[u, i]}\n" for u, i in GRID)
    put(folder, "baby.inter", "userID\titemID\trating\tx_label\n" + table)
    np.save(folder / "image_feat.npy", np.arange(20.0).reshape(10, 2))
    np.savez(folder / "sound.npz", np.ones((10, 3)) * np.arange(1, 11)[:, None])
    np.save(folder / "user_graph_dict.npy", {0: [1, 2]}, allow_pickle=True)
    np.save(folder / "pairs.npy", np.ones((7, 2), int))


def lattice(folder: Path) -> None:
    for split, pairs in SPLITS.items():
        content: dict[str, list[int]] = {}
        for u, i in pairs:
            content.setdefault(str(u), []).append(i)
        put(folder, f"5-core/{split}.json", json.dumps(content))
    np.save(folder / "image_feat.npy", np.arange(20.0).reshape(10, 2))


def movielens_1m(folder: Path) -> None:
    put(folder, "ratings.dat", rows("{u}::{i}::{r}::{t}"))
    put(folder, "movies.dat", "".join(f"{i}::Caf\u00e9 {i}::Drama|Comedy\n" for i in range(I)).encode("latin-1"))
    put(folder, "users.dat", "0::F::1::10::48067\n")


def movielens_100k(folder: Path) -> None:
    put(folder, "u.data", rows("{u}\t{i}\t{r}\t{t}"))
    put(folder, "u.item", "".join(f"{i}|Caf\u00e9 {i}|01-Jan-1995||http://x|0|1\n" for i in range(I)).encode("latin-1"))
    put(folder, "u1.base", rows("{u}\t{i}\t{r}\t{t}", GRID[:9]))


def movielens_latest(folder: Path) -> None:
    put(folder, "ratings.csv", "userId,movieId,rating,timestamp\n" + rows("{u},{i},{r},{t}"))
    put(folder, "movies.csv", "movieId,title,genres\n" + "".join(f'{i},"Film, The {i}",A|B\n' for i in range(I)))
    put(folder, "tags.csv", "userId,movieId,tag,timestamp\n0,0,funny,1\n")
    put(folder, "links.csv", "movieId,imdbId,tmdbId\n0,1,2\n")


def lastfm(folder: Path) -> None:
    put(folder, "user_artists.dat", "userID\tartistID\tweight\r\n" + rows("{u}\t{i}\t{t}").replace("\n", "\r\n"))
    put(folder, "artists.dat", "id\tname\turl\n" + "".join(f'{i}\t"Weird" {i}\thttp://x\n' for i in range(I)))
    put(folder, "user_friends.dat", "userID\tfriendID\n0\t1\n")
    put(folder, "user_taggedartists.dat", "userID\tartistID\ttagID\tday\tmonth\tyear\n0\t1\t2\t1\t4\t2009\n")


def amazon(folder: Path) -> None:
    reviews = [
        {"reviewerID": f"A{u}", "asin": f"B{i}", "overall": 5.0, "reviewText": 'so\n"so"', "unixReviewTime": 10**9 + i}
        for u, i in GRID
    ]
    put(folder, "reviews_Toys_5.json.gz", gzip.compress("".join(json.dumps(r) + "\n" for r in reviews).encode()))
    meta = "".join(str({"asin": f"B{i}", "title": f"It's {i}"}) + "\n" for i in range(I))  # Python's literals
    put(folder, "meta_Toys.json.gz", gzip.compress(meta.encode()))


def amazon_2023(folder: Path) -> None:
    reviews = [
        {
            "rating": 5.0,
            "title": "x",
            "asin": f"X{i}",
            "parent_asin": f"B{i}",
            "user_id": f"A{u}",
            "timestamp": 10**12 + i,
        }
        for u, i in GRID
    ]
    put(folder, "Toys.jsonl", "".join(json.dumps(r) + "\n" for r in reviews))
    put(
        folder,
        "meta_Toys.jsonl",
        "".join(json.dumps({"parent_asin": f"B{i}", "title": f"T{i}"}) + "\n" for i in range(I)),
    )


def elliot(folder: Path) -> None:
    for split, pairs in SPLITS.items():
        put(folder, f"{split}.tsv", rows("{u}\t{i}\t{r}\t{t}", pairs))


def cornac(folder: Path) -> None:
    put(folder, "uirt.txt", rows("{u}\t{i}\t{r}\t{t}"))


def invrl(folder: Path) -> None:
    np.save(folder / "train.npy", np.array([(u, i + U) for u, i in SPLITS["train"]]))
    for split in ("val", "test"):
        array = np.empty(U, dtype=object)
        array[:] = [[u, i + U] for u, i in SPLITS[split]]
        np.save(folder / f"{split}_full.npy", array, allow_pickle=True)
    np.save(folder / "feat_v.npy", np.arange(20.0).reshape(10, 2))


def spark(folder: Path) -> None:
    for part in range(2):
        table = pa.table({"user_id": [u for u, _ in GRID[part::2]], "item_id": [i for _, i in GRID[part::2]]})
        put(folder, f"part-0000{part}.snappy.parquet", b"")
        pq.write_table(table, folder / f"part-0000{part}.snappy.parquet")
        put(folder, f".part-0000{part}.snappy.parquet.crc", b"crc\0")
    put(folder, "_SUCCESS", "")


def spark_csv(folder: Path) -> None:
    for part in range(2):
        put(folder, f"part-0000{part}.csv", "user_id,item_id\n" + rows("{u},{i}", GRID[part::2]))
    put(folder, "part-00002.csv", "")
    put(folder, "_SUCCESS", "")


def spark_partitions(folder: Path) -> None:
    for split, pairs in SPLITS.items():
        table = pa.table({"user_id": [u for u, _ in pairs], "item_id": [i for _, i in pairs]})
        put(folder, f"split={split}/part-0.parquet", b"")
        pq.write_table(table, folder / f"split={split}/part-0.parquet")
    put(folder, "_SUCCESS", "")


def matrices(folder: Path) -> None:
    import scipy.sparse

    for split, pairs in SPLITS.items():
        u, i = zip(*pairs, strict=True)
        scipy.sparse.save_npz(folder / f"{split}_mat.npz", scipy.sparse.csr_matrix((np.ones(len(u)), (u, i)), (U, I)))
    np.save(folder / "text_feat.npy", np.arange(20.0).reshape(10, 2))


def plain(folder: Path) -> None:
    put(folder, "log.csv", "user,item,when\n" + rows("{u},{i},{t}"))
    np.save(folder / "visual.npy", np.arange(20.0).reshape(10, 2))


RANDOM = {"split": "random"}
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, dict]] = {  # name: files, importer, options
    f.__name__: (f, name, options)
    for f, name, options in (
        (recbole, "recbole", RANDOM),
        (recbole_benchmark, "recbole", {}),
        (mmrec, "mmrec", {}),
        (lattice, "scipy", {}),
        (matrices, "scipy", {}),
        (movielens_1m, "movielens", RANDOM),
        (movielens_100k, "movielens", RANDOM),
        (movielens_latest, "movielens", RANDOM),
        (lastfm, "hetrec", RANDOM),
        (amazon, "amazon", {"split": "leave-last-out"}),
        (amazon_2023, "amazon", {"split": "temporal"}),
        (elliot, "elliot", {}),
        (cornac, "elliot", RANDOM),
        (invrl, "invrl", {}),
        (spark, "tables", RANDOM),
        (spark_csv, "tables", RANDOM),
        (spark_partitions, "tables", {}),
        (plain, "tables", RANDOM),
    )
}
TITLED = {"recbole": "Title 3", "movielens_1m": "Caf\u00e9 3", "movielens_100k": "Caf\u00e9 3", "lastfm": '"Weird" 3'}
TITLED |= {"movielens_latest": "Film, The 3", "amazon": "It's 3", "amazon_2023": "T3"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(tmp_path: Path, name: str, prepared) -> None:
    make, expected, options = LAYOUTS[name]
    src = tmp_path / "source"
    src.mkdir()
    make(src)
    found, why = importers.recognise(src)
    assert (found, bool(why)) == (expected, True)
    source = importers.importer(found).read(src, Options.of(**options))
    text = name in ("recbole", "recbole_benchmark", "amazon", "amazon_2023")
    if source.user_ids is None:
        assert {
            (u, i) for split in source.splits.values() for u, i in zip(*map(np.ndarray.tolist, split), strict=True)
        } == set(GRID)
    else:
        assert len(everything(source)) == 40
        assert text or everything(source) == set(GRID)
    if name in TITLED:
        assert TITLED[name] in source.item_ids["title"].to_pylist()
    said = "\n".join([*source.said(), *source.readings, *(f.file for f in source.features), *source.files.values()])
    for path in src.iterdir():  # every file was used or is named
        assert path.name in said or path.is_dir() or "part-" in path.name or path.name == "_SUCCESS", path.name
    data: Dataset = prepared(source)
    assert (data.n_users, data.n_items) == (U, I)


def test_mmrec_says_what_it_leaves_out(tmp_path: Path) -> None:
    mmrec(tmp_path)
    source = importers.importer("mmrec").read(tmp_path, Options())
    assert {f.name for f in source.features} == {"image", "sound"}
    said = "\n".join(source.said())
    assert "not used: user_graph_dict.npy" in said
    assert "not used: pairs.npy: whole numbers; --feature pairs=pairs.npy takes them as features" in said


def test_a_core_of_lattice_by_itself_or_one_of_two(tmp_path: Path, prepared) -> None:
    lattice(tmp_path)
    source = importers.importer("scipy").read(tmp_path / "5-core", Options())
    assert [f.name for f in source.features] == ["image"]
    (tmp_path / "0-core").mkdir()
    with pytest.raises(DataError, match=r"holds 0-core and 5-core; give one of these folders"):
        importers.importer("scipy").read(tmp_path, Options())


def test_auto_says_what_it_took_for_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "ml"
    src.mkdir()
    movielens_1m(src)
    assert call("prepare", "auto", src, tmp_path / "out", "--split", "temporal", "--threshold", 2) == 0
    said = capsys.readouterr().out
    for part in (
        "ml is read as movielens: ratings.dat and movies.dat",
        "read: ratings.dat: separated by '::', no header; user = '1', item = '2', rating = '3', time = '4'",
        "read: movies.dat: separated by '::', no header, latin-1; titles = '2' of items '1'",
        "note: times: epoch seconds in '4', 2001-09-09 to 2001-09-09",
        "note: not used: users.dat (another table",
    ):
        assert part in said
    assert call("prepare", "auto", src, tmp_path / "out", "--split", "random", "--users", 4) == 2
    assert "--users does not belong to movielens" in capsys.readouterr().err
    assert call("prepare", "auto", src, tmp_path / "new") == 2
    assert "no split: no column says train, val or test" in capsys.readouterr().err


def test_auto_on_what_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "photos"
    put(src, "holiday.jpg", b"x")
    assert call("prepare", "auto", src, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "photos: in no known layout (recbole, mmrec, " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["amazon", "lattice", "plain"])
def test_dry_run_shows_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make, _, options = LAYOUTS[name]
    src = tmp_path / "source"
    src.mkdir()
    make(src)
    more = [x for key, value in options.items() for x in (f"--{key}", value)]
    assert call("prepare", "auto", src, tmp_path / "out", "--dry-run", *more) == 0
    said = capsys.readouterr().out
    assert "train" in said
    assert "read: " in said
    assert "nothing was written (--dry-run)" in said
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_dry_run_reads_the_first_rows_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a.csv", "user,item\n" + rows("{u},{i}") * 100 + "oh,no\n")
    assert (
        call(
            "prepare",
            "tables",
            tmp_path / "a.csv",
            tmp_path / "out",
            "--split",
            "random",
            "--dry-run",
            "--ids",
            "integers",
        )
        == 0
    )
    assert "at most 1,000 rows of each table: train 32, val 4, test 4" in capsys.readouterr().out


ADDED = '''
"""A format of one line per user: its name, then its items."""

from m3dist.data.importers.common import Source
from m3dist.data.importers.options import ALL

TAKES = ALL


def recognise(src):
    return "it ends in .toy" if src.suffix == ".toy" else None


def read(src, options):
    import numpy as np

    pairs = np.array([(u, int(i)) for u, line in enumerate(src.read_text().splitlines()) for i in line.split()[1:]])
    parts = {s: (pairs[k::3, 0], pairs[k::3, 1]) for k, s in enumerate(("train", "val", "test"))}
    return Source("toy", 2, 3, parts, dict.fromkeys(parts, src.name), readings={src.name: "a line per user"})
'''


def test_an_importer_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "toy_importer.py", ADDED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importers, "IMPORTERS", {"toy": "toy_importer", **importers.IMPORTERS})
    put(tmp_path, "a.toy", "ann 0 1 2\nbob 1 2 0\n")
    for command in ("toy", "auto"):
        assert call("prepare", command, tmp_path / "a.toy", tmp_path / command) == 0
        assert Dataset(tmp_path / command).n_users == 2
    assert "a.toy is read as toy: it ends in .toy" in capsys.readouterr().out
    assert call("prepare", "--help") == 0
    assert "A format of one line per user" in capsys.readouterr().out
    sys.modules.pop("toy_importer")
