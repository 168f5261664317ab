import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.device_nearest import DeviceNearest
from pipeline.errors import OutputError
from pipeline.output import claim, ledger, sink
from pipeline.people import search as module
from pipeline.people import vectors as blocks
from pipeline.people.likeness import cosines
from pipeline.people.outputs import open_output
from pipeline.people.search import MATCHES, Probes, Search, nearest_in_block
from tests.jobs.erase.test_main import ANN, BOB, batch, write_output

NAMES = sink.ModelNames("d@1", "k@1", "e@1")
ALIKE = 0.6 * ANN + 0.8 * BOB
ON_CPU_BY_TORCH = DeviceNearest(torch.device("cpu"))


def probes(*vectors, own=None):
    """Probes p0, p1, … with these vectors."""
    names = [f"p{i}" for i in range(len(vectors))]
    return Probes(names, range(len(vectors)), np.array(vectors, np.float32), own or [None] * len(vectors))


def find(root, wanted, k=20, **more):
    return Search(open_output(str(root)), k, **more)(wanted)


def rows(table):
    """What was found, in short."""
    assert table.schema == MATCHES
    return [(row["probe"], row["rank"], row["uri"], row["face_index"], round(row["cosine"], 3))
            for row in table.to_pylist()]


def random_output(root, dtype="float32", parts=5, images=30):
    """An output of random vectors, and the vectors by uri and face_index."""
    storage = write_output(root, [])
    random = np.random.default_rng(1)
    vectors = {}
    for part in range(parts):
        of_part = {}
        for i in range(images):
            uri = f"/p/{part}/{i:03}.jpg"
            faces = random.standard_normal((i % 4, 512)).astype(np.float32)
            of_part[uri] = list(faces / np.linalg.norm(faces, axis=1, keepdims=True))
            vectors.update({(uri, face): vector for face, vector in enumerate(of_part[uri])})
        commit(storage, of_part, dtype=dtype)
    return vectors


def commit(storage, images, *, dtype="float32", faces=None):
    """Write a part. faces: in place of those of the images."""
    held = batch(images)
    ledger.write_pair(
        storage, ledger.part_name("part", "r1", images),
        sink.faces_table(held if faces is None else batch(faces), NAMES, 512, dtype), sink.images_table(held, "r1"),
        lambda: None,
    )


