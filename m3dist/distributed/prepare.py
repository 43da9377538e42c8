"""`m3dist prepare --engine ray`: the data set that the embedded engine writes, byte for byte, by tasks on Ray.

Plain tasks over files and over ranges of users, not Ray Data: ids are numbered in their order, splits go by user, and
ties by the order of rows, so what is needed is a shuffle by ranges of numbered users that keeps that order. Ray
Data's blocks have none, and its sort would carry every id as it is written.

1. scan: each file's rows to disk as codes of its own ids, by the reader of the embedded engine; read again, as that
   does, when a file shows that ids or times are not what they were taken for;
2. number: this process numbers the distinct ids, file by file, and adds up users' interactions;
3. shuffle: each file's rows in order of range, so every range finds its rows in every file;
4. ranges: few interactions left out, duplicates dropped, split; what all must agree on (a k-core's degrees, held-out
   items, where time is cut) is counts that this process adds up;
5. this process writes the ranges' sorted keys behind each other.

A task holds one file's distinct ids and a block of rows, or one range (ROWS interactions, or a user who has more).
This process holds all distinct ids, and about 30 bytes a user and an item. Beside the destination the tasks keep 24
bytes an interaction, up to 48 with times and a k-core, on a file system that all nodes mount; they go when the data set
is written.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from m3dist.data.dataset import SPLITS, DataError
from m3dist.data.importers import common, kcore, ranges, reader, scan
from m3dist.data.importers import splits as sp
from m3dist.data.importers.catalogue import Catalogue
from m3dist.data.importers.ids import RowIds, new_ids
from m3dist.data.importers.interactions import Interactions, held, need_rows, roles_of
from m3dist.data.importers.layout import UNSPLIT, Layout, find_layout
from m3dist.data.importers.learnt import Learnt, Pass
from m3dist.data.importers.opening import open_table
from m3dist.data.importers.options import Options
from m3dist.data.importers.quotes import Quoting
from m3dist.data.importers.ranges import Keep, Late, Range
from m3dist.data.importers.rows import BadRows
from m3dist.data.importers.scan import Scanned, Unit
from m3dist.data.importers.values import Reread
from m3dist.data.keys import Counted, Overlap, Stored
from m3dist.data.place import Place
from m3dist.distributed.placement import connect
from m3dist.training.tracking import RunFailed

ROWS = 1 << 22  # interactions of a range of users
_TRIES = 3  # more, of a task that died
_AHEAD = 4  # tasks that are handed to Ray, per CPU of the cluster


def prepare(name: str, src: Path, dst: str | Path, options: Options) -> dict[str, Any]:
    """Prepare tables at `src` as `dst`, both on a file system that all nodes mount; returns dataset.json's content.

    name: the importer, which must be `tables`. Raises DataError as the embedded engine does, RunFailed where a task
    kept dying.
    """
    if name != "tables":
        raise DataError(f"--engine ray reads tables, and {src.name} is read as {name}; leave --engine ray out")
    plan = options.plan
    plan.check()
    options.written.check()
    if plan.file_order and plan.test_from:
        raise DataError("--engine ray does not take --test-from with --file-order; leave --engine ray out")
    layout = find_layout(src.absolute(), options)  # tasks have another current folder
    connect()
    work = Place(dst)
    work.open()
    try:
        source = _read(layout, options, work.tmp)
        return common.write(source, dst, options.written.overlap, options.written.zero_rows)
    finally:
        work.close()


def _each(work: Callable[..., Any], tasks: Sequence[tuple]) -> Generator[Any, None, None]:
    """work(*task) of every task by Ray, in order, some ahead. Raises what the first task that failed raised."""
    remote = ray.remote(work).options(num_cpus=1, max_retries=_TRIES, scheduling_strategy="SPREAD")  # type: ignore[arg-type]
    waiting, running = iter(tasks), deque[Any]()
    ahead = _AHEAD * int(ray.cluster_resources().get("CPU", 1))
    running.extend(remote.remote(*task) for task in itertools.islice(waiting, ahead))
    try:
        while running:
            yield ray.get(running.popleft())
            running.extend(remote.remote(*task) for task in itertools.islice(waiting, 1))
    except ray.exceptions.RayTaskError as error:  # whose text is a trace of the task's process
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise RunFailed(f"a task of {inspect.getmodule(work).__name__} kept dying: {error}".splitlines()[0]) from None  # type: ignore[union-attr]
    except KeyboardInterrupt:
        running.clear()
        raise
    finally:
        for task in running:  # they write into a folder that is about to go
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(task)


@dataclass
class _Scanned:
    """A pass over all files: what was read, the items, and each file's folder and result."""

    run: Pass
    items: Catalogue
    found: Interactions
    used: set[Path]
    folders: list[Path]
    results: list[Scanned]
    degrees: np.ndarray  # of users, by code


