"""The blocks of docs/recipes.md, run in their order on an output that was written by code."""

import csv
import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.batch import FaceBatch, ImageRecord, Status
from pipeline.output.ledger import part_name, write_pair
from pipeline.output.sink import ModelNames, faces_table, images_table
from pipeline.run.cluster import REPOSITORY
from pipeline.storage import open_storage

TEXT = (REPOSITORY / "docs/recipes.md").read_text(encoding="utf-8")
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
}
HOSTILE = '/photos/2024/a "b", {c}\n\\.\n[1].jpg'
JANUARY, MARCH = datetime(2024, 1, 31, 23, 30, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)

# Part by part: photo, time of the file, and for each face the side of its box and its person.
PARTS = (
    [("/photos/2023/party.jpg", JANUARY, [(90, 1), (80, 2), (30, 9)]), ("/photos/2023/empty.jpg", JANUARY, [])],
    [("/photos/2024/walk.jpg", JANUARY, [(70, 2), (60, 1)]), (HOSTILE, MARCH, [(200, 1)]),
     ("/photos/2024/friends.jpg", None, [(45, 1), (44, 3)])],
)  # fmt: skip
PHOTOS = [photo for part in PARTS for photo in part]
FACES = [(uri, i, *face) for uri, _, faces in PHOTOS for i, face in enumerate(faces)]
VECTORS = np.random.default_rng(7).normal(size=(len(FACES), 512)).astype(np.float32)
VECTORS[0, :3] = 1e-20, -1e-5, 0          # numbers that text writes with an exponent
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
BLURRED = 1                               # this face's sharpness is low