@pytest.mark.parametrize("parts", [[], [{"/p/landscape.jpg": []}], [{"/p/broken.jpg": None}]])
def test_an_output_without_faces(tmp_path, parts):
    write_output(tmp_path, parts)
    assert rows(find(tmp_path, probes(ANN))) == []


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_the_most_alike_come_first_for_every_probe(where, request, tmp_path):
    root = tmp_path / "out" if where == "disk" else f"{request.getfixturevalue('bucket').uri}/faces"
    write_output(root)
    assert rows(find(root, probes(ANN, 3 * BOB), k=6)) == [
        ("p0", 1, "/p/ann alone.jpg", 0, 1.0), ("p0", 2, "/p/ann.jpg", 0, 1.0), ("p0", 3, "/p/both.jpg", 1, 1.0),
        ("p0", 4, "/p/like ann.jpg", 0, 0.6), ("p0", 5, "/p/bob.jpg", 0, 0.0), ("p0", 6, "/p/both.jpg", 0, 0.0),
        ("p1", 1, "/p/bob.jpg", 0, 1.0), ("p1", 2, "/p/both.jpg", 0, 1.0), ("p1", 3, "/p/like ann.jpg", 0, 0.8),
        ("p1", 4, "/p/ann alone.jpg", 0, 0.0), ("p1", 5, "/p/ann.jpg", 0, 0.0), ("p1", 6, "/p/both.jpg", 1, 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("count", [1, 2, 3, 40])
@pytest.mark.parametrize(("k", "nearest"), [
    (1, nearest_in_block), (20, nearest_in_block), (100_000, nearest_in_block), (20, ON_CPU_BY_TORCH),
])  # fmt: skip
def test_it_finds_what_all_cosines_say(tmp_path, monkeypatch, dtype, count, k, nearest):
    monkeypatch.setattr(blocks, "BLOCK_FACES", 16)
    monkeypatch.setattr(module, "BLOCK_PROBES", 7)
    vectors = random_output(tmp_path, dtype)
    wanted = np.random.default_rng(2).standard_normal((count, 512)).astype(np.float32)
    progress = []
    find_ = Search(open_output(str(tmp_path)), k, progress=lambda *done: progress.append(done), nearest=nearest)
    found = find_(probes(*wanted)).to_pylist()
    assert progress == [(i, 5) for i in range(1, 6)] and find_.faces == len(vectors)
    all_cosines = cosines(wanted, np.array(list(vectors.values())).astype(dtype))
    places = list(vectors)
    for i in range(count):
        mine = [row for row in found if row["probe"] == f"p{i}"]
        best = np.argsort(-all_cosines[i])[:k]
        assert [row["rank"] for row in mine] == list(range(1, len(best) + 1))
        assert [(row["uri"], row["face_index"]) for row in mine] == [places[j] for j in best]
        assert np.allclose([row["cosine"] for row in mine], all_cosines[i][best], atol=1e-5)


@pytest.mark.parametrize(("least", "count"), [(-1, 7), (0, 7), (0.001, 4), (0.6 - 1e-6, 4), (0.601, 3), (1 - 1e-6, 3)])
def test_the_least_cosine(tmp_path, least, count):
    parts = [{"/p/a.jpg": [ANN, BOB], "/p/b.jpg": [ANN]}, {"/p/c.jpg": [ALIKE, ANN, BOB], "/p/d.jpg": [BOB]}]
    write_output(tmp_path, parts)
    assert len(find(tmp_path, probes(ANN), min_cosine=least)) == count


@pytest.mark.parametrize("nearest", [nearest_in_block, ON_CPU_BY_TORCH])
def test_zero_vectors_have_the_cosine_0_and_broken_ones_are_no_match(tmp_path, nearest):
    broken = np.full(512, np.nan, np.float32)
    write_output(tmp_path, [{"/p/a.jpg": [0 * ANN, ANN, broken]}])
    found = find(tmp_path, probes(ANN), nearest=nearest)
    assert rows(found) == [("p0", 1, "/p/a.jpg", 1, 1.0), ("p0", 2, "/p/a.jpg", 0, 0.0)]
    assert {cosine for *_, cosine in rows(find(tmp_path, probes(0 * ANN), nearest=nearest))} == {0.0}


@pytest.mark.parametrize("nearest", [nearest_in_block, ON_CPU_BY_TORCH])
def test_only_committed_faces_count(tmp_path, nearest):
    storage = write_output(tmp_path, [{"/p/half.jpg": [ANN]}])
    (images,) = storage.list("images")
    storage.delete(images.path)
    commit(storage, {"/p/a.jpg": [ANN]}, faces={"/p/a.jpg": [ANN], "/p/lost.jpg": [ANN]})
    (tmp_path / "faces/of somebody else.parquet").write_bytes(b"x")
    find_ = Search(open_output(str(tmp_path)), 20, nearest=nearest)
    assert rows(find_(probes(ANN))) == [("p0", 1, "/p/a.jpg", 0, 1.0)] and find_.faces == 1


def test_a_face_that_a_killed_run_wrote_twice_is_found_once(tmp_path):
    storage = write_output(tmp_path, [{"/p/a.jpg": [ANN], "/p/b.jpg": [ALIKE]}])
    commit(storage, {"/p/a.jpg": [ANN], "/p/c.jpg": [BOB]})
    storage.delete(claim.RUN_JSON)
    assert [row[2] for row in rows(find(tmp_path, probes(ANN), k=2))] == ["/p/a.jpg", "/p/b.jpg"]


def test_a_row_does_not_find_itself(tmp_path):
    write_output(tmp_path)
    found = rows(find(tmp_path, probes(ANN, ANN, own=[("/p/both.jpg", 1), None]), k=3))
    assert [row[2] for row in found] == [
        "/p/ann alone.jpg", "/p/ann.jpg", "/p/like ann.jpg", "/p/ann alone.jpg", "/p/ann.jpg", "/p/both.jpg"
    ]


def test_vectors_of_another_dimension_are_refused(tmp_path):
    write_output(tmp_path)
    with pytest.raises(OutputError, match="has vectors of 512 values, the probes have 3"):
        find(tmp_path, probes(np.ones(3)))


@pytest.mark.parametrize("folder", ["faces", "images"])
def test_a_part_that_is_cut_off_is_named(tmp_path, folder):
    storage = write_output(tmp_path)
    path = storage.list(folder)[0].path
    storage.write(path, storage.read(path)[:700])
    with pytest.raises(OutputError, match=r"the part .*-r1-.* is damaged"):
        find(tmp_path, probes(ANN))


def test_a_part_of_other_columns_is_refused(tmp_path):
    storage = write_output(tmp_path, [{"/p/a.jpg": [ANN]}])
    (faces,) = storage.list("faces")
    table = pq.read_table(pa.BufferReader(storage.read(faces.path))).drop_columns(["embedding"])
    storage.write(faces.path, ledger.to_parquet(table))
    with pytest.raises(OutputError, match="is damaged"):
        find(tmp_path, probes(ANN))
