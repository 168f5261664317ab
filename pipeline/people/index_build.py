"""Make and update the index of an output, a segment at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import faiss
import numpy as np
import pyarrow.compute as pc

from pipeline.output import claim, ledger
from pipeline.people.best import Best
from pipeline.people.codes import Codes
from pipeline.people.index import FLAT, INDEX_JSON, PQ, FaceIndex, Manifest, Segment, refuse_other_output
from pipeline.people.likeness import unit
from pipeline.people.outputs import Output, reading_part
from pipeline.people.parallel import in_order
from pipeline.people.vectors import vector_blocks
from pipeline.storage import Storage

FLAT_FACES = 100_000          # fewer are compared one by one
SEGMENT_FACES = 65_536        # 134 MB of vectors while one is made
TRAINING_FACES = 8_192         # faiss uses 4,096 of them: 256 for each of 16 centroids
TRAINING_PARTS = 64
RETRAINED = 8                 # times as many faces as when the product quantiser was trained
RECALL_PROBES, RECALL_K = 50, 20

WriteFiles = Callable[[Mapping[str, bytes]], None]


@dataclass(frozen=True, slots=True)
class Built:
    """An index that is complete in its folder. made, kept, dropped: how many segments. note: why all are new, or "".

    left_out: parts with vectors that are not finite, or with faces that do not count; the search reads them.
    """

    manifest: Manifest
    made: int
    kept: int
    dropped: int
    left_out: Sequence[str]
    note: str


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors (n, dim) float32 of a part. usable: whether all of its faces count and have finite vectors."""

    part: str
    vectors: np.ndarray
    usable: bool


