from datetime import UTC, datetime

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.batch import FaceBatch, ImageRecord, Status
from pipeline.boundary import faces_to_table
from pipeline.output import ledger
from pipeline.output.lease import Lease, LeaseLost
from pipeline.output.sink import ModelNames, Sink, WriteError
from pipeline.schemas import IMAGES, LATER_COLUMNS, faces_schema
from pipeline.storage import open_storage

DIM = 512
TOLERANCE = {"float32": 1e-6, "float16": 1e-3}
RUN = "20260101T000000-abcdef"
MODELS = ModelNames("yolov8n-face@000000000000", "resnet18-eyes@111111111111", "edgenext-arcface@222222222222")


def batch_of(**images):
    """Images by name: the number of faces, or a status without faces."""
    records, counts = [], []
    for name, content in images.items():
        faces = content if isinstance(content, int) else 0
        status = (Status.OK if faces else Status.NO_FACE) if isinstance(content, int) else content
        good = isinstance(content, int)
        records.append(ImageRecord(
            f"/photos/{name}.jpg", status, None if good else "why", width=640 if good else None,
            height=480 if good else None, n_faces=faces if good else None, sha256="ab" * 32, file_bytes=5,
            mtime=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
        ))
        counts.append(faces)
    n = sum(counts)
    random = np.random.default_rng(n)
    vectors = random.normal(size=(n, DIM)).astype(np.float32)
    eyes = np.concatenate([np.full((n, 6, 2), [10, 20]), np.full((n, 6, 2), [40, 60])], axis=1).astype(np.float32)
    return FaceBatch(
        tuple(records), np.array(counts, np.int64), random.uniform(0, 99, (n, 4)).astype(np.float32),
        np.linspace(0.9, 0.5, n, dtype=np.float32), eye_points=eyes,
        eye_spread=np.where(np.arange(n), 0.02, np.nan).astype(np.float32), align_ok=np.ones(n, bool),
        roll_deg=np.zeros(n, np.float32), sharpness=np.ones(n, np.float32),
        embeddings=vectors / np.linalg.norm(vectors, axis=1, keepdims=True), embedding_norms=np.full(n, 7, np.float32),
        points5=np.where(np.arange(n)[:, None, None] % 2, np.nan, np.arange(10.0).reshape(5, 2)).astype(np.float32),
    )


@pytest.fixture
def written(tmp_path):
    """A function that writes a batch under a lease and returns the folder and the receipts."""

    def write(dtype, **images):
        storage = open_storage(str(tmp_path / "out"))
        with Lease.acquire(storage, RUN):
            receipts = Sink(storage, RUN, "f" * 64, MODELS, DIM, dtype)(faces_to_table(batch_of(**images), "embed"))
        return tmp_path / "out", receipts.to_pylist()

    return write


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("images", [{"empty": 0}, {"a": 1}, {"b": 2, "a": 0, "c": Status.UNREADABLE, "d": 3}])
def test_pyarrow_reads_back_the_declared_schema(written, dtype, images):
    folder, _ = written(dtype, **images)
    faces, rows = (ds.dataset(folder / name).to_table() for name in ("faces", "images"))
    assert faces.schema.remove_metadata() == faces_schema(DIM, dtype)
    assert rows.schema.remove_metadata() == IMAGES
    assert faces.schema.metadata[b"facelake.fingerprint"] == b"f" * 64
    assert len(rows) == len(images)
    assert len(faces) == sum(n for n in images.values() if isinstance(n, int))


def test_the_columns_of_both_tables(written):
    folder, _ = written("float32", b=2, a=0, c=Status.UNREADABLE)
    rows = pq.read_table(folder / "images").to_pylist()
    assert [(r["uri"], r["status"], r["n_faces"], r["error"], r["run_id"]) for r in rows] == [
        ("/photos/a.jpg", "no_face", 0, None, RUN),
        ("/photos/b.jpg", "ok", 2, None, RUN),
        ("/photos/c.jpg", "unreadable", None, "why", RUN),
    ]
    assert rows[0]["mtime"] == datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    faces = pq.read_table(folder / "faces").to_pylist()
    assert [(f["uri"], f["face_index"]) for f in faces] == [("/photos/b.jpg", 0), ("/photos/b.jpg", 1)]
    face = faces[0]
    assert (face["left_eye_x"], face["left_eye_y"], face["right_eye_x"], face["right_eye_y"]) == (10, 20, 40, 60)
    assert face["eye_distance_px"] == 50 and face["eye_points"][:2] == [10, 20] and len(face["eye_points"]) == 24
    assert [each["points5"] for each in faces] == [list(range(10)), None]      # the second face's detector gave none
    assert face["detector"] == MODELS.detector and face["embedder"] == MODELS.embedder
    assert [f["eye_spread"] for f in faces] == [None, pytest.approx(0.02)]


@pytest.mark.parametrize("columns", [(), ("tiles",), LATER_COLUMNS])
def test_an_output_keeps_the_columns_that_it_began_with(tmp_path, columns):
    storage = open_storage(str(tmp_path))
    with Lease.acquire(storage, RUN):
        Sink(storage, RUN, "f" * 64, MODELS, DIM, "float32", columns)(faces_to_table(batch_of(a=1), "embed"))
    names = {name for table in ("faces", "images") for name in pq.read_table(tmp_path / table).column_names}
    assert names & set(LATER_COLUMNS) == set(columns)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
