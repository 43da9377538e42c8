"""Folders in the layouts that `m3dist prepare` knows by name, all with the same forty interactions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