def batch(photos, first):
    """The rows of a part; first: the number of its first face in `FACES`."""
    records = tuple(
        ImageRecord(uri, Status.OK if faces else Status.NO_FACE, n_faces=len(faces), width=300, height=300, mtime=mtime)
        for uri, mtime, faces in photos
    )
    sides = np.array([side for *_, faces in photos for side, _ in faces], np.float32)
    n, zeros = len(sides), np.zeros(len(sides), np.float32)
    return FaceBatch(
        records, np.array([len(faces) for *_, faces in photos]), np.stack([zeros, zeros, sides, sides + 5], 1),
        np.full(n, 0.9, np.float32), eye_points=np.zeros((n, 12, 2), np.float32), eye_spread=zeros,
        align_ok=np.ones(n, bool), roll_deg=zeros,
        sharpness=np.where(np.arange(first, first + n) == BLURRED, 9, 300).astype(np.float32),
        embeddings=VECTORS[first : first + n], embedding_norms=zeros + 1,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with out/, which holds two parts, half of a third, and who is who."""
    folder = tmp_path_factory.mktemp("recipes")
    storage = open_storage(str(folder / "out"))
    names = ModelNames("d@1", "k@1", "e@1")
    first = 0
    for photos in PARTS:
        rows = batch(photos, first)
        first += len(rows)
        tables = faces_table(rows, names, 512, "float32"), images_table(rows, "r1")
        write_pair(storage, part_name("part", "r1", [uri for uri, *_ in photos]), *tables, lambda: None)
    unfinished = faces_table(batch([("/photos/later.jpg", None, [(500, 1)])], 0), names, 512, "float32")
    pq.write_table(unfinished, folder / "out/faces/part-unfinished.parquet")
    (folder / "out/people").mkdir()
    columns = zip(*((uri, index, person) for uri, index, _, person in FACES), strict=True)
    pq.write_table(pa.table(dict(zip(("uri", "face_index", "person"), columns, strict=True))),
                   folder / "out/people/faces-r1.parquet")
    return folder


@pytest.fixture(scope="module")
def printed(folder):
    """What each block printed, by section: the rows of a table, or the values."""
    said = {title: [] for title in SECTIONS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        namespace = {"print": lambda *values: said[title].append(plain(values))}
        for title, blocks in SECTIONS.items():
            for block in blocks:
                exec(compile(block, f"recipes.md, {title}", "exec"), namespace)
    return said


def plain(values):
    """The rows of a DuckDB relation or a Polars frame; else the values."""
    table = values[0]
    return table.fetchall() if hasattr(table, "fetchall") else table.rows() if hasattr(table, "rows") else values


ALL = sorted((uri, index) for uri, index, *_ in FACES)
GOOD = sorted((uri, index) for n, (uri, index, side, _) in enumerate(FACES) if side >= 40 and n != BLURRED)
BY_FACE = {(uri, index): vector for (uri, index, *_), vector in zip(FACES, VECTORS, strict=True)}


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Both tables as one", [(*face, pytest.approx(0.9), 300, 300) for face in ALL[:5]]),
        ("Good faces only", [(6,)]),
        ("Faces per folder", [("/photos/2024", 3, 5), ("/photos/2023", 1, 3)]),
        ("The largest faces", [
            (HOSTILE, 0, 200, 205), ("/photos/2023/party.jpg", 0, 90, 95), ("/photos/2023/party.jpg", 1, 80, 85),
            ("/photos/2024/walk.jpg", 0, 70, 75), ("/photos/2024/walk.jpg", 1, 60, 65),
            ("/photos/2024/friends.jpg", 0, 45, 50), ("/photos/2024/friends.jpg", 1, 44, 49),
            ("/photos/2023/party.jpg", 2, 30, 35),
        ]),
        ("Photos in which two people meet", [
            (1, 2, 2, "/photos/2023/party.jpg"), (1, 3, 1, "/photos/2024/friends.jpg"),
            (1, 9, 1, "/photos/2023/party.jpg"), (2, 9, 1, "/photos/2023/party.jpg"),
        ]),
        ("A person over time", [("2024-01", 2, 2), ("2024-03", 1, 1)]),
    ],
)  # fmt: skip
def test_duckdb_and_polars_give_the_same_rows(printed, title, expected):
    assert printed[title] == [expected, expected]


def test_arrays_and_tensors_are_the_memory_that_was_read(printed):
    array, tensor = printed["Vectors in NumPy and torch"]
    assert (array[0], str(array[1])) == (9, "float32") and (tensor[0], str(tensor[1])) == (9, "torch.float32")


def test_npy_has_every_face_in_the_order_of_its_names(printed, folder):
    vectors, names = np.load(folder / "vectors.npy", mmap_mode="r"), pq.read_table(folder / "vectors.parquet")
    faces = list(zip(names["uri"].to_pylist(), names["face_index"].to_pylist(), strict=True))
    assert vectors.dtype == np.float32 and sorted(faces) == ALL
    assert np.array_equal(vectors, [BY_FACE[face] for face in faces])


def test_lancedb_finds_the_most_alike_good_faces(printed, folder):
    (found,) = printed["LanceDB"]
    probe = np.load(folder / "vectors.npy")[0]
    cosines = {face: float(BY_FACE[face] @ probe) for face in GOOD}
    assert [row[:2] for row in found] == sorted(GOOD, key=cosines.get, reverse=True)
    assert [row[2] for row in found] == pytest.approx(sorted(cosines.values(), reverse=True), abs=1e-5)


def test_pgvector_gets_csv_that_postgres_reads_and_equal_vectors(printed, folder):
    with (folder / "faces.csv").open(encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file, strict=True)
    assert header == ["uri", "face_index", "embedding"]
    assert sorted((uri, int(index)) for uri, index, _ in found) == GOOD
    number = r"-?\d+(\.\d+)?(e[+-]?\d+)?"
    for uri, index, vector in found:
        assert re.fullmatch(rf"\[{number}(, {number}){{511}}\]", vector)
        assert np.array_equal(np.array(vector[1:-1].split(", "), np.float32), BY_FACE[uri, int(index)])


def test_all_text_for_pgvector_is_quoted(printed, folder):
    """Else Postgres reads an empty text as NULL."""
    content = (folder / "faces.csv").read_bytes().decode()
    assert len(re.findall(r'^"(?:[^"]|"")+",\d+,"\[[^"]+\]"$', content, re.MULTILINE)) == len(GOOD)
