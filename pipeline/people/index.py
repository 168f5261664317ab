"""An index of the faces of an output: a folder with `index.json` and the files of segments.

A segment holds the vectors of some parts, in their order: as 16-bit codes (see codes.py), and in large indexes as
4-bit codes of a product quantiser, which are scanned first. Segments are never changed. A segment counts only while
all its parts are in the output: what was erased or rewritten since is never found.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from threading import Lock
from typing import Any

import faiss
import numpy as np

from pipeline.errors import OutputError, is_damage
from pipeline.output import ledger
from pipeline.people.best import Best
from pipeline.people.codes import Codes
from pipeline.people.likeness import unit
from pipeline.people.outputs import Output, bytes_of, check_vectors, reading_part
from pipeline.people.parallel import in_order
from pipeline.people.vectors import vectors_at
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import parse_input_uri

INDEX_JSON = "index.json"
FORMAT = 1
FLAT, PQ = "flat", "pq"
NEAR = 128               # rows of a segment that the product quantiser proposes; for a recall at 20 of 0.99, see docs
FEW_EXACT = 32           # more probes are compared faster with the vectors of the parts, by matrices
_SPARE = 64              # candidates of an exact search beyond k
_PROBES = 512            # searched together
_HELD_SEGMENTS = 128     # that stay in memory; 1 GB
_TOGETHER = 16           # segments whose candidates are compared at once

_Near = tuple[np.ndarray, np.ndarray]      # cosines of candidates, and their rows of a segment


class IndexRefused(OutputError):   # noqa: N818
    """This index cannot be used. The message says why."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The faces of some parts. rows: how many each has. name: the beginning of its files' names.

    scale, high_error, low_error: see Codes.
    """

    name: str
    parts: Sequence[str]
    rows: Sequence[int]
    scale: float = 0.0
    high_error: float = 0.0
    low_error: float = 0.0

    @property
    def faces(self) -> int:
        """How many it has."""
        return sum(self.rows)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of index.json. output: where it was when the index was made. embedder: the fingerprint of its card.

    trained_on: how many faces there were when the product quantiser was trained; 0 for a flat index. recall_at_20:
    measured on `recall_probes` faces against the exact search.
    """

    kind: str
    output: str
    fingerprint: str
    embedder: Mapping[str, Any]
    dim: int
    segments: Sequence[Segment]
    parameters: Mapping[str, Any]
    trained_on: int = 0
    recall_at_20: float | None = None
    recall_probes: int = 0
    made: str = ""
    format: int = FORMAT

    @property
    def faces(self) -> int:
        """How many are in it."""
        return sum(segment.faces for segment in self.segments)

    @property
    def parts(self) -> list[str]:
        """The parts that are in it."""
        return [part for segment in self.segments for part in segment.parts]

    def to_json(self) -> bytes:
        """The content of index.json, with the totals that a reader looks for first."""
        totals = {"faces": self.faces, "parts": len(self.parts)}
        return json.dumps({**totals, **asdict(self)}, indent=1).encode()


def open_index(place: str) -> Storage:
    """The folder of an index at a path or a bucket URI. Raises UriError."""
    return open_storage(*parse_input_uri(place))


