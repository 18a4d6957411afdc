"""Rows of a file, as they stand: CSV (RFC 4180, with a header), a JSON array, or JSON Lines.

The first character tells which. Files are read as a stream; each limit bounds what one of them can
make this process hold. What cannot be put right by skipping a row ends the file.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from solocron.errors import InvalidInput
from solocron.stores.hours import shown
from solocron.stores.model import FIELDS, REQUIRED

MAX_FILE = 200 * 1024 * 1024
MAX_ROW = 16 * 1024  # bytes of a line; characters of a CSV row or an object in a JSON array
MAX_ROWS = 1_000_000

_BLANK = " \t\r\n"
_CHUNK = 64 * 1024
_LIMIT = f"over {MAX_ROW // 1024} KiB"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no store. `line` counts from 1; `field` is '' when it is the row itself."""

    line: int
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row's fields, unchecked."""

    line: int
    fields: Mapping[str, object]


def raw_rows(path: Path) -> Iterator[RawRow | BadRow]:
    """The rows of the file. Raises InvalidInput when it cannot be read as a whole."""
    try:
        if not path.is_file():
            raise InvalidInput("not a file; name a CSV or JSON file")
        with path.open("rb") as file:
            if path.stat().st_size > MAX_FILE:
                raise InvalidInput(f"over {MAX_FILE // 1024**2} MiB; split it")
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            yield from _rows(file)
    except (OSError, InvalidInput) as error:
        text = getattr(error, "strerror", None) or error
        raise InvalidInput(f"file {shown(str(path))}: {text}") from None


def _rows(file: BinaryIO) -> Iterator[RawRow | BadRow]:
    start = file.tell()
    first = file.read(_CHUNK).decode(errors="replace").lstrip(_BLANK)[:1]
    file.seek(start)
    if first == "[":
        return _array(file)
    if first == "{":
        return _json_lines(file)
    return _csv(file)


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines with their ends. Too long a line ends the file: what follows cannot be trusted."""
    number = 0
    while raw := file.readline(MAX_ROW + 1):
        number += 1
        if len(raw) > MAX_ROW:
            raise InvalidInput(f"line {number} is {_LIMIT}: is it a stores file?")
        try:
            yield raw.decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"line {number} is not UTF-8: save the file as UTF-8") from None


def _csv(file: BinaryIO) -> Iterator[RawRow | BadRow]:
    """Rows under a header that names the columns, in any order. An empty cell is no value."""
    lines = _CsvLines(_lines(file))
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        line = lines.number + 1
        lines.size = 0
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise InvalidInput(f"line {line}: the header cannot be read: {error}") from None
            yield BadRow(line, "", f"not CSV: {error}; quote cells as in RFC 4180")
            continue
        if cells is None:
            break
        if not cells:
            continue
        if header is None:
            header = _header(cells)
        elif len(cells) != len(header):
            yield BadRow(line, "", f"{len(cells)} cells, but the header names {len(header)}")
        else:
            cell_of = zip(header, cells, strict=True)
            yield RawRow(line, {name: cell for name, cell in cell_of if cell})
    if header is None:
        raise InvalidInput(f"the file is empty: its first line must name {','.join(FIELDS)}")


class _CsvLines:
    """Lines for the reader, which joins those of a quoted cell: `size` bounds what it holds."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.number = 0
        self.size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self.size += len(line)
        if self.size > MAX_ROW:
            raise InvalidInput(
                f"the row that ends at line {self.number} is {_LIMIT}: is a quote left open?"
            )
        return line


def _header(cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if name not in FIELDS:
            raise InvalidInput(
                f"column {shown(name)} is not known: the first line names the columns, "
                f"out of {','.join(FIELDS)}"
            )
        if names.count(name) > 1:
            raise InvalidInput(f"column {name} stands twice: leave one out")
    for name in REQUIRED:
        if name not in names:
            raise InvalidInput(f"column {name} is missing: the first line must name it")
    return names


def _json_lines(file: BinaryIO) -> Iterator[RawRow | BadRow]:
    for number, text in enumerate(_lines(file), 1):
        if not text.strip(_BLANK):
            continue
        try:
            yield _object(number, json.loads(text))
        except (ValueError, RecursionError) as error:
            yield BadRow(number, "", f"not JSON ({_brief(error)}): each line must be one object")


def _object(line: int, value: object) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(line, value)
    return BadRow(line, "", f"a {type(value).__name__}, not an object with {', '.join(FIELDS)}")


def _brief(error: BaseException) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)[:100]


class _Window:
    """A sliding view of a text: never holds more than a chunk and a row."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._ended = False
        self.line = 1
        self.text = ""
        self.at = 0

    def fill(self) -> None:
        """Have at least one row's worth of text ahead, unless the file ends before."""
        while not self._ended and len(self.text) - self.at <= MAX_ROW:
            raw = self._file.read(_CHUNK)
            self._ended = not raw
            try:
                more = self._decode(raw, final=self._ended)
            except UnicodeDecodeError:
                raise InvalidInput(
                    f"there are bytes after line {self.line} that are not UTF-8: "
                    "save the file as UTF-8"
                ) from None
            self.text = self.text[self.at :] + more
            self.at = 0

    def move(self, by: int) -> None:
        """Go on by so many characters."""
        self.line += self.text.count("\n", self.at, self.at + by)
        self.at += by

    def next(self) -> str:
        """Skip blanks; the character that follows, '' at the end."""
        while True:
            self.fill()
            to = self.at
            while to < len(self.text) and self.text[to] in _BLANK:
                to += 1
            self.move(to - self.at)
            if to < len(self.text) or self._ended:
                return self.text[to : to + 1]


def _array(file: BinaryIO) -> Iterator[RawRow | BadRow]:
    """The objects of one JSON array, decoded one by one. A syntax error ends the file."""
    decoder = json.JSONDecoder()
    window = _Window(file)
    window.next()
    window.move(1)  # the bracket
    separator = ","
    if window.next() == "]":
        separator = "]"
        window.move(1)
    while separator == ",":
        window.next()
        line = window.line
        try:
            value, end = decoder.raw_decode(window.text, window.at)
            if end - window.at > MAX_ROW:
                raise ValueError(f"it is {_LIMIT}")
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                f"line {line}: no JSON object of at most {MAX_ROW // 1024} KiB starts here: "
                f"{_brief(error)}"
            ) from None
        yield _object(line, value)
        window.move(end - window.at)
        separator = window.next()
        if separator not in (",", "]"):
            raise InvalidInput(f"line {window.line}: ',' or ']' must follow the object")
        window.move(1)
    if window.next():
        raise InvalidInput(f"line {window.line}: text after the end of the array")
