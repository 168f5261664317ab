"""Lists of images in JSON, in the shapes that programs write them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from pipeline.input.entries import looks_like_an_image
from pipeline.input.json_values import JsonText, TooLong
from pipeline.input.list_columns import BadRow, find_uri_column
from pipeline.schemas import LISTING

_LISTS_IN_JSON = ("images", "photos", "files", "items", "data", "rows", "records", "entries")


def lines_from(beginning: str, text: TextIO) -> Iterator[str]:
    """The lines of a text whose beginning is read already."""
    *whole, rest = beginning.split("\n")
    yield from whole
    yield rest + text.readline()
    yield from text


def nested(item: dict[str, Any], name: str) -> Any:
    """The value of a key, or of a.b for key b of the object a; None if there is none."""
    if name in item:
        return item[name]
    first, _, rest = name.partition(".")
    inner = item.get(first)
    return nested(inner, rest) if rest and isinstance(inner, dict) else None


def json_lines(text: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """The values on the lines, each with its place. Raises BadRow."""
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"row {number}", f"not JSON ({error})") from None
        yield f"row {number}", item


def json_items(text: JsonText, wanted: str | None) -> Iterator[tuple[str, Any]]:
    """The images of a JSON file, each with its place. Only a list is read piece by piece; an object is held whole.

    Raises BadRow for an element that is not JSON, ValueError for a file that is not, TooLong for a large object.
    """
    if text.next_character() == "[":
        yield from _numbered(text.elements())
        if text.next_character():
            raise ValueError("something follows the end of the list")
        return
    try:
        first = text.value()
    except TooLong as error:
        raise TooLong(
            f"{error}, which is held in memory: write a list, or .jsonl with one image a line, for example by "
            "jq -c '.images[]'"
        ) from None
    if text.next_character():      # one after the other
        yield "row 1", first
        yield from _numbered(_values(text), 2)
    else:
        yield from _numbered(iter(json_list(first, wanted)))


def _values(text: JsonText) -> Iterator[Any]:
    while text.next_character():
        yield text.value()


def _numbered(items: Iterator[Any], first: int = 1) -> Iterator[tuple[str, Any]]:
    for number in itertools.count(first):
        try:
            item = next(items)
        except StopIteration:
            return
        except json.JSONDecodeError as error:
            raise BadRow(f"row {number}", f"not JSON ({error.msg})") from None
        yield f"row {number}", item


def json_list(parsed: Any, wanted: str | None) -> Sequence[Any]:
    """The list of images in a JSON file: the file itself, its columns, or the list in it."""
    if isinstance(parsed, list):
        return parsed
    if not isinstance(parsed, dict):
        raise ValueError("the file is neither a list nor an object")
    if "sourceBucket" in parsed:
        raise ValueError("it belongs to an S3 Inventory: list it with facelake manifest first")
    column = find_uri_column(list(parsed), wanted)
    if column is not None and isinstance(parsed.get(column), dict | list):
        return _rows_of_columns(parsed, column)
    for name in (*_LISTS_IN_JSON, *parsed):
        items = parsed.get(name)
        if isinstance(items, list) and (isinstance(items[0], dict | str) if items else name in _LISTS_IN_JSON):
            return items
    values = list(parsed.values())
    if values and all(isinstance(each, dict) and find_uri_column(list(each), wanted) for each in values):
        return values      # by a key of its own, as annotation tools write them
    return list(parsed) if parsed and all(map(looks_like_an_image, parsed)) else [parsed]


def _rows_of_columns(parsed: dict[str, Any], column: str) -> list[dict[str, Any]]:
    """Rows from columns, as pandas writes them: {"uri": {"0": …, "1": …}}, or as lists."""
    columns = {name: list(values.values()) if isinstance(values, dict) else values
               for name, values in parsed.items() if isinstance(values, dict | list)}
    if column in LISTING.names or all(isinstance(each, str) for each in columns[column]):
        length = len(columns[column])
        same = {name: values for name, values in columns.items() if len(values) == length}
        return [dict(zip(same, values, strict=True)) for values in zip(*same.values(), strict=True)]
    return columns[column]


def plain_text(value: Any) -> str:
    """A value of JSON as text; what is no text or number becomes text that is nothing else."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
