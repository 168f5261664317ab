"""Lists of images as text, as people and programs write them: a name on each line, tables, and JSON.

All values stay text. The encoding, the separator and the column of the names are found out from the beginning.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, TextIO

import pyarrow as pa

from pipeline.input.entries import looks_like_an_image
from pipeline.input.json_lists import json_items, json_lines, lines_from, nested, plain_text
from pipeline.input.json_values import JsonText
from pipeline.input.list_columns import BadRow, choice_note, find_uri_column, is_uri_name, uri_column
from pipeline.schemas import LISTING

# How a list is written, by the extension of its name.
KINDS: Mapping[str, str] = MappingProxyType({
    "txt": "txt", "text": "txt", "lst": "txt", "list": "txt", "csv": "csv", "psv": "csv", "tsv": "tsv", "tab": "tsv",
    "json": "json", "jsonl": "jsonl", "ndjson": "jsonl",
})  # fmt: skip

_SAMPLE_BYTES = 1 << 16
_PIECE_ROWS = 100_000
_MAX_FIELD_CHARACTERS = 16 << 20      # a picture as base64, in a column that is ignored
_DELIMITERS = ",;\t|"
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
                     (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)


class Row(NamedTuple):
    """A row of a list. uri: as it is written; None if there is none. others: text by the names of LISTING."""

    place: str                    # "row 2 (line 3)"
    uri: str | None
    others: dict[str, str]


@dataclass
class TextList:
    """A list as text.

    kind: one of the values of KINDS. wanted: the column of the names; None takes one of the usual ones.
    exists: whether a local file has this name, relative to the list; always False for a list in a bucket.
    notes: gets lines for the user.
    """

    kind: str
    wanted: str | None
    exists: Callable[[str], bool]
    notes: list[str] = field(default_factory=list)

    def rows(self, file: BinaryIO) -> Iterator[Row]:
        """The rows. Raises BadRow, NoUriColumn, and errors of decoding and of reading."""
        file.seek(0)
        sample = file.read(_SAMPLE_BYTES)
        file.seek(0)
        encoding = _encoding(sample)
        if self.kind in ("json", "jsonl"):
            yield from self._json_rows(_text(file, encoding or "utf-8", None))
            return
        beginning = sample.decode(encoding or "utf-8", "replace")
        if encoding is None:      # names separated by null characters, as `find -print0` writes them
            yield from self._lines(_split(_text(file, "utf-8", ""), "\0"))
            return
        header = self._header(beginning)
        if header is not None:
            yield from self._table(_text(file, encoding, ""), header)
            return
        newline = "\r" if "\r" in beginning and "\n" not in beginning else "\n"
        yield from self._lines(_text(file, encoding, newline))

    # --- a name on each line

    def _lines(self, lines: Iterable[str]) -> Iterator[Row]:
        is_first = True
        for number, line in enumerate(lines, 1):
            name = line.rstrip("\r\n")
            if not name:
                continue
            is_header = is_first and (is_uri_name(name) or name == self.wanted) and not self.exists(name)
            is_first = False
            if not is_header:
                yield Row(f"row {number}", name, {})

    # --- tables

    def _header(self, beginning: str) -> _Header | None:
        """The header of a table; None if this is no table but a name on each line."""
        delimiters = _DELIMITERS if self.kind == "csv" else "\t,;|"
        lines = re.split(r"\r\n|\r|\n", beginning)
        commented: _Header | None = None      # "#uri,who": a comment, unless the line after it is no header
        for skipped, line in enumerate(lines):
            if separator := _EXCEL_SEPARATOR.match(line):
                delimiters = separator[1]
            elif line.startswith("#"):
                found = self._split_header(line[1:], delimiters, skipped)
                commented = found if found.uri is not None else commented
            elif line.strip():
                break
        else:
            return commented
        header = self._split_header(line, delimiters, skipped)
        if header.uri is None and commented is not None:
            return commented
        if self.kind == "txt" and (header.uri is None or self.exists(line)):
            return None
        if header.uri is None and self.wanted is None:
            return self._headless(header, line, delimiters[0])
        if header.uri is None:
            uri_column(header.names, self.wanted)      # raises
        return header

    def _headless(self, header: _Header, line: str, delimiter: str) -> _Header:
        """A table whose first line is a row already. Raises NoUriColumn if no column of it names an image."""
        if len(header.names) == 1 or self.exists(line):
            return _Header([line], delimiter, 0, header.skipped, spaced=False, has_names=False)
        images = [i for i, field in enumerate(header.names) if looks_like_an_image(field)]
        if len(images) != 1:
            uri_column(header.names, None)      # raises
        self.notes.append(f"it has no header; column {images[0] + 1} names the images")
        return header._replace(uri=images[0], has_names=False)

    def _split_header(self, line: str, delimiters: str, skipped: int) -> _Header:
        """The header by the delimiter that gives a column of names, else by the one that gives most columns."""
        headers = []
        for delimiter in delimiters:
            names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
            found = find_uri_column(names, self.wanted)
            is_table = len(names) > 1 or self.kind != "txt"
            uri = names.index(found) if found in names and is_table else None
            spaced = f"{delimiter} " in line
            headers.append(_Header(names, delimiter, uri, skipped, spaced, has_names=True))
        return max(headers, key=lambda header: (header.uri is not None, len(header.names)))

    def _table(self, text: TextIO, header: _Header) -> Iterator[Row]:
        names, uri = header.names, header.uri or 0
        note = choice_note(names, names[uri]) if header.has_names else None
        self.notes += [note] if note else []
        wanted = {i: name for i, name in enumerate(names) if name in LISTING.names and i != uri and header.has_names}
        for place, fields in _records(text, header):
            yield Row(place, fields[uri] or None, {name: fields[i] for i, name in wanted.items()})

    # --- JSON

    def _json_rows(self, text: TextIO) -> Iterator[Row]:
        beginning = text.read(_SAMPLE_BYTES)
        if self.kind == "json" or beginning.lstrip().startswith("["):
            yield from self._items(json_items(JsonText(text, beginning), self.wanted))
        else:
            yield from self._items(json_lines(lines_from(beginning, text)))

    def _items(self, items: Iterator[tuple[str, Any]]) -> Iterator[Row]:
        column: str | None = None
        for place, item in items:
            if isinstance(item, str) or item is None:
                yield Row(place, item or None, {})
                continue
            if not isinstance(item, dict):
                raise BadRow(place, f"expected text or an object, got {json.dumps(item)[:40]}")
            if column is None:
                column = uri_column(list(item), self.wanted)
                note = choice_note(list(item), column)
                self.notes += [note] if note else []
            uri = nested(item, column)
            if not isinstance(uri, str | None):
                raise BadRow(place, f"{column} is no text but {json.dumps(uri)[:40]}")
            others = {name: plain_text(item[name]) for name in LISTING.names if name != column and name in item}
            yield Row(place, uri or None, others)


class _Header(NamedTuple):
    names: list[str]
    delimiter: str
    uri: int | None       # which column
    skipped: int          # lines before it
    spaced: bool          # spaces follow the delimiters
    has_names: bool       # else it is a row already


def _records(text: TextIO, header: _Header) -> Iterator[tuple[str, list[str]]]:
    """The rows of a table, each with its place and at least the fields of the header. Raises BadRow."""
    for _ in range(header.skipped):
        text.readline()
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    reader = csv.reader(text, delimiter=header.delimiter, skipinitialspace=header.spaced, strict=True)
    expected, number, line = len(header.names), -1 if header.has_names else 0, header.skipped
    try:
        for fields in reader:
            start, line = line + 1, header.skipped + reader.line_num
            is_comment = number >= 0 and len(fields) != expected and fields[:1] and fields[0].startswith("#")
            if not fields or is_comment:
                continue
            number += 1
            if number == 0:       # the header
                continue
            place = f"row {number} (line {start})"
            if not any(map(str.strip, fields)):
                fields = [""] * expected
            if len(fields) < expected or any(map(str.strip, fields[expected:])):
                raise BadRow(place, _odd_length(len(fields), expected, header.delimiter))
            yield place, fields
    except csv.Error as error:
        raise BadRow(f"row {number + 1} (line {line + 1})", f"{error}: check its quotes") from None


def _odd_length(found: int, expected: int, delimiter: str) -> str:
    name = {"\t": "tab"}.get(delimiter, delimiter)
    fields = "1 field" if found == 1 else f"{found} fields"
    return f"{fields}, but the first line has {expected}: put double quotes around a name with a {name} in it"


def _encoding(sample: bytes) -> str | None:
    """The encoding, by a byte order mark or by where null bytes are; None for names separated by null bytes."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return encoding
    if b"\0" not in sample:
        return "utf-8"
    for encoding, high in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        if high.count(0) > 0.6 * len(high):
            return encoding
    return None


def _text(file: BinaryIO, encoding: str, newline: str | None) -> TextIO:
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return io.TextIOWrapper(io.BufferedReader(_Unclosed(file), _SAMPLE_BYTES), encoding, errors, newline)


class _Unclosed(io.RawIOBase):
    """A file for a reader that would otherwise close it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _split(text: TextIO, separator: str) -> Iterator[str]:
    rest = ""
    while piece := text.read(_SAMPLE_BYTES):
        *whole, rest = (rest + piece).split(separator)
        yield from whole
    yield rest


def pieces(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """The rows in lists that are short enough for memory."""
    while piece := list(itertools.islice(rows, _PIECE_ROWS)):
        yield piece


def other_columns(piece: Sequence[Row]) -> dict[str, pa.Array]:
    """The columns that the rows have beside their names; null for empty text."""
    present = [name for name in LISTING.names[1:] if any(name in row.others for row in piece)]
    return {
        name: pa.array([_valid_text(row.others.get(name)) for row in piece], pa.string()) for name in present
    }


def _valid_text(text: str | None) -> str | None:
    """None for empty text; bytes that are not UTF-8 become \\xNN."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if text else None