def _read(layout: Layout, options: Options, work: Path) -> common.Source:
    learnt = Learnt.of(options)
    while True:
        run = Pass(options, learnt, BadRows(options.rows.on_bad_row == "drop"), notes=[*layout.notes])
        try:
            scanned = _scan(layout, run, work)
            placed = scanned.items.read_vectors()
        except Reread:
            learnt.again()
            continue
        break
    firsts = [np.zeros(int(result.first), np.int32) for result in scanned.results]
    name = next(iter(layout.interactions.values())).name
    ids, dense_user, dense_item = reader.known(scanned.found, scanned.items, (placed, firsts), name)
    scanned.used |= reader.finish_features(ids, layout, run)
    given = _shuffle(scanned, (dense_user, dense_item), len(ids.items), work)
    keep = None
    if options.plan.min_user or options.plan.min_item:
        keep = _core(given, options.plan)
        ids.keep(keep.users, keep.items, run)
    stored, result = _divide(given, keep, layout, run)
    source = reader.source(ids, result, layout, run, scanned.used)
    source.stored = stored
    return source


def _scan(layout: Layout, run: Pass, work: Path) -> _Scanned:
    """One pass over all files. Raises DataError, and Reread with what was learnt."""
    items = Catalogue(layout, run)
    found = Interactions(new_ids(run.learnt.users.mode))
    used = {path for path in (layout.items, layout.titles) if path}
    units: list[Unit] = []
    for split, path in layout.interactions.items():
        table = open_table(path, run.options.text, run.learnt.quotings)
        roles = roles_of(table, split, run)
        found.time_name = roles.time
        files = table.files()
        used |= {path, *files}
        units += [Unit(split, path, file, roles, held(table)) for file in files]
    folders = [work / f"file-{n}" for n in range(len(units))]
    known = ray.put((None if items.codes.open else items.codes.ids, items.codes.unknown))
    results: list[Scanned] = []
    while len(results) < len(units):
        # the first file with rows says what times are, so it is read before the others
        alone = run.options.plan.needs_times and not run.learnt.times.mode
        here = slice(len(results), len(results) + 1 if alone else len(units))
        kinds = Learnt(run.learnt.users, run.learnt.items, run.learnt.times, run.learnt.quotings)
        tasks = [(u, run.options, kinds, known, f) for u, f in zip(units[here], folders[here], strict=True)]
        with contextlib.closing(_each(scan.scan, tasks)) as done:
            for unit, result in zip(units[here], done, strict=True):
                _learn(run, unit, result)
                results.append(result)
    for split, path in layout.interactions.items():
        table, mine = open_table(path, run.options.text, run.learnt.quotings), [u.split == split for u in units]
        run.readings[table.name] = f"{table.reading}; {units[mine.index(True)].roles.said()}"
        need_rows(sum(r.count for r, own in zip(results, mine, strict=True) if own), table.name, run.bad)
    found.below = sum(result.below for result in results)
    if isinstance(items.codes.ids, RowIds):
        items.codes.ids.n = max(items.codes.ids.n, *(result.items_n for result in results))
    return _Scanned(run, items, found, used, folders, results, _number(found, items, folders))


def _learn(run: Pass, unit: Unit, result: Scanned) -> None:
    """Add what one file taught, in the order of files. Raises DataError, and Reread."""
    mine, theirs = run.learnt, result.learnt
    mine.quotings[unit.file] = theirs.quotings.get(unit.file, Quoting())
    for kind, other in ((mine.users, theirs.users), (mine.items, theirs.items)):
        kind.mode, kind.odd, kind.respelled = other.mode, other.odd, kind.respelled or other.respelled
    mine.times.mode = theirs.times.mode or mine.times.mode
    if result.reread:
        raise Reread()
    mine.times.add(theirs.times)
    for reason, count in result.bad.counts.items():
        run.bad.add(reason, count, result.bad.first[reason])


def _number(found: Interactions, items: Catalogue, folders: list[Path]) -> np.ndarray:
    """Give all distinct ids their codes; interactions of users by code, int64 [U]."""
    degrees = np.zeros(0, dtype=np.int64)
    for folder in folders:
        codes = scan.number(folder, "user", found.users)
        degrees = np.concatenate([degrees, np.zeros(max(0, int(codes.max(initial=-1)) + 1 - len(degrees)), np.int64)])
        degrees[codes] += np.load(folder / "user.degree.npy")
        if items.codes.open:
            scan.number(folder, "item", items.codes.ids)
    return degrees


def _shuffle(
    scanned: _Scanned, dense: tuple[np.ndarray | None, np.ndarray | None], n_items: int, work: Path
) -> list[Range]:
    """Put every file's rows in order of ranges of users."""
    dense_user = dense[0] if dense[0] is not None else np.arange(len(scanned.degrees), dtype=np.int32)
    degree_U = np.empty_like(scanned.degrees)
    degree_U[dense_user] = scanned.degrees
    ends, bounds = np.cumsum(degree_U), [0]
    while bounds[-1] < len(ends):
        before = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(ends, before + ROWS, side="right"))))
    plan, kind = scanned.run.options.plan, scanned.run.learnt.times
    times = kind.dtype if plan.needs_times else None
    first = np.concatenate([[0], np.cumsum([result.kept for result in scanned.results])])
    held = ray.put((dense_user, dense[1] if scanned.items.codes.open else None))
    edges = np.array(bounds)
    tasks = [(f, held, edges, int(row), times) for f, row in zip(scanned.folders, first[:-1], strict=True)]
    for _ in _each(scan.shuffle, tasks):
        pass
    for folder in scanned.folders:
        scan.forget(folder)
    folders = tuple(scanned.folders)
    return [
        Range(n, (low, high), n_items, folders, times, work / f"range-{n}")
        for n, (low, high) in enumerate(itertools.pairwise(bounds))
    ]


