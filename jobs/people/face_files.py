"""Files that name faces: CSV or Parquet with the columns uri and face_index, on a disk or in a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from jobs.options import ArgumentError
from pipeline.input.names import uri_extension
from pipeline.storage.faults import bucket_fault, one_line
from pipeline.storage.files import open_file
from pipeline.storage.uris import parse_input_uri

FACE = pa.schema([("uri", pa.string()), ("face_index", pa.int32())])
HELP = (
    "a .csv or .parquet file, on disk or in a bucket, with the columns uri and face_index, as faces/ has them; others "
    "are ignored"
)


def read_face_file(place: str, *texts: str) -> pa.Table:
    """The columns of FACE, without nulls, and `texts`: further columns, of text, whose empty cells are "".

    Raises ArgumentError.
    """
    names = [*FACE.names, *texts]
    try:
        with _open(place) as file:
            table = _read(file, names, is_parquet=uri_extension(parse_input_uri(place)[0]) == "parquet")
        uris, indices, *others = (_as_text(table[name]) for name in names)
    except (pa.ArrowException, obstore.exceptions.BaseError, OSError, ValueError) as error:
        raise ArgumentError(
            f"{place} cannot be used: {one_line(error)}; it must be a .csv or .parquet file with the columns "
            f"{', '.join(names)}"
        ) from None
    if pc.any(pc.or_(pc.equal(uris, ""), pc.equal(indices, ""))).as_py():
        raise ArgumentError(f"{place} has rows without uri or face_index; fill or remove them")
    try:
        return pa.table([uris, _whole_numbers(table["face_index"]), *others], names)
    except pa.ArrowException as error:
        raise ArgumentError(f"{place}: {one_line(error)}; face_index must be whole numbers") from None


def _open(place: str) -> BinaryIO:
    try:
        return open_file(*parse_input_uri(place))
    except (OSError, obstore.exceptions.BaseError) as error:
        why = bucket_fault(error) or getattr(error, "strerror", None) or one_line(error)
        raise ArgumentError(f"cannot read {place}: {why}; check the path") from None


def _read(file: BinaryIO, names: Sequence[str], *, is_parquet: bool) -> pa.Table:
    if is_parquet:
        with pq.ParquetFile(file) as parquet:
            _check(names, parquet.schema_arrow.names)
            return parquet.read(columns=list(names))
    content = file.read()
    with pc_csv.open_csv(pa.BufferReader(content)) as rows:
        _check(names, rows.schema.names)
    as_text = pc_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=list(names))
    return pc_csv.read_csv(pa.BufferReader(content), convert_options=as_text)


def _check(names: Sequence[str], found: Sequence[str]) -> None:
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"it has no column {', '.join(missing)}")


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as text; "" for null."""
    return pc.fill_null(column.cast(pa.string()), "")


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        column = pc.utf8_trim_whitespace(_as_text(column))
    return column.cast(FACE.field("face_index").type)
