import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output import ledger
from pipeline.people import vectors as module
from pipeline.people.vectors import vector_blocks, vectors_at


def written(numbers, dtype="float32", nullable=True, **options):
    """A Parquet file with these vectors (n, dim), and two columns beside them."""
    dim = numbers.shape[1]
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dim)
    table = pa.table(
        {"uri": [f"/{i}" for i in range(len(numbers))],
         "embedding": pa.FixedSizeListArray.from_arrays(pa.array(numbers.astype(dtype).reshape(-1)), dim),
         "after": numbers[:, 0]},
        schema=pa.schema([("uri", pa.string()), pa.field("embedding", kind, nullable=nullable),
                          ("after", pa.float64())]),
    )  # fmt: skip
    out = pa.BufferOutputStream()
    pq.write_table(table, out, **({"use_dictionary": ["uri"]} | options))
    return out.getvalue().to_pybytes()


def read(content, dim):
    """The vectors, and how many row groups were read straight from their pages."""
    with pq.ParquetFile(pa.BufferReader(content)) as parquet:
        blocks = list(vector_blocks(content, parquet, "embedding", dim))
        plain = [
            module._plain_pages(content, parquet, i, "embedding", parquet.metadata.row_group(i).num_rows * dim)
            for i in range(parquet.num_row_groups)
        ]
        found = np.concatenate([np.zeros((0, dim)), *blocks])
        for rows in (np.arange(len(found))[::3], np.arange(len(found))[:1], np.arange(0)):
            some = [np.zeros((0, dim)), *vectors_at(memoryview(content), parquet, "embedding", dim, rows)]
            assert np.array_equal(np.concatenate(some), found[rows])
    return found, sum(values is not None for values in plain)


@pytest.mark.parametrize("rows", [0, 1, 9000])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("nullable", [False, True])
@pytest.mark.parametrize(
    "options", [{}, *({"compression": name} for name in ("none", "snappy", "zstd", "gzip", "brotli")),
                {"row_group_size": 1000}, {"data_page_size": 5000}, {"write_batch_size": 7, "data_page_size": 100}],
)  # fmt: skip
def test_plain_pages_are_read_as_they_are(rows, dtype, nullable, options):
    numbers = np.random.default_rng(0).standard_normal((rows, 5))
    content = written(numbers, dtype, nullable, **options)
    found, plain = read(content, 5)
    assert np.array_equal(found, numbers.astype(dtype))
    assert plain == (pq.ParquetFile(pa.BufferReader(content)).num_row_groups if rows else 0)


@pytest.mark.parametrize(
    "options",
    [{"use_dictionary": True}, {"data_page_version": "2.0"}, {"compression": "lz4"}, {"write_statistics": False},
     {"use_byte_stream_split": ["embedding.list.element"], "use_dictionary": False}],
)  # fmt: skip
def test_what_is_written_otherwise_is_read_too(options):
    numbers = np.random.default_rng(0).integers(0, 3, (5000, 5))
    found, plain = read(written(numbers, **options), 5)
    assert np.array_equal(found, numbers)
    assert plain == 0


def test_parts_are_plain():
    """Else a search is several times slower."""
    numbers = np.random.default_rng(0).standard_normal((3000, 512)).astype(np.float32)
    kind = pa.list_(pa.float32(), 512)
    schema = pa.schema([("uri", pa.string()), pa.field("embedding", kind, nullable=False)])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), 512)
    found, plain = read(ledger.to_parquet(pa.table([["/a"] * 3000, vectors], schema=schema)), 512)
    assert np.array_equal(found, numbers) and plain == 1


def test_a_damaged_page_is_left_to_pyarrow():
    content = bytearray(written(np.random.default_rng(0).standard_normal((9000, 5)), compression="zstd"))
    at = pq.ParquetFile(pa.BufferReader(bytes(content))).metadata.row_group(0).column(1).data_page_offset
    content[at + 60 : at + 5000] = bytes(4940)
    with pytest.raises(OSError, match=r"(?i)zstd"):
        read(bytes(content), 5)
