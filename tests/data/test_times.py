"""Times of every kind order the same way, and what was taken for what is said."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3dist.data.dataset import DataError
from m3dist.data.importers import tables

START = dt.datetime(2014, 8, 21, 21, 18)
ORDER = np.random.default_rng(3).permutation(40)  # of the rows, which stand by user and item
WHEN = [START + dt.timedelta(hours=int(h)) for h in ORDER]
SECONDS = [int(t.replace(tzinfo=dt.UTC).timestamp()) for t in WHEN]
EXPECTED = {"train": set(range(32)), "val": set(range(32, 36)), "test": set(range(36, 40))}


def zoned(hours: int) -> list[str]:
    zone = dt.timezone(dt.timedelta(hours=hours))
    return [t.replace(tzinfo=dt.UTC).astimezone(zone).isoformat() for t in WHEN]


TEXTS: dict[str, list[Any]] = {
    "iso": [t.isoformat() for t in WHEN],
    "iso with a blank": [str(t) for t in WHEN],
    "minutes": [t.strftime("%Y-%m-%d %H:%M") for t in WHEN],
    "Z": [t.isoformat() + "Z" for t in WHEN],
    "small z": [t.isoformat() + "z" for t in WHEN],
    "UTC": [f"{t} UTC" for t in WHEN],
    "offset": zoned(0),
    "another offset": zoned(-7),
    "offset without colon": [f"{t}+0000" for t in WHEN],
    "offset behind a blank": [f"{t} +00:00" for t in WHEN],
    "mixed offsets": [(zoned(-7) if k % 2 else zoned(5))[k] for k in range(40)],
    "with a zone and without": [(zoned(-7) if k % 2 else [str(t) for t in WHEN])[k] for k in range(40)],
    "milliseconds": [f"{t.isoformat()}.{k % 7}00" for k, t in enumerate(WHEN)],
    "microseconds, Z": [f"{t.isoformat()}.{k % 7:06}Z" for k, t in enumerate(WHEN)],
    "nanoseconds": [f"{t.isoformat()}.{k % 7:09}" for k, t in enumerate(WHEN)],
    "comma before the fraction": [f'"{t.isoformat()},500"' for t in WHEN],
    "seconds": SECONDS,
    "seconds with fractions": [s + 0.25 for s in SECONDS],
    "seconds written as floats": [float(s) for s in SECONDS],
    "milliseconds since 1970": [s * 1000 + 7 for s in SECONDS],
    "microseconds since 1970": [s * 10**6 + 7 for s in SECONDS],
    "nanoseconds since 1970": [s * 10**9 + 7 for s in SECONDS],
    "exponents": [f"{s / 1e9:.9f}e9" for s in SECONDS],
    "plain numbers": [int(h) for h in ORDER],
    "plain fractions": [h / 7 for h in ORDER.tolist()],
    "blanks around": [f"  {s} " for s in SECONDS],
}
SAID = {
    "iso": "without a zone, taken as UTC in 'when', 2014-08-21 to 2014-08-23",
    "Z": "times: dates and times in 'when', 2014-08-21",
    "with a zone and without": "those without a zone taken as UTC",
    "seconds": "epoch seconds in 'when', 2014-08-21 to 2014-08-23",
    "milliseconds since 1970": "epoch milliseconds in 'when', 2014-08-21",
    "microseconds since 1970": "epoch microseconds in 'when', 2014-08-21",
    "nanoseconds since 1970": "epoch nanoseconds in 'when', 2014-08-21",
    "plain numbers": "plain numbers in 'when', 0 to 39",
}


def write_csv(path: Path, values: list[Any], header: str = "user,item,when") -> Path:
    rows = "".join(f"{k // 10},{k % 10},{value}\n" for k, value in enumerate(values))
    path.write_text(header + "\n" + rows)
    return path


def positions(source) -> dict[str, set[int]]:
    """Rows of each split by the order of their times."""
    out = {}
    for split, (user, item) in source.splits.items():
        users, items = source.user_ids.to_pylist(), source.item_ids.to_pylist()
        out[split] = {int(ORDER[users[u] * 10 + items[i]]) for u, i in zip(user, item, strict=True)}
    return out


@pytest.mark.parametrize("kind", TEXTS)
def test_text_and_json(tmp_path: Path, kind: str) -> None:
    source = tables.read(write_csv(tmp_path / "a.csv", TEXTS[kind]), split="temporal", time_column="when")
    assert positions(source) == EXPECTED
    values = [v.strip(' "') if isinstance(v, str) else v for v in TEXTS[kind]]
    rows = [{"user": k // 10, "item": k % 10, "when": value} for k, value in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert positions(tables.read(tmp_path / "a.jsonl", split="temporal", time_column="when")) == EXPECTED
    note = next(note for note in source.notes if note.startswith("times: "))
    assert SAID.get(kind, "times: ") in note


TYPES = {
    "s": pa.array(WHEN, pa.timestamp("s")),
    "ns": pa.array(WHEN, pa.timestamp("ns")),
    "us, Paris": pa.array([t.replace(tzinfo=dt.UTC) for t in WHEN], pa.timestamp("us", "Europe/Paris")),
    "int32": pa.array(SECONDS, pa.int32()),
    "uint64": pa.array([s * 10**9 for s in SECONDS], pa.uint64()),
    "float": pa.array([float(s) for s in SECONDS]),
    "string": pa.array([f"{t}Z" for t in WHEN]),
    "dictionary": pa.array([f"{t}Z" for t in WHEN]).dictionary_encode(),
    "large string": pa.array([str(s) for s in SECONDS], pa.large_string()),
}


@pytest.mark.parametrize("kind", TYPES)
def test_parquet(tmp_path: Path, kind: str) -> None:
    table = pa.table({"user": [k // 10 for k in range(40)], "item": [k % 10 for k in range(40)], "when": TYPES[kind]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert positions(tables.read(tmp_path / "a.parquet", split="temporal", time_column="when")) == EXPECTED


@pytest.mark.parametrize("kind", ["date32", "date64", "text", "yyyymmdd"])
def test_dates(tmp_path: Path, kind: str) -> None:
    days = [dt.date(2020, 1, 1) + dt.timedelta(days=int(d)) for d in ORDER]
    if kind in ("date32", "date64"):
        values = pa.array(days, getattr(pa, kind)())
        table = pa.table({"user": [k // 10 for k in range(40)], "item": [k % 10 for k in range(40)], "date": values})
        pq.write_table(table, tmp_path / "a.parquet")
        path = tmp_path / "a.parquet"
    else:
        texts = [day.isoformat() if kind == "text" else day.strftime("%Y%m%d") for day in days]
        path = write_csv(tmp_path / "a.csv", texts, "user,item,date")
    assert positions(tables.read(path, split="temporal")) == EXPECTED
    source = tables.read(path, split="temporal", test_from="2020-02-06")
    assert positions(source)["test"] == {36, 37, 38, 39}


def test_other_dates_by_their_format(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [t.strftime("%d.%m.%Y %H:%M") for t in WHEN])
    with pytest.raises(DataError, match=r"a.csv, line 2: time '2\d.08.2014 \d\d:18' is not a number.*--time-format"):
        tables.read(path, split="temporal", time_column="when")
    source = tables.read(path, split="temporal", time_format="%d.%m.%Y %H:%M", time_column="when")
    assert positions(source) == EXPECTED


ODD = {
    "missing": ("", r"line 6: the time is missing"),
    "word": ("soon", r"line 6: time 'soon' is not a number"),
    "a date among numbers": ("2014-08-21", r"line 6: time '2014-08-21' is not a number"),
    "another unit": (
        str(SECONDS[0] * 1000),
        r"line 6: a time in epoch milliseconds, but a.csv, line 2 has one in epoch seconds",
    ),
}
ODD_DATES = {
    "a number among dates": ("1408655880", r"line 6: time '1408655880' is not an ISO 8601 date"),
    "no such month": ("2014-13-21", r"line 6: time '2014-13-21' is not an ISO 8601 date"),
    "the end of time": ("9999-12-31", r"line 6: time '9999-12-31' is not an ISO 8601 date"),
    "ten digits of a fraction": ("2014-08-21T00:00:00.0123456789", r"line 6: time .* is not an ISO 8601 date"),
}


@pytest.mark.parametrize("kind", [*ODD, *ODD_DATES])
def test_odd_times_are_refused_or_counted(tmp_path: Path, kind: str) -> None:
    values = list(map(str, SECONDS if kind in ODD else TEXTS["iso"]))
    value, message = (ODD | ODD_DATES)[kind]
    values[4] = value
    path = write_csv(tmp_path / "a.csv", values)
    with pytest.raises(DataError, match=message):
        tables.read(path, split="temporal", time_column="when")
    if kind == "another unit":
        return
    source = tables.read(path, split="temporal", time_column="when", on_bad_row="drop")
    assert sum(len(user) for user, _ in source.splits.values()) == 39
    assert any("left out 1 rows" in note for note in source.notes)


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        *(("iso", "2014-08-23T09:18:00"), ("Z", "2014-08-23 09:18Z")),
        *(("another offset", "2014-08-23T02:18:00-07:00"), ("seconds", "2014-08-23T09:18:00")),
        *(("seconds", str(min(SECONDS) + 36 * 3600)), ("plain numbers", "36")),
        *(("milliseconds since 1970", "2014-08-23T09:18:00"), ("nanoseconds since 1970", "2014-08-23T09:18:00")),
    ],
)
def test_test_begins_at_a_date(tmp_path: Path, kind: str, moment: str) -> None:
    path = write_csv(tmp_path / "a.csv", TEXTS[kind])
    source = tables.read(path, split="temporal", time_column="when", test_from=moment)
    assert positions(source) == EXPECTED  # val: a ninth of what is before, by the shares of train and val


def test_val_may_begin_at_a_date_too(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", TEXTS["plain numbers"])
    source = tables.read(path, split="temporal", time_column="when", test_from="30", val_from="20")
    assert positions(source) == {"train": set(range(20)), "val": set(range(20, 30)), "test": set(range(30, 40))}
    for more, message in (
        ({"test_from": "2014-01-01"}, r"--test-from '2014-01-01': the times are plain numbers, so give a number"),
        ({"test_from": "soon"}, r"--test-from 'soon': expected a date"),
        ({"test_from": "99"}, r"test is empty: the cuts leave nothing there"),
        ({"val_from": "20"}, r"--val-from without --test-from"),
    ):
        with pytest.raises(DataError, match=message):
            tables.read(path, split="temporal", time_column="when", **more)
    with pytest.raises(DataError, match=r"--split temporal"):
        tables.read(path, split="random", test_from="30")
