"""Search: the most alike faces of an output, straight from its parts, by products of blocks of vectors.

With an index the parts that it has are searched there; those that it lacks, because the output has grown or was
rewritten, are read as ever. So the result is always of the output as it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output import claim, ledger
from pipeline.people.best import Best
from pipeline.people.index import FaceIndex
from pipeline.people.likeness import unit
from pipeline.people.outputs import Output, check_vectors, reading_part
from pipeline.people.parallel import in_order
from pipeline.people.vectors import vector_blocks
from pipeline.storage import Storage

MATCHES = pa.schema(
    [
        pa.field("probe", pa.string(), nullable=False),
        pa.field("probe_face", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),          # 1 is the most alike
        pa.field("uri", pa.string(), nullable=False),
        pa.field("face_index", pa.int32(), nullable=False),
        pa.field("cosine", pa.float32(), nullable=False),
    ]
)

BLOCK_PROBES = 1024      # a product has 16 MB
FEW_PROBES = 2           # up to so many NumPy's own loop beats BLAS, whose threads get in the way of ours
_ROUNDING = 1e-6

Nearest = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""See `nearest_in_block`."""


@dataclass(frozen=True, slots=True)
class Probes:
    """The faces to look for. names, faces: what they are called in the result. vectors: (n, dim) float32.

    own: for a probe that is a row of the output itself its place, which is no match; None for others.
    """

    names: Sequence[str]
    faces: Sequence[int]
    vectors: np.ndarray
    own: Sequence[tuple[str, int] | None]

    def __len__(self) -> int:
        return len(self.names)

    def part(self, start: int, end: int) -> Probes:
        """Some of them."""
        return Probes(self.names[start:end], self.faces[start:end], self.vectors[start:end], self.own[start:end])


