"""The faces to look for: of photos, of rows, and of Parquet files of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.options import ArgumentError
from jobs.people.files import as_uri
from jobs.people.subjects import Faces, Place
from pipeline.people.likeness import LikenessError
from pipeline.people.outputs import Output
from pipeline.people.search import Probes
from pipeline.storage.faults import one_line
from pipeline.storage.files import open_file
from pipeline.storage.uris import parse_input_uri

VECTORS = "embedding"
_READ_ROWS = 4096


def is_vectors(name: str) -> bool:
    """Whether a probe is a Parquet file of vectors, by its name."""
    return parse_input_uri(name)[0].lower().endswith(".parquet")


def probes_of(found: Faces, places: Sequence[Place | None], output: Output) -> Probes:
    """The faces of photos and rows as probes. places: of the arguments, see `Subjects`."""
    names = [str(face.row["uri"]) for face in found.faces]
    numbers = [int(face.row["face_index"]) for face in found.faces]
    of_output = [
        place is not None and place.output.storage.root == output.storage.root
        for place in (places[face.subject] for face in found.faces)
    ]
    own = [(name, i) if known else None for name, i, known in zip(names, numbers, of_output, strict=True)]
    return Probes(names, numbers, found.vectors, own)


def probes_in_file(name: str, output: Output, group: int) -> Iterator[Probes]:
    """The vectors of a Parquet file, at most `group` at a time.

    They are in the column `embedding`, or in the only column of lists. With the columns uri and face_index, as in
    faces/, these name the probes; else it is the file with the number of the row. Raises ArgumentError.
    """
    uri, options = parse_input_uri(name)
    try:
        with open_file(uri, options) as file, pq.ParquetFile(file) as parquet:
            column = vector_column(name, parquet.schema_arrow)
            named = {"uri", "face_index"} <= set(parquet.schema_arrow.names)
            columns = [column, *(("uri", "face_index") if named else ())]
            refuse_other_embedder(name, parquet, output)
            first = 0
            for batch in _groups(parquet.iter_batches(min(group, _READ_ROWS), columns=columns), group):
                vectors = vectors_of(name, batch[column], first)
                names = batch["uri"].to_pylist() if named else [as_uri(name)] * len(batch)
                faces = batch["face_index"].to_pylist() if named else range(first, first + len(batch))
                yield Probes(names, faces, vectors, [None] * len(batch))
                first += len(batch)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArgumentError(f"the vectors in {name} cannot be read: {one_line(error)}") from None


def _groups(batches: Iterator[pa.RecordBatch], group: int) -> Iterator[pa.Table]:
    """The batches in tables of at most `group` rows."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        if held and sum(map(len, held)) + len(batch) > group:
            yield pa.Table.from_batches(held)
            held = []
        held.append(batch)
    if held:
        yield pa.Table.from_batches(held)


def vector_column(name: str, schema: pa.Schema) -> str:
    """The column of vectors. Raises ArgumentError."""
    lists = [field.name for field in schema if _is_list(field.type) and pa.types.is_floating(field.type.value_type)]
    if VECTORS in lists:
        return VECTORS
    if len(lists) != 1:
        raise ArgumentError(
            f"the vectors in {name} cannot be found: name one column of lists of numbers `{VECTORS}`; it has "
            f"{', '.join(lists) or 'none'}"
        )
    return str(lists[0])


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def refuse_other_embedder(name: str, parquet: pq.ParquetFile, output: Output) -> None:
    """Raises LikenessError if the file says, as faces/ does, that another embedder made its vectors."""
    if "embedder" not in parquet.schema_arrow.names or not parquet.metadata.num_rows:
        return
    ours = str(output.models["embedder"]["tensors_sha256"])[:12]
    for made_by in parquet.read(columns=["embedder"])["embedder"].unique().to_pylist():
        if str(made_by).rpartition("@")[2] != ours:
            raise LikenessError(
                f"the vectors in {name} are of the embedder {made_by}, those of {output.storage.root} of another, "
                f"…@{ours}: vectors of two embedders cannot be compared"
            )


def vectors_of(name: str, column: pa.ChunkedArray, first: int) -> np.ndarray:
    """A column of lists as an array (n, dim) float32. first: the number of its first row. Raises ArgumentError."""
    column = column.combine_chunks()
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    if column.null_count or len(set(lengths.tolist())) > 1:
        raise ArgumentError(f"the vectors in {name} do not all have the same number of values; correct the file")
    vectors: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).astype(np.float32)
    if not np.isfinite(vectors).all():
        row = first + int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise ArgumentError(f"the vectors in {name} are not all numbers: see row {row}; correct the file")
    return vectors
