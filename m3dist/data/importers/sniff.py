"""How a text table is written: separator, header, comments. Found by a vote over many lines, never from one."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from m3dist.data.dataset import DataError
from m3dist.data.importers import files
from m3dist.data.importers import names as known
from m3dist.data.importers.options import Text

SEPARATORS = ("\t", "::", ";", ",", "|", " ")  # " " stands for a run of spaces
NAMED = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";", "pipe": "|"}
SAID = {"\t": "tabs", " ": "spaces", ",": "commas", ";": "semicolons", "|": "pipes"}
_NATURAL = {".tsv": "\t", ".tab": "\t", ".inter": "\t", ".item": "\t", ".user": "\t", ".csv": ",", ".psv": "|"}
_SAMPLE, _LINES = 1 << 18, 500
MOST_COLUMNS = 100_000
LONGEST = 32 << 20  # bytes of one row, so that a small compressed file cannot fill the memory
_COMMENTS = ("#", "%")
csv.field_size_limit((1 << 31) - 1)  # of the whole process: Python's own 128 KiB is less than a long review


@dataclass(frozen=True)
class Dialect:
    """How a text table is written. skip: bytes (UTF-8, with \\n alone) and line: lines before the first row."""

    delimiter: str
    columns: tuple[str, ...]
    header: bool
    encoding: str
    skip: int
    line: int
    comments: int = 0


def sniff(path: Path, text: Text) -> Dialect:
    """Look at the first lines of a text table. Raises DataError."""
    encoding = text.encoding or _encoding(path)
    sample, whole = _sample(path, encoding)
    raw = sample.split(b"\n")
    if not whole or not raw[-1]:
        raw = raw[:-1]  # a line that is cut, or nothing
    lines = [line.decode("utf-8", "replace") for line in raw]
    start, comments, delimiter = _preamble(lines, text)
    if start == len(lines):
        raise DataError(f"{path.name}: is empty; expected a table")
    body = lines[start : start + _LINES]
    try:
        delimiter = delimiter or _vote(body, files.suffix(path))
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    quote = _quoted(body, delimiter, text)
    rows = cells(body, delimiter, quote)
    width, _ = _common(rows)
    if width > MOST_COLUMNS:
        raise DataError(f"{path.name}: {width:,} columns; expected at most {MOST_COLUMNS:,}, is it a table?")
    found = Dialect(delimiter, (), False, encoding, _bytes(raw[:start]), start, comments)
    first = [cell.strip() for cell in rows[0]]
    commented = _commented_header(lines[:start], delimiter, width)
    if text.header is False or (text.header is None and not commented and not _names_columns(first)):
        return replace(found, columns=tuple(str(i + 1) for i in range(width)))
    if commented:
        return replace(found, header=True, columns=_named(commented), comments=comments - 1)
    if all(is_number(name) for name in first):
        raise DataError(
            f"{path.name}: the first line holds only numbers, expected column names; add a header line, "
            "or use --no-header with columns named 1, 2, ..."
        )
    end = start + _height(body, delimiter, quote)
    columns = _fit(first, width, rows[1:], f"{path.name}, line {end + 1}")
    return replace(found, header=True, columns=columns, skip=_bytes(raw[:end]), line=end)


def decoded(file: IO[bytes], encoding: str) -> Decoder:
    """The bytes of an open file as UTF-8 without a mark, lines ending in \\n alone."""
    return Decoder(file, encoding)


class Decoder:
    """Reads a stream as UTF-8 bytes whose lines end in \\n alone."""

    def __init__(self, file: IO[bytes], encoding: str):
        self._file, self._start, self._held = file, True, False
        plain = codecs.lookup(encoding).name in ("utf-8", "ascii")
        self._decoder = None if plain else codecs.getincrementaldecoder(encoding)()

    def read(self, size: int) -> bytes:
        """About `size` bytes; none at the end. Raises UnicodeDecodeError."""
        raw = self._file.read(size)
        data = raw if self._decoder is None else self._decoder.decode(raw, final=not raw).encode()
        if self._start and raw:
            data, self._start = data.removeprefix(codecs.BOM_UTF8), False
        if self._held:
            data, self._held = b"\r" + data, False
        if data.endswith(b"\r") and raw:  # the next block may begin with its \n
            data, self._held = data[:-1], True
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data if data or not raw else self.read(size)


def cells(lines: Iterable[str], delimiter: str, quote: str) -> list[list[str]]:
    """The cells of lines of text, a list a row; rows without cells are left out."""
    if delimiter == " ":
        return [line.split() for line in lines if line.strip()]
    if len(delimiter) > 1:
        return [line.split(delimiter) for line in lines if line]
    return [row for row in reader(lines, delimiter, quote) if row]


def reader(lines: Iterable[str], delimiter: str, quote: str) -> Iterable[list[str]]:
    """Python's parser of delimited text with our names for quoting."""
    return csv.reader(
        (line + "\n" for line in lines),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if quote == "none" else csv.QUOTE_MINIMAL,
        quotechar="'" if quote == "single" else '"',
        doublequote=quote != "backslash",
        escapechar="\\" if quote == "backslash" else None,
    )


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _encoding(path: Path) -> str:
    with files.stream(path) as file:
        start = file.read(4096)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in start:
        raise DataError(
            f"{path.name}: holds zero bytes, so it is no UTF-8 text; if it is a table in UTF-16, say "
            "--encoding utf-16-le (or utf-16-be)"
        )
    return "utf-8"


