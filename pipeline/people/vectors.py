"""Read the vectors of a part: straight from the pages of its column where they are plain, else with pyarrow.

pyarrow decodes the list levels of every number, which takes four fifths of a search (apache/arrow#34510). The levels of
vectors of one length say nothing, so the numbers are taken from the end of each page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK_FACES = 4096       # 8 MB of vectors: larger blocks are no faster
_TYPES = {"FLOAT": np.float32, "FIXED_LEN_BYTE_ARRAY": np.float16}
_DATA_PAGE, _PLAIN = 0, 0                                     # of Parquet's PageType and Encoding


def vector_blocks(content: bytes | memoryview, parquet: pq.ParquetFile, column: str, dim: int) -> Iterator[np.ndarray]:
    """The vectors of a Parquet file in its order; (n, dim) float32 or float16, n at most 4,096.

    content: the file. parquet: the same, opened. Its column is a list of `dim` values, without nulls.
    """
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        pages = _plain_pages(content, parquet, group, column, rows * dim)
        if pages is None:
            for batch in parquet.iter_batches(BLOCK_FACES, row_groups=[group], columns=[column], use_threads=False):
                yield batch[column].flatten().to_numpy().reshape(-1, dim)
            continue
        vectors = np.concatenate(pages).reshape(rows, dim)
        for start in range(0, rows, BLOCK_FACES):
            yield vectors[start : start + BLOCK_FACES]


def vectors_at(
    content: bytes | memoryview, parquet: pq.ParquetFile, column: str, dim: int, wanted: np.ndarray
) -> Iterator[np.ndarray]:
    """The vectors of some rows, (m,) sorted, in blocks as of `vector_blocks`. Of plain pages only they are read."""
    start = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        here = wanted[(wanted >= start) & (wanted < start + rows)] - start
        start += rows
        if not len(here):
            continue
        pages = _plain_pages(content, parquet, group, column, rows * dim)
        if pages is None:
            column_of_group = parquet.read_row_group(group, columns=[column], use_threads=False)[column]
            yield column_of_group.take(pa.array(here)).combine_chunks().flatten().to_numpy().reshape(-1, dim)
        else:
            yield _rows_of(pages, here, dim)


def _rows_of(pages: Sequence[np.ndarray], rows: np.ndarray, dim: int) -> np.ndarray:
    """Some rows of `dim` values each; a row may begin in one page and end in the next."""
    ends = np.cumsum([len(page) for page in pages])
    found = np.empty((len(rows), dim), pages[0].dtype)
    for vector, at in zip(found, rows * dim, strict=True):
        number, filled = int(np.searchsorted(ends, at, side="right")), 0
        while filled < dim:
            page = pages[number]
            values = page[at + filled - (ends[number] - len(page)) :][: dim - filled]
            vector[filled : filled + len(values)] = values
            number, filled = number + 1, filled + len(values)
    return found


def _plain_pages(
    content: bytes | memoryview, parquet: pq.ParquetFile, group: int, column: str, count: int
) -> Sequence[np.ndarray] | None:
    """The values of a column of a row group by pages, `count` in all; None if the pages are not plain."""
    metadata = parquet.metadata.row_group(group)
    chunks = [metadata.column(i) for i in range(metadata.num_columns)]
    (chunk,) = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column]
    kind = parquet.schema_arrow.field(column).type.value_type
    dtype = _TYPES.get(chunk.physical_type)
    statistics = chunk.statistics
    if (
        dtype is None or kind != pa.from_numpy_dtype(dtype) or chunk.num_values != count or chunk.has_dictionary_page
        or statistics is None or not statistics.has_null_count or statistics.null_count
    ):
        return None
    try:
        codec = None if chunk.compression == "UNCOMPRESSED" else pa.Codec(chunk.compression.lower())
        pages = list(_pages(memoryview(content), chunk, codec, np.dtype(dtype)))
    except (ValueError, KeyError, IndexError, OSError, pa.ArrowException):
        return None                                           # pyarrow reads it, or says what is wrong
    return pages if pages and sum(map(len, pages)) == count else None


def _pages(content: memoryview, chunk: Any, codec: pa.Codec | None, dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    """The values of each page of a column chunk. Raises ValueError, KeyError, IndexError for other kinds of pages."""
    at, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    while at < end:
        header, at = _read_struct(content, at)
        kind, size, compressed_size, data = header[1], header[2], header[3], header[5]
        if kind != _DATA_PAGE or data[2] != _PLAIN:
            raise ValueError("not a plain data page")
        page = content[at : at + compressed_size]
        body = page if codec is None else codec.decompress(page, size)
        yield np.frombuffer(body, dtype, data[1], size - data[1] * dtype.itemsize)
        at += compressed_size


def _read_struct(content: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol, in which page headers are written: its fields by number, and its end."""
    fields: dict[int, Any] = {}
    number = 0
    while content[at]:
        kind, step = content[at] & 0x0F, content[at] >> 4
        at += 1
        if not step:
            raise ValueError("a long field number")
        number += step
        if kind in (1, 2):                                    # true, false
            fields[number] = kind == 1
        elif kind in (5, 6):                                  # i32, i64
            value, at = _read_varint(content, at)
            fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:                                       # bytes
            length, at = _read_varint(content, at)
            fields[number], at = bytes(content[at : at + length]), at + length
        elif kind == 12:
            fields[number], at = _read_struct(content, at)
        else:
            raise ValueError(f"a field of kind {kind}")
    return fields, at + 1


def _read_varint(content: memoryview, at: int) -> tuple[int, int]:
    """An unsigned number of seven bits a byte, and its end."""
    value = shift = 0
    while content[at] & 0x80:
        value |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | content[at] << shift, at + 1
