"""Where rows of delimited text end, when quoted fields may span lines.

A quote opens a field only at the field's start, as in the parsers that read the rows afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_NEWLINE, _BACKSLASH = 10, 92


@dataclass
class Quoting:
    """How a file quotes. Begins as the usual quoting and changes where the file shows otherwise, once it is read on.

    why: the place that showed it.
    """

    mode: str = "double"
    given: bool = False
    why: str = ""


@dataclass(frozen=True)
class Ends:
    """What a block's quotes say.

    cut: where the last whole row ends.
    malformed: a quote that closes inside a field, and opened: where it opened, also if it never closes; -1 if none.
    plain: a line break inside quotes between two lines that would be whole rows without quoting; -1 if there is none.
    torn: how many line breaks inside quotes stand between other lines.
    """

    cut: int
    malformed: int = -1
    opened: int = -1
    plain: int = -1
    torn: int = 0


def row_ends(data: bytes, mode: str, delimiter: str, width: int, final: bool) -> Ends:
    """Look at a block that begins at a row's start. width: cells of a row; final: nothing follows the block."""
    quote = _quote(mode)
    if not quote or quote not in data:
        return Ends(len(data) if final else data.rfind(b"\n") + 1)
    text = np.frombuffer(data, dtype=np.uint8)
    opens, closes, malformed = _pairs(text, mode, ord(delimiter))
    newline, inside = _newlines(text, opens, closes)
    outside = newline[~inside]
    cut = len(data) if final else int(outside[-1]) + 1 if len(outside) else 0
    opened = int(opens[np.searchsorted(opens, malformed) - 1]) if malformed >= 0 else -1
    if final and malformed < 0 and len(opens) > len(closes):
        opened = int(opens[-1])
    return Ends(cut, malformed, opened, *_broken(text, newline, inside & (newline < cut), ord(delimiter), width))


def line_breaks(data: bytes, mode: str, delimiter: str) -> np.ndarray:
    """Positions of the line breaks that end a row."""
    text = np.frombuffer(data, dtype=np.uint8)
    if not _quote(mode) or _quote(mode) not in data:
        return np.flatnonzero(text == _NEWLINE)
    newline, inside = _newlines(text, *_pairs(text, mode, ord(delimiter))[:2])
    return newline[~inside]


def _quote(mode: str) -> bytes:
    return {"none": b"", "single": b"'"}.get(mode, b'"')


def _newlines(text: np.ndarray, opens: np.ndarray, closes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all line breaks, and which of them stand inside quotes."""
    newline = np.flatnonzero(text == _NEWLINE)
    if not len(opens):
        return newline, np.zeros(len(newline), dtype=bool)
    before = np.searchsorted(opens, newline)
    limits = np.append(closes, len(text)) if len(opens) > len(closes) else closes
    return newline, (before > 0) & (newline < limits[np.maximum(before - 1, 0)])


def _pairs(text: np.ndarray, mode: str, delimiter: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Positions of opening and of closing quotes, and the first closing quote inside a field (-1 if none)."""
    at = np.flatnonzero(text == _quote(mode)[0])
    if mode == "backslash":
        at = at[~_escaped(text, at)]
    if not len(at):
        return at, at, -1
    last = len(text) - 1
    before, after = text[np.maximum(at - 1, 0)], text[np.minimum(at + 1, last)]
    starts = (at == 0) | (before == delimiter) | (before == _NEWLINE)
    ends = (at == last) | (after == delimiter) | (after == _NEWLINE)
    touching = np.zeros(len(at), dtype=bool)  # the next quote follows at once: together they are a quote in a field
    if mode != "backslash":
        touching[:-1] = np.diff(at) == 1
    joined = np.append(False, touching[:-1])
    if (starts | joined)[0::2].all() and (ends | touching)[1::2].all():
        return at[0::2], at[1::2], -1
    opens, closes, malformed = [], [], -1
    inside, skip = False, False
    for position, start, end, twice in zip(at.tolist(), starts.tolist(), ends.tolist(), touching.tolist(), strict=True):
        if skip:
            skip = False
        elif not inside:
            if start:
                inside = True
                opens.append(position)
        elif twice:
            skip = True
        else:
            inside = False
            closes.append(position)
            if not end and malformed < 0:
                malformed = position
    return np.array(opens, dtype=np.int64), np.array(closes, dtype=np.int64), malformed


def _escaped(text: np.ndarray, at: np.ndarray) -> np.ndarray:
    """bool: quotes behind an odd number of backslashes."""
    out = (at > 0) & (text[np.maximum(at - 1, 0)] == _BACKSLASH)
    for i in np.flatnonzero(out):
        start = end = int(at[i])
        while start and text[start - 1] == _BACKSLASH:
            start -= 1
        out[i] = (end - start) % 2 == 1
    return out


def _broken(text: np.ndarray, newline: np.ndarray, inside: np.ndarray, delimiter: int, width: int) -> tuple[int, int]:
    """Line breaks inside quotes: the first between two lines of `width` cells (-1), how many are between others."""
    if not inside.any():
        return -1, 0
    count = np.diff(np.searchsorted(np.flatnonzero(text == delimiter), np.concatenate([[0], newline, [len(text)]])))
    whole = count == width - 1  # by line: cells if quotes were text
    between = whole[:-1] & whole[1:]
    plain = newline[inside & between]
    return (int(plain[0]) if len(plain) else -1), int((inside & ~between).sum())
