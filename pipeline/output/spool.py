"""The to-do rows as Parquet under `_todo/` of the output during a run: neither driver nor Ray must hold them all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.batch import TodoRow
from pipeline.schemas import LISTING
from pipeline.storage import Storage

FOLDER = "_todo"
FILE_ROWS = 100_000     # about 10 MB

BLOCK = pa.schema([("path", pa.string()), ("row_group", pa.int32()), ("images", pa.int32())])
"""Where the rows of one block are: a row group of a file."""


def write_todo(storage: Storage, run_id: str, blocks: Iterable[pa.Table]) -> pa.Table:
    """Write each table of `schemas.LISTING` as one block; returns one row of `BLOCK` for each."""
    written: list[dict[str, object]] = []
    waiting: list[pa.Table] = []

    def flush() -> None:
        path = f"{FOLDER}/{run_id}-{len(written):06}.parquet"
        out = pa.BufferOutputStream()
        with pq.ParquetWriter(out, LISTING, compression="zstd") as writer:
            for row_group, block in enumerate(waiting):
                writer.write_table(block, row_group_size=len(block))
                written.append({"path": path, "row_group": row_group, "images": len(block)})
        storage.write(path, out.getvalue().to_pybytes())
        waiting.clear()

    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= FILE_ROWS:
            flush()
    if waiting:
        flush()
    return pa.Table.from_pylist(written, schema=BLOCK)


@dataclass(frozen=True, slots=True)
class ReadTodo:
    """Read to-do rows from the spool, inside the actors."""

    storage: Storage

    def __call__(self, blocks: pa.Table) -> list[TodoRow]:
        """The to-do rows of these blocks (`BLOCK`), in order."""
        rows: list[TodoRow] = []
        for block in blocks.to_pylist():
            with self.storage.open(block["path"]) as file, pq.ParquetFile(file) as parquet:
                rows += [TodoRow(**row) for row in parquet.read_row_group(block["row_group"]).to_pylist()]
        return rows
