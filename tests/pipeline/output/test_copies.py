"""The rows of equal images: all is copied but the names and what the store says of them."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.batch import FaceBatch, ImageRecord, Status
from pipeline.boundary import faces_to_table
from pipeline.output import copies, ledger
from pipeline.output.copies import write_copies
from pipeline.output.duplicates import COPIES
from pipeline.output.lease import Lease, LeaseLost
from pipeline.output.sink import ModelNames, Sink
from pipeline.schemas import LATER_COLUMNS
from pipeline.storage import Storage, open_storage
from tests.support.failing_storage import Crash, DyingStorage

DIM = 4
NOON, LATER = datetime(2026, 1, 2, 12, tzinfo=UTC), datetime(2026, 1, 3, 12, tzinfo=UTC)
IMAGES = {"three": 3, "none": 0, "one": 1, "broken": Status.UNREADABLE, "two": 2}
FACES = {name: count if isinstance(count, int) else 0 for name, count in IMAGES.items()}


def batch(names: list[str]) -> FaceBatch:
    """Images with so many faces, or a status; each face has values of its own."""
    records = tuple(
        ImageRecord(
            name, Status(IMAGES[name]) if isinstance(IMAGES[name], Status) else Status.OK,
            None if isinstance(IMAGES[name], int) else "cut", width=9, n_faces=FACES[name], file_bytes=5,
            sha256=sha256(name), etag=f"etag of {name}", mtime=NOON,
        )
        for name in names
    )
    counts = np.array([FACES[name] for name in names], np.int64)
    n = int(counts.sum())
    values = np.random.default_rng(len(names)).normal(size=(n, DIM)).astype(np.float32)
    return FaceBatch(
        records, counts, values[:, :4], np.linspace(0.9, 0.5, n, dtype=np.float32),
        eye_points=np.tile(values[:, :1, None], (1, 12, 2)),
        eye_spread=np.full(n, np.nan, np.float32), align_ok=np.ones(n, bool), roll_deg=values[:, 0],
        sharpness=values[:, 1], embeddings=values, embedding_norms=values[:, 2],
    )


def sha256(name: str) -> str:
    return f"{list(IMAGES).index(name):064}"


def an_output(folder: str, columns: tuple[str, ...] = LATER_COLUMNS) -> tuple[Storage, list[str]]:
    """An output with two parts, and their names. columns: the later ones that it has."""
    storage = open_storage(folder)
    with Lease.acquire(storage, "before"):
        sink = Sink(storage, "before", "f", ModelNames("d", "k", "e"), DIM, "float32", columns)
        receipts = [sink(faces_to_table(batch(names), "embed")) for names in (list(IMAGES)[:3], list(IMAGES)[3:])]
    return storage, [table["part"][0].as_py() for table in receipts]


def wanted(parts: list[str], *rows: tuple[str, str]) -> pa.Table:
    """Copies of these names and of whom they are copies."""
    found = [
        {"uri": uri, "etag": None, "mtime": LATER, "sha256": sha256(of), "part": parts[list(IMAGES).index(of) // 3],
         "n_faces": FACES[of]}
        for uri, of in rows
    ]
    return pa.Table.from_pylist(found, schema=COPIES).sort_by([("part", "ascending"), ("uri", "ascending")])


def read(storage: Storage, path: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read(path)))


def rows_of(storage: Storage, folder: str, uri: str) -> list[dict]:
    found = []
    for name in ledger.committed_parts(storage):
        table = read(storage, ledger.path_of(folder, name))
        found += table.filter(pc.equal(table["uri"], uri)).to_pylist()
    return found


@pytest.mark.parametrize(
    "pairs",
    [
        (),
        (("a", "three"),),
        (("a", "none"), ("b", "broken")),
        (("z", "three"), ("a", "three"), ("b", "two"), ("c", "one"), ("d", "none"), ("e", "broken"), ("f", "two")),
    ],
)
@pytest.mark.parametrize("columns", [LATER_COLUMNS, ()], ids=["new", "of version 0.1.0"])
def test_everything_is_copied_but_the_names(tmp_path, pairs, columns):
    storage, parts = an_output(str(tmp_path / "out"), columns)
    tables = [wanted(parts, *pairs)] if pairs else []
    written = list(write_copies(storage, tables, "now", "f", lambda: None))
    assert [images for _, images in written] == ([len(pairs)] if pairs else [])
    assert set(ledger.committed_parts(storage)) == {*parts, *(name for name, _ in written)}
    for uri, of in pairs:
        [original], [copy] = (rows_of(storage, "images", name) for name in (of, uri))
        assert copy == original | {"uri": uri, "etag": None, "mtime": LATER, "run_id": "now"}
        originals, faces = (rows_of(storage, "faces", name) for name in (of, uri))
        assert faces == [face | {"uri": uri} for face in originals] and len(faces) == FACES[of]


def test_a_copied_part_is_like_others(tmp_path):
    storage, parts = an_output(str(tmp_path / "out"))
    [(name, _)] = write_copies(storage, [wanted(parts, ("b", "two"), ("a", "three"))], "now", "f", lambda: None)
    assert name == ledger.part_name("part", "now", ["a", "b"])
    for folder in ("images", "faces"):
        ours, theirs = (read(storage, ledger.path_of(folder, part)) for part in (name, parts[0]))
        assert ours.schema.equals(theirs.schema)
        assert ours.schema.metadata == theirs.schema.metadata | {b"facelake.run_id": b"now"}
        keys = list(zip(*(ours[key].to_pylist() for key in ("uri", "face_index") if key in ours.schema.names),
                        strict=True))
        assert keys == sorted(keys)


def test_a_part_with_too_many_faces_is_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "MAX_FACES_PER_PART", 4)
    storage, parts = an_output(str(tmp_path / "out"))
    table = wanted(parts, *((f"{number}", "three") for number in range(3)), ("x", "two"), ("y", "two"))
    written = [images for _, images in write_copies(storage, [table], "now", "f", lambda: None)]
    assert sorted(written) == [1, 1, 1, 2] and sum(written) == 5


def test_without_the_lease_nothing_is_copied(tmp_path):
    storage, parts = an_output(str(tmp_path / "out"))

    def lost():
        raise LeaseLost("another run has taken over")

    with pytest.raises(LeaseLost):
        list(write_copies(storage, [wanted(parts, ("a", "three"))], "now", "f", lost))
    assert ledger.committed_parts(storage) == sorted(parts) and ledger.remove_halves(storage) == 0


@pytest.mark.parametrize("survives", range(4))
def test_a_kill_leaves_whole_parts_and_halves_that_are_removed(tmp_path, survives):
    storage, parts = an_output(str(tmp_path / "out"))
    tables = [wanted(parts, ("a", "three")), wanted(parts, ("b", "two"))]
    with pytest.raises(Crash):
        list(write_copies(DyingStorage(storage, survives), tables, "now", "f", lambda: None))
    assert ledger.remove_halves(storage) == survives % 2
    assert len(ledger.committed_parts(storage)) == 2 + survives // 2