class TestReaders:
    """The readers that analysts use; each gets unit vectors."""

    @pytest.fixture
    def folder(self, written, dtype):
        return written(dtype, a=2, b=0, c=1)[0]

    def test_duckdb(self, folder, dtype):
        rows = duckdb.sql(f"SELECT uri, embedding FROM '{folder}/faces/*.parquet'").fetchall()
        assert len(rows) == 3
        assert all(abs(np.linalg.norm(vector) - 1) < TOLERANCE[dtype] for _, vector in rows)
        kind = duckdb.sql(f"SELECT typeof(embedding) FROM '{folder}/faces/*.parquet' LIMIT 1").fetchall()
        assert kind == [("FLOAT[]",)]
        same = duckdb.sql(
            "SELECT array_cosine_similarity(embedding::FLOAT[512], embedding::FLOAT[512]) "
            f"FROM '{folder}/faces/*.parquet'"
        ).fetchall()
        assert all(abs(value - 1) < 1e-5 for (value,) in same)

    def test_polars(self, folder, dtype):
        table = pl.read_parquet(folder / "faces/*.parquet")
        inner = {"float32": pl.Float32, "float16": getattr(pl, "Float16", pl.Float32)}[dtype]
        assert table.schema["embedding"] == pl.Array(inner, DIM)
        assert table.schema["eye_points"] == pl.Array(pl.Float32, 24)
        vectors = np.array(table["embedding"].to_list())
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=TOLERANCE[dtype])

    def test_pandas(self, folder, dtype):
        table = pd.read_parquet(folder / "faces")
        vectors = np.stack(table["embedding"])
        assert vectors.shape == (3, DIM) and vectors.dtype == dtype
        assert np.allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=TOLERANCE[dtype])
        assert pd.read_parquet(folder / "images")["status"].tolist() == ["ok", "no_face", "ok"]


def test_receipts_count_and_images_to_retry_get_a_part_of_their_own(written):
    folder, receipts = written("float32", a=2, b=0, c=Status.FETCH_FAILED, d=Status.TOO_LARGE, e=Status.FAILED)
    done, again = receipts
    assert done["part"].startswith(f"part-{RUN}-") and again["part"].startswith(f"retry-{RUN}-")
    assert (done["images"], done["faces"], done["ok"], done["no_face"], done["too_large"]) == (3, 2, 1, 1, 1)
    assert (again["images"], again["faces"], again["fetch_failed"], again["failed"]) == (2, 0, 1, 1)
    assert (done["bytes"], again["bytes"]) == (3 * 5, 2 * 5)
    assert len(list((folder / "images").iterdir())) == len(list((folder / "faces").iterdir())) == 2


def test_an_image_that_is_twice_in_one_batch_is_written_once(tmp_path):
    """An actor that died and was replaced may send it twice."""
    storage = open_storage(str(tmp_path))
    rows = faces_to_table(batch_of(a=2, b=1, c=0), "embed")
    with Lease.acquire(storage, RUN):
        sink = Sink(storage, RUN, "f" * 64, MODELS, DIM, "float32")
        [once], [twice] = (sink(table).to_pylist() for table in (rows, pa.concat_tables([rows, rows.slice(1)])))
    assert twice == once and once["images"] == 3
    assert pq.read_table(tmp_path / "faces")["uri"].to_pylist() == ["/photos/a.jpg"] * 2 + ["/photos/b.jpg"]


def test_a_repeated_write_overwrites_itself(written):
    _, first = written("float32", a=2, b=0)
    folder, second = written("float32", b=0, a=2)
    assert len(list((folder / "images").iterdir())) == 1 and first[0]["part"] == second[0]["part"]


def test_nothing_is_committed_without_the_lease(tmp_path):
    storage = open_storage(str(tmp_path))
    sink = Sink(storage, RUN, "f" * 64, MODELS, DIM, "float32")
    with Lease.acquire(storage, "another-run"), pytest.raises(LeaseLost, match="taken over"):
        sink(faces_to_table(batch_of(a=1), "embed"))
    assert ledger.committed_parts(storage) == []


def test_a_slice_of_several_batches_keeps_faces_with_their_images(tmp_path):
    """Ray joins and slices blocks before the sink."""
    storage = open_storage(str(tmp_path))
    tables = [faces_to_table(batch_of(**images), "embed") for images in ({"a": 1}, {"b": 0}, {"c": 2})]
    with Lease.acquire(storage, RUN):
        Sink(storage, RUN, "f" * 64, MODELS, DIM, "float32")(pa.concat_tables(tables).slice(1))
    faces = pq.read_table(tmp_path / "faces")
    assert faces["uri"].to_pylist() == ["/photos/c.jpg"] * 2


def test_photos_of_crowds_get_smaller_parts(written, monkeypatch):
    monkeypatch.setattr("pipeline.output.sink.MAX_FACES_PER_PART", 3)
    folder, receipts = written("float32", a=2, b=1, c=4, d=0)
    assert [(receipt["images"], receipt["faces"]) for receipt in receipts] == [(2, 3), (1, 4), (1, 0)]
    assert len(pq.read_table(folder / "images")) == 4


def test_a_write_error_names_the_file(tmp_path):
    storage = open_storage(str(tmp_path))
    with Lease.acquire(storage, RUN):
        (tmp_path / "faces").write_text("a file where the folder should be")
        with pytest.raises(WriteError, match="faces"):
            Sink(storage, RUN, "f" * 64, MODELS, DIM, "float32")(faces_to_table(batch_of(a=1), "embed"))