def read_manifest(storage: Storage) -> Manifest | None:
    """What is in the index of a folder; None if there is none. Raises IndexRefused if it is damaged."""
    try:
        content = storage.read(INDEX_JSON)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(content)
        segments = [Segment(**segment) for segment in found.pop("segments")]
        if found["format"] != FORMAT or found["kind"] not in (FLAT, PQ):
            raise ValueError("another format")
        fields = {name: value for name, value in found.items() if name not in ("faces", "parts")}
        return Manifest(segments=segments, **fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise IndexRefused(
            f"{storage.root}/{INDEX_JSON} is damaged or of another version of facelake: delete the folder, and make "
            "the index again with jobs.index"
        ) from None


def refuse_other_output(storage: Storage, manifest: Manifest, output: Output, parts: Sequence[str]) -> None:
    """Raises IndexRefused unless the index is of this output and its embedder."""
    if manifest.embedder != output.models["embedder"]:
        raise IndexRefused(
            f"the index {storage.root} has vectors of the embedder {_short(manifest.embedder)}, {output.storage.root} "
            f"of {_short(output.models['embedder'])}: vectors of two embedders cannot be compared. Make an index of "
            "this output in another folder"
        )
    if manifest.output != output.storage.root and not set(manifest.parts) & set(parts):
        raise IndexRefused(
            f"the index {storage.root} is of another output, {manifest.output}. Make one of {output.storage.root} in "
            "another folder"
        )


def _short(embedder: Mapping[str, Any]) -> str:
    return f"{embedder['architecture']['network']}@{embedder['tensors_sha256'][:12]}"


class FaceIndex:
    """Finds the most alike faces in an index. exact: as the search of the parts does; else fast, most of them."""

    def __init__(self, storage: Storage, manifest: Manifest, *, exact: bool = False) -> None:
        self.manifest = manifest
        self._storage = storage
        self._exact = exact or manifest.kind == FLAT
        self._opened: OrderedDict[str, tuple[Codes, Any]] = OrderedDict()
        self._lock = Lock()

    def suits(self, probes: int) -> bool:
        """Whether so many probes are found faster than in the parts."""
        return not self._exact or probes <= FEW_EXACT

    def usable(self, parts: Collection[str]) -> list[Segment]:
        """The segments whose parts are all among these, the committed ones."""
        known = set(parts)
        return [segment for segment in self.manifest.segments if segment.faces and known.issuperset(segment.parts)]

    def covers(self, parts: Collection[str]) -> tuple[set[str], int]:
        """Which of these parts it has, and how many faces they have."""
        known = set(parts)
        segments = [segment for segment in self.manifest.segments if known.issuperset(segment.parts)]
        return {part for segment in segments for part in segment.parts}, sum(segment.faces for segment in segments)

    def search(self, output: Output, probes: np.ndarray, k: int, floor: float, parts: Sequence[str]) -> Best:
        """The k most alike faces of each probe, at least of the cosine `floor`; parts by their numbers in `parts`.

        probes: unit vectors (m, dim) float32. If the index is exact, the cosines are those of the vectors in the parts;
        else those of the codes, off by at most `Segment.low_error`, which is below 0.0001. Raises
        OutputError.
        """
        segments = self.usable(parts)
        if segments and probes.shape[1] != self.manifest.dim:
            raise IndexRefused(
                f"the index {self._storage.root} has vectors of {self.manifest.dim} values, the probes have "
                f"{probes.shape[1]}: vectors of two dimensions cannot be compared"
            )
        best = Best.none(len(probes), k)
        for start in range(0, len(probes), _PROBES):
            some = np.arange(start, min(start + _PROBES, len(probes)))
            near = self.nearest(probes[some], k, floor, segments)
            found = _in_parts(near, segments, parts)
            if self._exact:
                found = _with_cosines(output, probes[some], found, parts)
            best.add(some, found.cosines, found.parts, found.rows)
        best.parts[best.cosines < floor] = -1
        return best

    def nearest(self, probes: np.ndarray, k: int, floor: float, segments: Sequence[Segment]) -> Best:
        """The candidates: cosines by the 16-bit codes, numbers of segments in `segments`, rows of these.

        If the index is exact, all that can be among the k most alike faces are there; more than k then.
        """
        error = max((segment.low_error for segment in segments), default=0.0) + 1e-5
        count = k + _SPARE if self._exact else k
        while True:
            best = self._scan(probes, k, count, floor, segments)
            crowded = best.cosines[:, -1] >= np.maximum(best.cosines[:, k - 1] - 2 * error, floor - error)
            if not self._exact or not (crowded & (best.parts[:, -1] >= 0)).any():
                return best
            count *= 4

    def vectors(self, segment: Segment, count: int) -> np.ndarray:
        """Some vectors of a segment, evenly spread, by their codes; (count, dim) float32."""
        codes, _ = self._open(segment)
        return unit(codes.vectors(np.linspace(0, len(codes) - 1, min(count, len(codes))).astype(np.int64)))

    def _scan(self, probes: np.ndarray, k: int, count: int, floor: float, segments: Sequence[Segment]) -> Best:
        best, everyone = Best.none(len(probes), count), np.arange(len(probes))

        def of_segment(number: int) -> list[_Near]:
            faiss.omp_set_num_threads(1)               # of this thread: segments are searched side by side
            codes, quantiser = self._open(segments[number])
            if self._exact:
                least = np.maximum(best.cosines[:, k - 1] - codes.error, floor)
                return [_nearest_exact(codes, probes[i], k, float(least[i])) for i in range(len(probes))]
            _, rows = quantiser.search(probes, min(len(codes), max(NEAR, 4 * k)))
            return [(codes.products(probes[i], rows[i]), rows[i]) for i in range(len(probes))]

        found = in_order(self._storage, of_segment, len(segments))
        together = 1 if self._exact else _TOGETHER           # what is found by now spares an exact search work
        for first in range(0, len(segments), together):
            some = list(islice(found, together))
            for i in everyone:
                cosines, rows = (np.concatenate([near[i][kind] for near in some]) for kind in (0, 1))
                numbers = np.repeat(np.arange(first, first + len(some)), [len(near[i][1]) for near in some])
                best.add(everyone[i : i + 1], cosines[None], numbers[None].astype(np.int32), rows[None])
        return best

    def _open(self, segment: Segment) -> tuple[Codes, Any]:
        """The codes and the product quantiser of a segment."""
        with self._lock:
            if segment.name in self._opened:
                self._opened.move_to_end(segment.name)
                return self._opened[segment.name]
        try:
            planes = {plane: bytes_of(self._storage, f"{segment.name}.{plane}") for plane in ("high", "low")}
            codes = Codes.read(planes, segment.scale, segment.high_error, segment.low_error)
            quantiser = None
            if self.manifest.kind == PQ:
                quantiser = faiss.deserialize_index(np.asarray(bytes_of(self._storage, f"{segment.name}.pq")))
            if len(codes) != segment.faces:
                raise ValueError("another number of faces")
        except (OSError, ValueError, RuntimeError) as error:
            if not is_damage(error):
                raise
            raise IndexRefused(
                f"the index {self._storage.root} is damaged: its files {segment.name} are missing or cut off. Delete "
                "the folder, and make the index again with jobs.index"
            ) from None
        with self._lock:
            self._opened[segment.name] = codes, quantiser
            if len(self._opened) > _HELD_SEGMENTS:
                self._opened.popitem(last=False)
        return codes, quantiser


def _nearest_exact(codes: Codes, probe: np.ndarray, k: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a segment that can be among the k most alike, with their cosines by the codes. probe: (dim,).

    least: a cosine that the k-th of them has at least.
    """
    count = min(len(codes), k + _SPARE)
    while True:
        rows, bound, off = codes.scan(probe[None], count)
        cosines = codes.products(probe, rows[0])
        if count >= k:
            least = max(least, float(np.partition(cosines, count - k)[count - k]) - codes.error)
        if count == len(codes) or bound[0] + off[0] < least:
            kept = cosines >= least - codes.error
            return cosines[kept], rows[0][kept]
        count = min(len(codes), 4 * count)


def _in_parts(near: Best, segments: Sequence[Segment], parts: Sequence[str]) -> Best:
    """The candidates with parts and rows as the output numbers them."""
    numbers = {part: number for number, part in enumerate(parts)}
    found = Best(near.cosines, np.full_like(near.parts, -1), np.zeros_like(near.rows))
    for number in np.unique(near.parts[near.parts >= 0]):
        segment = segments[number]
        taken = near.parts == number
        ends = np.cumsum(segment.rows)
        place = np.searchsorted(ends, near.rows[taken], side="right")
        found.parts[taken] = np.array([numbers[part] for part in segment.parts], np.int32)[place]
        found.rows[taken] = near.rows[taken] - (ends - segment.rows)[place]
    return found


def _with_cosines(output: Output, probes: np.ndarray, near: Best, parts: Sequence[str]) -> Best:
    """The candidates with the cosines of the vectors in the parts."""
    wanted = np.unique(near.parts[near.parts >= 0]).tolist()
    exact = np.full_like(near.cosines, -np.inf)

    def of_part(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        who, places = np.nonzero(near.parts == wanted[i])
        rows, at = np.unique(near.rows[who, places], return_inverse=True)
        vectors = np.concatenate(list(_rows_of(output.storage, parts[wanted[i]], rows, probes.shape[1])))
        return who, places, np.einsum("nd,nd->n", vectors[at], probes[who])

    for who, places, cosines in in_order(output.storage, of_part, len(wanted)):
        exact[who, places] = cosines
    return Best(exact, near.parts, near.rows)


def _rows_of(storage: Storage, part: str, rows: np.ndarray, dim: int) -> Iterator[np.ndarray]:
    """The vectors of these rows of a part, sorted; float32."""
    with reading_part(storage, ledger.FACES, part, few=True) as file:
        check_vectors(storage, part, file.parquet, dim)
        for block in vectors_at(file.content, file.parquet, "embedding", dim, rows):
            yield block if block.dtype == np.float32 else unit(block)