def _core(given: list[Range], plan: sp.Plan) -> Keep:
    """Who stays when users and items with few interactions are left out until none is left to leave out."""
    keep = Keep(np.ones(given[-1].users[1], dtype=bool), np.ones(given[0].n_items, dtype=bool))
    while True:
        held = ray.put(keep)
        degrees, degree_I = [], np.zeros(given[0].n_items, dtype=np.int64)
        for mine_U, mine_I in _each(ranges.degrees, [(part, held) for part in given]):
            degrees.append(mine_U)
            degree_I += mine_I
        degree_U = np.concatenate(degrees)
        few_U, few_I = keep.users & (degree_U < plan.min_user), keep.items & (degree_I < plan.min_item)
        if not few_U.any() and not few_I.any():
            return keep
        if not degree_U.any():
            raise kcore.nothing_left(plan)
        keep = Keep(keep.users & ~few_U, keep.items & ~few_I)


def _divide(given: list[Range], keep: Keep | None, layout: Layout, run: Pass) -> tuple[Stored, sp.Split]:
    """Split all ranges; their keys, and what a person should know."""
    plan = run.options.plan
    source = layout.interactions[UNSPLIT].name if plan.split else ""
    held_I, shared = None, ray.put(keep)
    if plan.cold:
        found = functools.reduce(np.logical_or, _each(ranges.seen, [(part, shared) for part in given]))
        held_I = sp.held_out_items(np.flatnonzero(found), plan, source)
        held_I = np.concatenate([held_I, np.zeros(len(found) - len(held_I), np.int8)])
    everyone = ray.put(held_I)
    divided = list(_each(ranges.divide, [(part, plan, shared, everyone) for part in given]))
    blocks = {split: _Blocks(given, split) for split in SPLITS}
    if not plan.split:
        return Stored(blocks, sum((part.counted for part in divided), Counted())), sp.Split({}, 0, [])
    kept = {split: sum(part.kept[split] for part in divided) for split in SPLITS}
    duplicates = sum(part.rows for part in divided) - sum(kept.values())
    if plan.split == "temporal":
        kept = _cut(given, kept["train"], plan, reader.cuts_of(run))
    sp.need_all(kept, plan, source)
    overlaps = {pair: Overlap(left=kept[pair[1]]) for pair in Counted().overlaps}
    counted = Counted(kept, overlaps=overlaps)
    return Stored(blocks, counted), sp.Split({}, duplicates, sp.small_note(sum(part.small for part in divided)))


@dataclass(frozen=True)
class _Blocks:
    """The keys of one split, a range at a time."""

    given: list[Range]
    split: str

    def __iter__(self) -> Iterator[np.ndarray]:
        for part in self.given:
            yield ranges.stored(part, self.split)


def _cut(given: list[Range], n: int, plan: sp.Plan, cuts: sp.Cuts) -> dict[str, int]:
    """Cut by time over all ranges; interactions by split. n: those that are not held out."""
    train, val, _ = plan.ratios
    numbers, before = [round(n * train), round(n * (train + val))], None
    if cuts.test is not None:
        before = cuts.test
        n = sum(int(found.sum()) for found in _each(ranges.digits, [(part, (0, 0), before) for part in given]))
        numbers = [round(n * (train / (train + val)))] if cuts.val is None else []
    late: list[list[Late]] = [[] for _ in given]
    for number in numbers:
        if number < n:
            for mine, one in zip(late, _bound(given, number, before), strict=True):
                mine.append(one)
    counts = list(_each(ranges.cut, [(part, cuts, mine) for part, mine in zip(given, late, strict=True)]))
    return {split: sum(part[split] for part in counts) for split in SPLITS}


def _bound(given: list[Range], number: int, before: float | None) -> list[Late]:
    """Where all but the `number` earliest times begin, for every range: found digit by digit from counts."""
    value, less = 0, 0
    for length in range(ranges.DIGITS):
        counts = list(_each(ranges.digits, [(part, (value, length), before) for part in given]))
        ends = less + np.cumsum(np.sum(counts, axis=0))
        digit = int(np.searchsorted(ends, number, side="right"))
        less = int(ends[digit - 1]) if digit else less
        value = value << ranges.DIGIT | digit
    out, skip = [], number - less
    for found in counts:
        out.append(Late(value, min(skip, int(found[digit]))))
        skip -= out[-1].skip
    return out
