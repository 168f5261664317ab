from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.batch import TodoRow
from pipeline.output import spool
from pipeline.output.spool import BLOCK, ReadTodo, write_todo
from pipeline.schemas import LISTING
from pipeline.storage import LocalStorage, open_storage


def tables(*sizes: int) -> list[pa.Table]:
    """Blocks of these sizes; the names count up across the blocks."""
    names = iter(f"/{i:04}.jpg" for i in range(sum(sizes)))
    return [pa.Table.from_pylist([{"uri": next(names), "size": 7} for _ in range(n)], schema=LISTING) for n in sizes]


@pytest.mark.parametrize(
    ("sizes", "groups"),       # of each file, at 5 rows a file
    [((), []), ((1,), [1]), ((2, 2, 1), [3]), ((2, 2, 2, 2), [3, 1]), ((5, 9, 1), [1, 1, 1])],
)
def test_blocks_are_read_back(tmp_path, monkeypatch, sizes, groups):
    monkeypatch.setattr(spool, "FILE_ROWS", 5)
    storage = LocalStorage(str(tmp_path))
    blocks = write_todo(storage, "run", iter(tables(*sizes)))
    assert blocks.schema == BLOCK and blocks["images"].to_pylist() == list(sizes)
    files = [file.path for file in storage.list("_todo")]
    assert [blocks["path"].to_pylist().count(path) for path in files] == groups
    read = ReadTodo(storage)
    assert [[row.uri for row in read(blocks.slice(i, 1))] for i in range(len(blocks))] == [
        table["uri"].to_pylist() for table in tables(*sizes)
    ]
    assert read(blocks) == [TodoRow(f"/{i:04}.jpg", size=7) for i in range(sum(sizes))]


def test_the_spool_can_be_in_a_bucket(bucket):
    storage = open_storage(f"{bucket.uri}/out")
    blocks = write_todo(storage, "run", tables(3, 2))
    assert bucket.keys() == ["out/_todo/run-000000.parquet"]
    assert [row.uri for row in ReadTodo(storage)(blocks.slice(1))] == ["/0003.jpg", "/0004.jpg"]