def _sample(path: Path, encoding: str) -> tuple[bytes, bool]:
    """The first lines, at least two where there are two, and whether that is the whole file."""
    with files.stream(path) as file:
        try:
            source, sample = decoded(file, encoding), b""
            while block := source.read(_SAMPLE):
                sample += block
                if sample.count(b"\n") > 1:
                    return sample, False
                if len(sample) > LONGEST:
                    raise DataError(f"{path.name}: one line of more than {LONGEST >> 20} MiB, so it is no table")
        except (UnicodeDecodeError, LookupError) as error:
            raise DataError(f"{path.name}: not text in {encoding} ({files.first_line(error)})") from None
    return sample, True


def _preamble(lines: list[str], text: Text) -> tuple[int, int, str]:
    """How many lines stand before the table, how many of them are comments, and the separator where one says it."""
    start = comments = 0
    given = NAMED.get(text.delimiter or "", text.delimiter or "")
    while start < len(lines) and (not lines[start].strip() or lines[start].startswith(_COMMENTS)):
        comments += bool(lines[start].strip())
        start += 1
    if start < len(lines) and lines[start].lower().startswith("sep=") and len(lines[start]) == 5:
        given, start = given or lines[start][4], start + 1  # as Excel writes it
    return start, comments, given


def _vote(lines: list[str], suffix: str) -> str:
    """The separator that cuts these lines into the same number of cells."""
    found: dict[str, tuple[tuple, int, list[list[str]]]] = {}
    for order, mark in enumerate(SEPARATORS):
        best: tuple[float, list[list[str]], int] = (-1.0, [], 0)
        for quote in ("none",) if mark in ("::", " ") else ("double", "none"):
            rows = cells(lines, mark, quote)
            width, share = _common(rows)
            if share > best[0]:
                best = (share, rows, width)
        share, rows, width = best
        if width < 2 or share < 0.8:
            continue
        agreed = share >= 0.98 and len(rows[0]) == width
        natural = _NATURAL.get(suffix) == mark
        names = known.known(rows[0], (*known.USER, *known.ITEM))
        found[mark] = ((agreed, natural, mark in ("\t", "::"), mark != " ", names, width, -order), width, rows)
    if not found:
        lists = [line.split() for line in lines]
        if len(lines) > 1 and all(len(row) > 1 and all(map(str.isdigit, row)) for row in lists):
            few, many = min(map(len, lists)), max(map(len, lists))
            raise DataError(
                f"lines of {few} to {many} numbers, as LightGCN lists a user's items; expected an interaction a line"
            )
        return _NATURAL.get(suffix, ",")  # one column
    mark = max(found, key=lambda m: found[m][0])
    for other, (rank, width, _) in found.items():
        # 1;2;4,5 has two cells at commas, but its first cell holds more separators than that
        if mark != "\t" and other != " " and rank[0] and width > found[mark][1]:
            rows = found[mark][2]
            if sum(other in row[0] for row in rows) > 0.9 * len(rows):
                return other
    return mark


def _common(rows: list[list[str]]) -> tuple[int, float]:
    """The number of cells that most rows behind the first have, and the share of these rows."""
    width, same = Counter(len(row) for row in rows[1:] or rows).most_common(1)[0]
    return width, same / max(1, len(rows) - 1)


def _quoted(lines: list[str], delimiter: str, text: Text) -> str:
    """The quoting that makes these lines alike, their first one too; the parser finds out about the others."""
    if text.quote or len(delimiter) > 1 or delimiter == " ":
        return text.quote or "none"

    def alike(quote: str) -> float:
        rows = cells(lines, delimiter, quote)
        width, share = _common(rows)
        return share + (len(rows[0]) == width)

    return max(("double", "backslash", "none"), key=alike)


def _names_columns(first: list[str]) -> bool:
    """Whether a first row looks like a header: known names, and no numbers."""
    return known.known(first, (*known.USER, *known.IDS)) and not any(is_number(cell) for cell in first)


def _commented_header(lines: list[str], delimiter: str, width: int) -> list[str]:
    """The cells of the last comment, if they are the names of the columns; else none."""
    if not lines or not lines[-1].startswith(_COMMENTS):
        return []
    row = cells([lines[-1].lstrip("#% ")], delimiter, "none")
    first = [cell.strip() for cell in row[0]] if row else []
    return first if len(first) == width and _names_columns(first) else []


def _fit(first: list[str], width: int, rows: list[list[str]], where: str) -> tuple[str, ...]:
    """Names for `width` columns: empty cells behind the header or behind the rows are no columns of either."""
    while len(first) > width and not first[-1]:
        first = first[:-1]
    if len(first) < width:
        extra = [cell for row in rows if len(row) == width for cell in row[len(first) :]]
        if any(cell.strip() for cell in extra):
            raise DataError(
                f"{where}: {width} cells, but the header has {len(first)} ({known.listed(first)}); name every column, "
                "or take the header away and use --no-header"
            )
        first = first + [""] * (width - len(first))
    return _named(first)


def _named(first: list[str]) -> tuple[str, ...]:
    return tuple(name or f"unnamed {i + 1}" for i, name in enumerate(first))


def _height(lines: list[str], delimiter: str, quote: str) -> int:
    """How many lines the first row takes."""
    if len(delimiter) > 1 or delimiter == " ":
        return 1
    rows = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter) if quote != "none" else None
    if rows is None or next(rows, None) is None:
        return 1
    return rows.line_num


def _bytes(lines: list[bytes]) -> int:
    return sum(len(line) + 1 for line in lines)
