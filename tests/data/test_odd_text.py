"""Text tables as people have them: every kind is read whole, or refused by a line that helps."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from data_helpers import everything, grid

from m3dist.data.dataset import DataError
from m3dist.data.importers import tables
from m3dist.data.importers import text as text_tables

ROWS = grid()


def lines(sep: str = ",", header: str | None = "user_id{0}item_id{0}title", title: str = "x", end: str = "\n") -> str:
    """The grid as a table with a title column."""
    out = [] if header is None else [header.format(sep)]
    return "".join(line + end for line in [*out, *(f"{u}{sep}{i}{sep}{title}" for u, i in ROWS)])


def read(folder: Path, name: str, content: str | bytes, **options):
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return tables.read(folder / name, **{"split": "random", **options})


REVIEW = "\n".join(f"line {n}, with a comma; and \tmore" for n in range(60))
NUMBERS = "".join(f"{u}::{i}::{(u + i) % 5}::{1000 + i}\n" for u in range(4) for i in range(10))
READ = {
    # name: file, content, options
    "text over many lines": ("a.csv", lines(title=f'"{REVIEW}"'), {}),
    "text over many lines, tabs": ("a.tsv", lines("\t", title=f'"{REVIEW}"'), {}),
    "a quote inside a quoted text": ("a.csv", lines(title='"he said ""no"",\nand left"'), {}),
    "text that looks like rows": ("a.csv", lines(title='"u9,b9,x\nu8,b8,x"'), {}),
    "single quotes": ("a.csv", lines(title="'a, b\nc'"), {"quote": "single"}),
    "backslashes before quotes": ("a.csv", lines(title=r'"he said \"no\", and left"'), {}),
    "a backslash at the end": ("a.csv", lines(title='"C:\\\\"'), {}),
    "a lone quote in tabs": ("a.tsv", lines("\t").replace("u1\tb2\tx", 'u1\tb2\t"Half'), {}),
    "two lone quotes in tabs": (
        "a.tsv",
        lines("\t").replace("u1\tb2\tx", 'u1\tb2\t"Half').replace("u2\tb7\tx", 'u2\tb7\tquoted"'),
        {},
    ),
    "lone quotes in commas": ("a.csv", lines().replace("u1,b2,x", 'u1,b2,"Half').replace("u2,b7,x", 'u2,b7,"Half'), {}),
    "quotes that close early": ("a.csv", lines(title='"Weird" Al'), {}),
    "inches": ("a.csv", lines(title='5" disk'), {}),
    "apostrophes": ("a.txt", lines("\t", title="don't"), {}),
    "commas in tabs": ("plays.tsv", lines("\t", title="one, two, three, four"), {}),
    "commas in tabs, no header": ("plays.tsv", lines("\t", None, "one, two, three"), {"header": False}),
    "commas in tabs, no suffix that tells": ("plays.txt", lines("\t", title="one, two, three, four"), {}),
    "semicolons": ("a.csv", lines(";"), {}),
    "semicolons and decimal commas": ("a.csv", lines(";", title="4,5"), {}),
    "semicolons and decimal commas, no header": ("a.csv", lines(";", None, "4,5"), {"header": False}),
    "pipes": ("a.csv", lines("|", title="Action, Drama"), {}),
    "spaces": ("a.txt", lines(" "), {}),
    "runs of spaces": ("a.txt", lines("   ").replace("u1 ", "  u1   "), {}),
    "a separator that is named": ("a.txt", lines("~"), {"delimiter": "~"}),
    "a separator of three characters": ("a.txt", lines("|,|"), {"delimiter": "|,|"}),
    "the separator's own line": ("a.csv", "sep=;\n" + lines(";", title="a,b"), {}),
    "empty columns behind": ("a.csv", lines(header="user_id,item_id,title,,").replace("x\n", "x,,\n"), {}),
    "empty columns behind the header alone": ("a.csv", lines(header="user_id,item_id,title,,"), {}),
    "empty columns behind the rows alone": ("a.csv", lines().replace("x\n", "x,,\n"), {}),
    "empty columns behind some rows": ("a.csv", lines().replace("u1,b2,x", "u1,b2,x,,"), {}),
    "an unnamed first column": (
        "a.csv",
        lines(header=",user_id,item_id,title").replace("u", "7,u").replace("7,user", "user"),
        {},
    ),
    "a byte order mark": ("a.csv", codecs.BOM_UTF8 + lines().encode(), {}),
    "Windows line ends": ("a.csv", lines(end="\r\n"), {}),
    "old Mac line ends": ("a.csv", lines(end="\r"), {}),
    "mixed line ends": ("a.csv", lines().replace("x\nu1", "x\r\nu1"), {}),
    "no line end at the end": ("a.csv", lines().removesuffix("\n"), {}),
    "empty lines": ("a.csv", "\n\n" + lines().replace("u2,b2", "\n \nu2,b2") + "\n\n", {}),
    "comments above": ("a.csv", "# from somewhere\n# 40 rows\n" + lines(), {}),
    "comments between": ("a.csv", lines().replace("u2,b2", '# don\'t "mind"\nu2,b2'), {}),
    "a commented header": ("a.tsv", lines("\t", "# user_id{0}item_id{0}title"), {}),
    "latin-1 in a column that is not used": ("a.csv", lines(title="caf\u00e9").encode("latin-1"), {}),
    "UTF-16": ("a.csv", lines(title="caf\u00e9").encode("utf-16"), {}),
    "UTF-16 that is named": ("a.csv", lines().encode("utf-16-be"), {"encoding": "utf-16-be"}),
    "gzip": ("a.csv.gz", gzip.compress(lines().encode()), {}),
    "gzip in two parts": ("a.csv.gz", gzip.compress(lines().encode()[:99]) + gzip.compress(lines().encode()[99:]), {}),
    "gzip by another name": ("a.csv", gzip.compress(lines().encode()), {}),
    "bzip2": ("a.csv.bz2", bz2.compress(lines().encode()), {}),
    "xz": ("a.csv.xz", lzma.compress(lines().encode()), {}),
    "zstd": ("a.csv.zst", pa.compress(lines().encode(), "zstd", asbytes=True), {}),
    "spaces around ids": ("a.csv", lines().replace("u1,", " u1 ,"), {}),
    "typed names": ("a.inter", lines("\t", "user_id:token{0}item_id:token{0}title:token_seq"), {}),
    "a doubled column that is not used": (
        "a.csv",
        lines(header="user_id,item_id,title,title").replace("x\n", "x,y\n"),
        {},
    ),
    "names in other spellings": ("a.csv", lines(header="User ID,Item-Id,title"), {}),
}


@pytest.mark.parametrize("block", [1 << 23, 40])
@pytest.mark.parametrize("kind", READ)
def test_read_whole(tmp_path: Path, kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name, content, options = READ[kind]
    monkeypatch.setattr(text_tables, "BLOCK", block)
    assert everything(read(tmp_path, name, content, **options)) == set(ROWS)


@pytest.mark.parametrize("name", ["ratings.csv", "ratings.dat", "ratings.txt"])
def test_double_colons(tmp_path: Path, name: str) -> None:
    source = read(tmp_path, name, NUMBERS, header=False, threshold=2, at_least_one=True)
    assert everything(source) == {(u, i) for u in range(4) for i in range(10) if (u + i) % 5 >= 2}
    assert "'::'" in source.readings[name]


def test_thirty_thousand_long_reviews(tmp_path: Path) -> None:
    """Blocks end anywhere in quoted text; no word of it becomes an id."""
    rows = "".join(f'u{k % 3000},b{k // 3000},"{REVIEW[:800]}"\n' for k in range(30000))
    source = read(tmp_path, "reviews.csv", "user_id,item_id,text\n" + rows)
    assert (source.n_users, source.n_items) == (3000, 10)
    assert len(everything(source)) == 30000


def test_a_field_larger_than_a_block(tmp_path: Path) -> None:
    content = lines().replace("u1,b2,x", 'u1,b2,"' + 3_000_000 * "long\n" + '"')
    assert everything(read(tmp_path, "a.csv", content)) == set(ROWS)


REFUSED = {
    # name: file, content, options, message
    "a row that is short": (
        "a.csv",
        lines().replace("u1,b2,x", "u1,b2"),
        {},
        r"a.csv, line 14: 2 cells, expected 3 \(user_id, item_id, title\)",
    ),
    "a row that is long": (
        "a.csv",
        lines().replace("u1,b2,x", "u1,b2,x,y"),
        {},
        r"a.csv, line 14: 4 cells, expected 3",
    ),
    "a short row behind long texts": (
        "a.csv",
        lines(title='"1\n2\n3"').replace('u1,b2,"1\n2\n3"', "u1,b2"),
        {},
        r"a.csv, line 38: 2 cells, expected 3",
    ),
    "a header again": (
        "a.csv",
        lines() + lines(),
        {},
        r"a.csv, line 42: 'user_id', 'item_id' looks like the header again",
    ),
    "a header that nobody told of": ("a.csv", lines(), {"header": False}, r"a.csv, line 1: .*looks like a header"),
    "a header with too few names": (
        "a.csv",
        lines(header="user_id,item_id"),
        {},
        r"a.csv, line 2: 3 cells, but the header has 2",
    ),
    "no header": ("a.csv", lines(header=None), {}, r"no user column among u0, b0, x .*say --no-header"),
    "numbers in place of a header": ("a.csv", "1,2\n1,3\n2,2\n", {}, r"first line holds only numbers.*--no-header"),
    "a doubled name": ("a.csv", lines(header="user_id,item_id,user_id"), {}, r"'user_id' stands twice"),
    "nothing": ("a.csv", "", {}, r"a.csv: is empty"),
    "empty lines alone": ("a.csv", "\n\n \n", {}, r"a.csv: is empty"),
    "a header alone": ("a.csv", lines().splitlines()[0], {}, r"a.csv: no interactions"),
    "latin-1 in an id": (
        "a.csv",
        lines().replace("u1,", "é1,").encode("latin-1"),
        {},
        r"a.csv: is not text in utf-8 \(line 12: byte 0xe9\); .*--encoding latin-1",
    ),
    "another encoding than named": ("a.csv", "é".encode("latin-1") * 9, {"encoding": "ascii"}, r"a.csv: "),
    "an encoding that is none": ("a.csv", lines(), {"encoding": "klingon"}, r"a.csv: .*klingon"),
    "UTF-16 without a mark": ("a.csv", lines().encode("utf-16-le"), {}, r"--encoding utf-16-le"),
    "a quote that never closes": (
        "a.csv",
        lines().replace("u1,b2,x", 'u1,b2,"x, y'),
        {},
        r"a.csv, line 14: 4 cells.*quotes are taken as text: the one at line 14",
    ),
    "a quote that never closes, as told": (
        "a.csv",
        lines().replace("u1,b2,x", 'u1,b2,"x, y'),
        {"quote": "double"},
        r"a.csv, line 14: a quote opens and never closes",
    ),
    "a damaged gzip": ("a.csv.gz", gzip.compress(lines().encode())[:-20], {}, r"a.csv.gz: damaged gzip file"),
    "a gzip with another content": ("a.csv.gz", gzip.compress(lines().encode())[:60] + b"?" * 60, {}, r"damaged gzip"),
    "a picture": ("a.csv", b"\x89PNG\r\n\x1a\n" + bytes(99), {}, r"a.csv: an image, expected a table"),
    "a pickle": ("a.csv", b"\x80\x04\x95" + bytes(99), {}, r"a.csv: a pickle, expected a table"),
    "one column": ("a.csv", "user_id\n7\n8\n", {}, r"no item column among user_id"),
    "lists of items by user": (
        "train.txt",
        "0 1 2 3\n1 2\n2 5 6 7 8 9\n",
        {},
        r"train.txt: lines of 2 to 6 numbers, as LightGCN lists a user's items",
    ),
    "a pointer of Git LFS": (
        "a.csv",
        "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 99\n",
        {},
        r"a.csv: a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    ),
    "a web page": ("a.csv", "\n<!DOCTYPE html>\n<html>404</html>", {}, r"a.csv: a web page, not the file itself"),
    "a spreadsheet": ("a.xlsx", b"PK\x03\x04" + bytes(99), {}, r"a.xlsx: a spreadsheet; save it as CSV"),
    "a line below the header": (
        "a.txt",
        lines("|").replace("u0|b0|x", "---|---|---\nu0|b0|x"),
        {},
        r"a.txt, line 2: a line below the header, no row",
    ),
    "cells that are all empty": (
        "a.csv",
        lines().replace("u1,b2,x", "u1,b2,x,\n,,,"),
        {},
        r"a.csv, line 15: the user id is missing",
    ),
    "one column for two": ("a.csv", lines(), {"item_column": "user_id"}, r"column 'user_id' is user and item"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_one_line(tmp_path: Path, kind: str) -> None:
    name, content, options, message = REFUSED[kind]
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, name, content, **options)
    assert "\n" not in str(error.value)


def test_a_zip_of_one_table_or_of_more(tmp_path: Path) -> None:
    for name, members in (("one.zip", ["a/r.csv"]), ("two.zip", ["r.csv", "s.csv"]), ("none.zip", [])):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, lines())
    assert everything(tables.read(tmp_path / "one.zip", split="random")) == set(ROWS)
    with pytest.raises(DataError, match=r"two.zip: a zip of 2 files \(r.csv, s.csv\); unpack it"):
        tables.read(tmp_path / "two.zip", split="random")
    with pytest.raises(DataError, match=r"none.zip: "):
        tables.read(tmp_path / "none.zip", split="random")


def test_what_was_taken_is_said(tmp_path: Path) -> None:
    source = read(tmp_path, "a.tsv", "# made today\n" + READ["a lone quote in tabs"][1])
    said = source.readings["a.tsv"]
    for part in ("tabs", "header", "1 comment lines", "quotes are text (the one at line 15", "user = 'user_id'"):
        assert part in said


def test_quotes_of_two_files_are_told_apart(tmp_path: Path) -> None:
    """One file quotes, the other holds lone quotes: each is read its own way."""
    for split, title in (("train", '"a\nb"'), ("val", '"Half'), ("test", "x")):
        rows = [row for k, row in enumerate(ROWS) if ("train", "val", "test")[min(k % 10, 2)] == split]
        content = "".join(f"{u}\t{i}\t{title}\n" for u, i in rows)
        (tmp_path / f"{split}.tsv").write_text("user\titem\ttitle\n" + content)
    assert len(everything(tables.read(tmp_path))) == 40
