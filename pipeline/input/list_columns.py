"""The columns of lists of images: which one names the images, and what the others are worth.

People's lists have columns of our names with other things in them, such as a `size` of "480x270". Such values are
ignored, and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schemas import LISTING, TIMESTAMP

# The usual names of the column, in the order in which they are taken, without case and punctuation.
_URI_NAMES = (
    "uri", "url", "path", "file", "filename", "filepath", "image", "imagepath", "imageuri", "imageurl", "imagefile",
    "imagefilename", "imagename", "img", "imgpath", "imguri", "imgurl", "photo", "photopath", "photouri", "photourl",
    "picture", "sourcefile", "sourceref", "s3uri", "s3url", "s3path", "gsuri", "gspath", "gcsuri", "gcspath",
    "imagegcsuri", "fileuri", "fileurl", "fullpath", "absolutepath", "relativepath", "src", "href", "link",
)  # fmt: skip

_WHOLE_NUMBER = r"^\s*\+?(\d{1,18})(?:\.0*)?\s*$"
_SHOWN = 40                                  # characters of a value in a message
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799      # years 1 to 9999: Python reads no others


class NoUriColumn(ValueError):   # noqa: N818
    """No column names the images."""


class BadRow(Exception):   # noqa: N818
    """A row that cannot be read, by its place and the reason."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason


def find_uri_column(names: Sequence[str], wanted: str | None) -> str | None:
    """The column that names the images, by --uri-column or by its usual names; None if there is none."""
    if wanted is not None:
        return wanted if wanted in names or wanted.split(".")[0] in names else None
    if "uri" in names:
        return "uri"
    plain = {_plain(name): name for name in reversed(names)}
    return next((plain[usual] for usual in _URI_NAMES if usual in plain), None)


def uri_column(names: Sequence[str], wanted: str | None) -> str:
    """The same. Raises NoUriColumn."""
    found = find_uri_column(names, wanted)
    if found is None:
        present = ", ".join(repr(name[:_SHOWN]) for name in names[:20])
        if wanted is not None:
            raise NoUriColumn(f"it has no column {wanted!r}, only {present}: check --uri-column")
        raise NoUriColumn(
            f"no column is named uri, url, path, file or image, only {present}: name the column with --uri-column, or "
            "write one URI a line"
        )
    return found


def choice_note(names: Sequence[str], chosen: str) -> str | None:
    """A line for the user if other columns could be meant as well."""
    others = [name for name in names if name != chosen and _plain(name) in _URI_NAMES]
    if chosen == "uri" or not others:
        return None
    return f"the column {chosen} names the images, not {', '.join(others)}; --uri-column takes another"


def is_uri_name(name: str) -> bool:
    """Whether this is a usual name of the column."""
    return _plain(name) in _URI_NAMES


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


class Columns:
    """Turns a list's columns into those of `schemas.LISTING`, and counts values that cannot be what their name says."""

    def __init__(self) -> None:
        self._ignored: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def convert(self, table: pa.Table) -> dict[str, pa.ChunkedArray | pa.Array]:
        """The columns of LISTING but `uri`, which stays as it is; null where the table has none or no usable value."""
        columns = {"uri": _decoded(table["uri"]).cast(pa.string())}
        for name in LISTING.names[1:]:
            columns[name] = pa.nulls(len(table), LISTING.field(name).type)
            if name in table.column_names:
                columns[name] = self._checked(name, table[name], _CONVERSIONS[name](_decoded(table[name])))
        belongs = _belongs(columns["uri"], columns["container"])
        for name in ("container", "offset"):
            columns[name] = self._checked(name, columns[name], pc.if_else(belongs, columns[name], None))
        return columns

    def notes(self) -> Iterator[str]:
        """A line for each column with ignored values."""
        for name, count in self._ignored.items():
            yield (f"the column {name} is ignored in {count:,} rows (for example {self._examples[name]}): "
                   f"{_MEANINGS[name]}")

    def _checked(self, name: str, given: pa.ChunkedArray, converted: pa.ChunkedArray) -> pa.ChunkedArray:
        if converted.null_count > given.null_count:
            lost = pc.and_(pc.is_valid(given), pc.is_null(converted))
            self._ignored[name] += pc.sum(lost).as_py()
            self._examples.setdefault(name, _shown(given.filter(lost)[0]))
        return converted


