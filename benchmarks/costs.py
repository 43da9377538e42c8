"""FLOPs and bytes of each step by formula: the matrix products that the mathematics needs, and the memory that must
move once (rows of tables with Adam's moments in and out, rows of features in; scores can stay in cache).

Letters: B interactions, N negatives, d id width, c content width, w width of an item's content, s neighbours drawn,
U and R distinct rows of users and items, D representation width, C items under contrast, h hidden width of CLUB.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    flop: float = 0.0
    moved: float = 0.0  # bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flop + other.flop, self.moved + other.moved)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flop * times, self.moved * times)


def product(rows: float, inner: float, columns: float, passes: int = 3) -> float:
    """FLOPs of a matrix product with `passes` - 1 of its two gradients."""
    return passes * 2 * rows * inner * columns


@dataclass(frozen=True)
class Samples:
    """B interactions of a step, N negatives, s neighbours of each positive."""

    B: int
    N: int
    s: int = 0


@dataclass(frozen=True)
class Rows:
    """U and R distinct rows of users and items, d columns of ids and c of content beside them; c = 0: content is added
    to ids."""

    d: int
    c: int
    U: int
    R: int


def backbone(samples: Samples, rows: Rows, w: int, read: int | None = None) -> Cost:
    """One step of a backbone on content w wide, of which it reads `read` columns, by default all, from memory."""
    B, N, s, k = samples.B, samples.N, samples.s, rows.d + rows.c
    flop = product(B, k, N) + 3 * 2 * B * (1 + s) * k + product(rows.R, w, rows.c or rows.d, 2)
    tables = 6 * 4 * (rows.U * k + rows.R * rows.d)
    return Cost(flop, tables + 4 * rows.R * (w if read is None else read))


def align(C: int, widths: list[int], D: int, h: int, identity: bool) -> Cost:
    """What stage 1 adds to the step of a backbone on all features, as wide as z: encoders and heads, contrast and CLUB
    of C items. Encoders are linear, so that those of all rows are one map of the features with the projection."""
    flop = product(D, D, sum(widths)) + product(C, sum(widths), D, 2) + product(C, D, D)  # that map; f_all and g of it
    flop += product(C, D, C)  # common x common
    for width in widths:
        v = width if identity else D
        flop += product(C, width, D, 2) + product(C, D, D)
        if not identity:
            flop += product(C, D, D)
        flop += product(C, D, C) * 2  # z x common, z x z
        flop += product(C, D, h, 2) + 2 * product(C, h, v, 2)  # CLUB's bound, through a fixed q
        flop += product(C, D, h, 2) + 2 * product(C, h, v, 3)  # and q's likelihood
    return Cost(flop)


def stage2(samples: Samples, rows: Rows, widths: list[int]) -> Cost:
    """One step of the environment models, or of the masks, of representations `widths` wide: frozen ids are scored once
    for all (d = 0: not at all), each row's query and pull meet the negatives, and its content the projection and its
    gradient."""
    B, N, d, c = samples.B, samples.N, rows.d, rows.c
    flop = product(B, d, N, 1) + sum(product(B, c, D, 2) + product(B, D, N, 2) for D in widths)
    return Cost(flop, 4 * (rows.U * (d + c) + rows.R * (d + sum(widths))))


def ranking(users: int, items: int, d: int, models: int = 1) -> Cost:
    """Scores of all users and items; the items' matrix fits a cache, the lists are small."""
    return Cost(product(users, d, items, 1) * models, 4 * models * (users + items) * d)


def replicated_bytes(G_items: float, d: int, members: int = 1) -> float:
    """What a worker gives to a step's all-reduce: a gradient for every item's row that the global batch touches. It
    owns the rows of its users."""
    return 4 * members * G_items * d


def sharded_bytes(R_items: float, d: int, W: int, members: int = 1) -> float:
    """What a worker sends in a step: ids of the items' rows that it reads and others own, as many rows of its own to
    others, and gradients back; rows are spread evenly. It owns the rows of its users."""
    return (W - 1) / W * R_items * (4 + 2 * 4 * members * d)


def table_bytes(users: float, items: float, k: int, d: int, members: int = 1) -> float:
    """Of one worker: rows of its users, k wide, and of items, d wide, Adam's two moments, and the copy of the best
    rows."""
    return 4 * 4 * members * (users * k + items * d)