def nearest_in_block(
    probes: np.ndarray, vectors: np.ndarray, left_out: np.ndarray, least: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k vectors with the highest products with each probe, in NumPy.

    probes: (m, dim) float32. vectors: (n, dim) float32, k <= n. left_out: (n,) which do not count; nor does a product
    that is not finite. least: (m,). Returns the numbers of the probes that have a product above their least one, (b,),
    and of these the products and the rows of the vectors, both (b, k); −inf for a vector that does not count.
    """
    if len(probes) > FEW_PROBES:
        products = probes @ vectors.T
    else:
        products = np.array([np.einsum("nd,d->n", vectors, probe) for probe in probes])
    products[:, left_out] = -np.inf
    peaks = products.max(axis=1)
    if not np.isfinite(peaks).all():
        products = np.where(np.isfinite(products), products, -np.inf)
        peaks = products.max(axis=1)
    better = np.flatnonzero(peaks > least)
    products = products[better]
    if k < products.shape[1]:
        rows = np.sort(np.argpartition(-products, k - 1, axis=1)[:, :k], axis=1)
    else:
        rows = np.tile(np.arange(k), (len(better), 1))
    return better, np.take_along_axis(products, rows, axis=1), rows


@dataclass(frozen=True, slots=True)
class _Found:
    """The best faces of one part, and how many it has."""

    best: Best
    faces: int


@dataclass(slots=True)
class Search:
    """Finds the k most alike committed faces of every probe in an output.

    min_cosine: less alike ones are left out. progress: is told the number of parts that are done, and of all. index:
    searched in place of the parts that it has; None: all are read. nearest: compares a block of vectors of a part with
    probes. faces: searched so far, once for every call.
    """

    output: Output
    k: int
    min_cosine: float = -1.0
    progress: Callable[[int, int], None] = field(default=lambda done, all_: None)
    index: FaceIndex | None = None
    nearest: Nearest = nearest_in_block
    faces: int = 0

    def __call__(self, probes: Probes) -> pa.Table:
        """The matches, with the schema MATCHES, in the order of the probes. Raises OutputError for damaged parts.

        Memory holds the probes, their matches, and some blocks of vectors.
        """
        storage = self.output.storage
        parts = ledger.committed_parts(storage)
        # Its own row is no match; and a run that was killed may have written a face twice, see repair_duplicates.
        kept = self.k * (1 if claim.is_finished(storage) else 2) + any(probes.own)
        best = Best.none(len(probes), kept)
        vectors = unit(probes.vectors)
        everyone = np.arange(len(probes))

        def of_part(number: int) -> _Found:
            # Parts are added in their order, so what a probe has by now is of earlier ones: only better faces count.
            floors = np.maximum(best.cosines[:, -1], self.min_cosine - _ROUNDING)
            return _search_part(storage, parts[number], number, vectors, floors, kept, self.nearest)

        self.faces, numbers = 0, list(range(len(parts)))
        if self.index and self.index.suits(len(probes)):
            known, self.faces = self.index.covers(parts)
            near = self.index.search(self.output, vectors, kept, self.min_cosine - _ROUNDING, parts)
            best.add(everyone, near.cosines, near.parts, near.rows)
            numbers = [number for number in numbers if parts[number] not in known]
        for done, found in enumerate(in_order(storage, lambda i: of_part(numbers[i]), len(numbers)), 1):
            best.add(everyone, found.best.cosines, found.best.parts, found.best.rows)
            self.faces += found.faces
            self.progress(done, len(numbers))
        best.parts[best.cosines < self.min_cosine] = -1
        return self._matches(probes, best, _Names(storage, parts, best))

    def _matches(self, probes: Probes, best: Best, names: _Names) -> pa.Table:
        columns: dict[str, list[object]] = {name: [] for name in MATCHES.names}
        for i, (probe, face, own) in enumerate(zip(probes.names, probes.faces, probes.own, strict=True)):
            found: dict[tuple[str, int], float] = {}
            for cosine, part, row in zip(best.cosines[i], best.parts[i], best.rows[i], strict=True):
                if part >= 0:
                    found.setdefault(names.at(int(part), int(row)), min(float(cosine), 1.0))
            if own:
                found.pop(own, None)
            in_order = sorted(found, key=lambda place: (-found[place], place))
            for rank, place in enumerate(in_order[: self.k], 1):
                for name, value in zip(columns, (probe, face, rank, *place, found[place]), strict=True):
                    columns[name].append(value)
        return pa.table(columns, schema=MATCHES)


class _Names:
    """The uris and face indexes of the faces that were found. Only parts with such faces are read."""

    def __init__(self, storage: Storage, parts: Sequence[str], best: Best) -> None:
        self._places: dict[tuple[int, int], tuple[str, int]] = {}
        numbers = np.unique(best.parts[best.parts >= 0]).tolist()

        def read(i: int) -> tuple[list[int], pa.Table]:
            rows = np.unique(best.rows[best.parts == numbers[i]])
            with reading_part(storage, ledger.FACES, parts[numbers[i]]) as file:
                return rows.tolist(), file.parquet.read(columns=["uri", "face_index"]).take(pa.array(rows))

        for i, (rows, table) in enumerate(in_order(storage, read, len(numbers))):
            found = zip(table["uri"].to_pylist(), table["face_index"].to_pylist(), strict=True)
            self._places.update({(numbers[i], row): place for row, place in zip(rows, found, strict=True)})

    def at(self, part: int, row: int) -> tuple[str, int]:
        """The uri and the face index of a row of a part."""
        return self._places[part, row]


def _search_part(
    storage: Storage, part: str, number: int, probes: np.ndarray, floors: np.ndarray, k: int, nearest: Nearest
) -> _Found:
    """The k best faces of a part for every probe, above its floor. probes: unit vectors."""
    with reading_part(storage, ledger.IMAGES, part) as file:
        committed = file.parquet.read(columns=["uri"])["uri"].combine_chunks()
    start = 0
    with reading_part(storage, ledger.FACES, part) as file:
        best = Best.none(len(probes), min(k, file.parquet.metadata.num_rows))
        check_vectors(storage, part, file.parquet, probes.shape[1])
        uris = file.parquet.read(columns=["uri"], use_threads=False)["uri"]
        counts = pc.is_in(uris, value_set=committed).to_numpy()
        for vectors in vector_blocks(file.content, file.parquet, "embedding", probes.shape[1]):
            if vectors.dtype != np.float32:
                vectors = unit(vectors)                     # float16 has rounded their lengths
            left_out = ~counts[start : start + len(vectors)]
            for first in range(0, len(probes), BLOCK_PROBES):
                some = slice(first, first + BLOCK_PROBES)
                least = np.maximum(best.cosines[some, -1], floors[some])
                count = min(best.cosines.shape[1], len(vectors))
                better, cosines, rows = nearest(probes[some], vectors, left_out, least, count)
                taken = np.where(np.isfinite(cosines), number, -1).astype(np.int32)
                best.add(better + first, cosines, taken, (rows + start).astype(np.int32))
            start += len(vectors)
    return _Found(best, int(counts.sum()))