def _shown(value: pa.Scalar) -> str:
    try:
        return repr(value.as_py())[:_SHOWN]
    except (OverflowError, ValueError):      # a time that Python cannot hold
        return "a time that is out of range"


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if is_text(column.type) else pa.nulls(len(column), pa.string())


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers, 0 or more, from numbers or text: 1024, 1024.0, "1024.0"."""
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64(), safe=False)     # one that is too large becomes negative
    elif pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        floats = column.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(floats), floats), pc.less(floats, 2.0**62))
        column = pc.if_else(whole, floats, None).cast(pa.int64(), safe=False)
    elif is_text(column.type):
        digits = pc.replace_substring_regex(_texts(column), _WHOLE_NUMBER, r"\1")
        column = pc.if_else(pc.match_substring_regex(_texts(column), _WHOLE_NUMBER), digits, None).cast(pa.int64())
    else:
        return pa.nulls(len(column), pa.int64())
    return pc.if_else(pc.greater_equal(column, 0), column, None)


def _times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times in UTC, also from text and from seconds, milli-, micro- or nanoseconds since 1970."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us", tz=getattr(column.type, "tz", None)), safe=False).cast(TIMESTAMP)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or is_text(column.type):
        return _parsed_times(column)
    else:
        return pa.nulls(len(column), TIMESTAMP)
    microseconds = column.cast(pa.int64())
    usable = pc.and_(pc.greater_equal(microseconds, _FIRST_S * 1_000_000), pc.less(microseconds, _LAST_S * 1_000_000))
    return pc.if_else(usable, column, None)


def _parsed_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if is_text(column.type):
        for kind in (TIMESTAMP, pa.timestamp("us")):     # without a time zone it is UTC
            try:
                return _times(column.cast(kind))
            except pa.ArrowInvalid:
                continue
    return pa.chunked_array([pa.array(map(_time, column.to_pylist()), TIMESTAMP)])


def _time(value: str | float | None) -> datetime | None:
    try:
        number = float(value or "nan")
    except ValueError:
        return _time_of_text(str(value))
    if not abs(number) < 1e20:       # not a number, or none of these units
        return None
    while abs(number) >= 1e11:       # seconds reach that in the year 5138, milliseconds did in 1973
        number /= 1000
    return datetime.fromtimestamp(number, UTC) if _FIRST_S <= number <= _LAST_S else None


def _time_of_text(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text.strip())
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _belongs(uris: pa.ChunkedArray, containers: pa.ChunkedArray) -> pa.BooleanArray:
    """Whether each container is one: then the uri is <container>#<member>, or the container itself."""
    if containers.null_count == len(containers):
        return pa.array([False] * len(containers), pa.bool_())
    return pa.array([
        container is not None and uri is not None and (uri == container or uri.startswith(f"{container}#"))
        for uri, container in zip(uris.to_pylist(), containers.to_pylist(), strict=True)
    ], pa.bool_())


_CONVERSIONS: dict[str, Callable[[pa.ChunkedArray], pa.ChunkedArray]] = {
    "container": _texts, "offset": _whole_numbers, "size": _whole_numbers, "etag": _texts, "mtime": _times,
}
_MEANINGS = {
    "container": "it is read as the file that holds the image, whose uri is then <container>#<name>",
    "offset": "it is read as the place in a container, which the row does not have",
    "size": "it is read as a number of bytes",
    "etag": "it is read as the text that a store gives with each version of an object",
    "mtime": "it is read as the time of the last change",
}