def build_index(
    output: Output, storage: Storage, before: Manifest | None, write: WriteFiles, progress: Callable[[int, int], None]
) -> Built:
    """Make the index of an output in a folder, or update what is there.

    before: what the folder has. write: writes files of the folder, each whole or not at all. progress: is told the
    number of faces that are done, and of all. The new index counts from when index.json is written, the last file.
    Memory holds one segment. Raises OutputError.
    """
    faiss.omp_set_num_threads(1)          # on a busy machine its threads wait for each other: 40 times as slow
    parts = ledger.committed_parts(output.storage)
    if before:
        refuse_other_output(storage, before, output, parts)
    sizes = _sizes(output.storage, parts, before)
    faces = sum(rows for rows, _ in sizes.values())
    dim = next((dim for rows, dim in sizes.values() if rows), before.dim if before else 0)
    kind = PQ if faces >= FLAT_FACES and dim % 2 == 0 else FLAT
    kept, quantiser, note = _what_stays(storage, before, parts, kind, faces)
    if kind == PQ and quantiser is None:
        quantiser = _train(output.storage, [part for part in parts if sizes[part][0]], dim)
    known = {part for segment in kept for part in segment.parts}
    groups = list(_groups([(part, sizes[part][0]) for part in parts if part not in known]))
    made, left_out, done = list[Segment](), list[str](), 0
    for group in groups:
        segment, unusable = _make_segment(output.storage, group, dim, quantiser, write)
        made.append(segment)
        left_out += unusable
        done += segment.faces
        progress(done, faces - sum(segment.faces for segment in kept))
    trained_on = before.trained_on if before and kept and kind == PQ else faces if kind == PQ else 0
    manifest = Manifest(
        kind, output.storage.root, str((claim.begun_with(output.storage) or {}).get("fingerprint", "")),
        output.models["embedder"], dim, [*kept, *made], _parameters(kind, dim), trained_on,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    manifest = _with_recall(storage, manifest)
    write({INDEX_JSON: manifest.to_json()})
    return Built(manifest, len(made), len(kept), len(before.segments) - len(kept) if before else 0, left_out, note)


def files_of(manifest: Manifest) -> set[str]:
    """The names of all files of an index."""
    planes = ("high", "low", "pq") if manifest.kind == PQ else ("high", "low")
    return {INDEX_JSON, *(f"{segment.name}.{plane}" for segment in manifest.segments if segment.faces
                          for plane in planes)}


def _parameters(kind: str, dim: int) -> dict[str, Any]:
    exact = {"codes": "16 bits a value, in two planes", "exact_scan": "IndexScalarQuantizer, QT_8bit_direct_signed"}
    if kind == FLAT:
        return exact
    return {**exact, "scan": "IndexPQFastScan", "subquantisers": dim // 2, "bits": 4, "segment_faces": SEGMENT_FACES}


def _sizes(storage: Storage, parts: Sequence[str], before: Manifest | None) -> dict[str, tuple[int, int]]:
    """How many faces each part has, and of how many values their vectors are."""
    known = {part: (rows, before.dim) for segment in before.segments
             for part, rows in zip(segment.parts, segment.rows, strict=True)} if before else {}
    new = [part for part in parts if part not in known]

    def size(i: int) -> tuple[int, int]:
        with reading_part(storage, ledger.FACES, new[i]) as file:
            kind = file.parquet.schema_arrow.field("embedding").type
            return file.parquet.metadata.num_rows, kind.list_size

    found = dict(zip(new, in_order(storage, size, len(new)), strict=True))
    return {part: known.get(part) or found[part] for part in parts}


def _what_stays(
    storage: Storage, before: Manifest | None, parts: Sequence[str], kind: str, faces: int
) -> tuple[list[Segment], Any, str]:
    """The segments that are kept, their product quantiser, and why none are kept, if all have to be made again."""
    if before is None or not before.segments:
        return [], None, ""
    if before.kind != kind:
        return [], None, f"{faces:,} faces take another kind of index, so all of it was made again"
    if kind == PQ and faces > RETRAINED * before.trained_on:
        return [], None, f"there are {RETRAINED} times as many faces as when it was trained, so all was made again"
    usable = FaceIndex(storage, before).usable(parts)
    kept = [segment for segment in usable if segment.faces >= SEGMENT_FACES // 2]
    if kind == FLAT or not kept:
        return kept, None, ""
    content = storage.read(f"{kept[0].name}.pq")
    quantiser = faiss.deserialize_index(np.frombuffer(content, np.uint8))
    quantiser.reset()
    return kept, quantiser, ""


def _groups(sizes: Sequence[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Parts and their faces in groups of at most SEGMENT_FACES faces, or of one part."""
    group: list[tuple[str, int]] = []
    for part, rows in sizes:
        if group and sum(size for _, size in group) + rows > SEGMENT_FACES:
            yield group
            group = []
        group.append((part, rows))
    if group:
        yield group


def _make_segment(
    storage: Storage, group: Sequence[tuple[str, int]], dim: int, quantiser: Any, write: WriteFiles
) -> tuple[Segment, list[str]]:
    """Write the files of a segment. Returns it, and the parts that cannot be in it."""
    vectors = np.empty((sum(rows for _, rows in group), dim), np.float32)
    parts, rows, left_out, filled = [], [], [], 0
    for found in in_order(storage, lambda i: read_vectors(storage, group[i][0], dim), len(group)):
        if not found.usable:
            left_out.append(found.part)
            continue
        parts.append(found.part)
        rows.append(len(found.vectors))
        vectors[filled : filled + len(found.vectors)] = found.vectors
        filled += len(found.vectors)
    name = hashlib.sha256("\n".join([*parts, _name_of(quantiser)]).encode()).hexdigest()[:16]
    if not filled:
        return Segment(name, parts, rows), left_out
    codes = Codes.of(vectors[:filled])
    files = {f"{name}.{plane}": content for plane, content in codes.to_bytes().items()}
    if quantiser is not None:
        quantiser.add(vectors[:filled])
        files[f"{name}.pq"] = faiss.serialize_index(quantiser).tobytes()
        quantiser.reset()
    write(files)
    return Segment(name, parts, rows, codes.scale, codes.high_error, codes.low_error), left_out


def _name_of(quantiser: Any) -> str:
    """What tells one product quantiser from another."""
    if quantiser is None:
        return FLAT
    return hashlib.sha256(faiss.vector_to_array(quantiser.pq.centroids).tobytes()).hexdigest()


def read_vectors(storage: Storage, part: str, dim: int) -> Vectors:
    """The unit vectors of a part. Raises OutputError."""
    with reading_part(storage, ledger.IMAGES, part) as file:
        committed = file.parquet.read(columns=["uri"])["uri"].combine_chunks()
    with reading_part(storage, ledger.FACES, part) as file:
        if not file.parquet.metadata.num_rows:
            return Vectors(part, np.zeros((0, dim), np.float32), usable=True)
        uris = file.parquet.read(columns=["uri"], use_threads=False)["uri"]
        blocks = vector_blocks(file.content, file.parquet, "embedding", dim)
        vectors = np.concatenate([block if block.dtype == np.float32 else unit(block) for block in blocks])
    all_count = pc.all(pc.is_in(uris, value_set=committed)).as_py()
    return Vectors(part, vectors, usable=bool(all_count and np.isfinite(vectors).all()))


def _train(storage: Storage, parts: Sequence[str], dim: int) -> Any:
    """A product quantiser for these vectors: 4 bits for 2 values."""
    step = max(1, len(parts) // TRAINING_PARTS)
    chosen = parts[::step][:TRAINING_PARTS]
    each = -(-TRAINING_FACES // len(chosen))
    found = [found.vectors[:each] for found in
             in_order(storage, lambda i: read_vectors(storage, chosen[i], dim), len(chosen)) if found.usable]
    quantiser = faiss.IndexPQFastScan(dim, dim // 2, 4, faiss.METRIC_INNER_PRODUCT)
    quantiser.pq.cp.min_points_per_centroid = 1          # no warning on stdout for a small sample
    quantiser.train(np.concatenate(found)[:TRAINING_FACES])
    return quantiser


def _with_recall(storage: Storage, manifest: Manifest) -> Manifest:
    """The manifest with the recall at 20 on some faces of the index, which do not count as found themselves."""
    segments = [segment for segment in manifest.segments if segment.faces]
    if manifest.kind == FLAT or not segments:
        return replace(manifest, recall_at_20=1.0)
    fast, exact = FaceIndex(storage, manifest), FaceIndex(storage, manifest, exact=True)
    each = -(-RECALL_PROBES // len(segments))
    probes = np.concatenate([fast.vectors(segment, each) for segment in segments])[:RECALL_PROBES]
    k = RECALL_K + 1
    found, wanted = (index.nearest(probes, k, -1.0, segments) for index in (fast, exact))
    shares = [len(_rows(found, i, k) & _rows(wanted, i, k)) - 1 for i in range(len(probes))]
    return replace(manifest, recall_at_20=round(sum(shares) / RECALL_K / len(probes), 4), recall_probes=len(probes))


def _rows(best: Best, probe: int, k: int) -> set[tuple[int, int]]:
    return set(zip(best.parts[probe, :k].tolist(), best.rows[probe, :k].tolist(), strict=True))
