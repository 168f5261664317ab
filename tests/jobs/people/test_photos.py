"""Photos are read in this process as jobs.extract reads them; with the shipped networks."""

from pathlib import Path

import numpy as np
import pytest

from jobs.extract.stages import DEFAULT_BATCHES, StageConfig, read_models, stage_builders
from jobs.options import DEFAULT_MODELS, ArgumentError
from jobs.people.files import as_uri
from jobs.people.photos import PhotoReader, read_photo
from models.store import DEFAULT_WEIGHTS_DIR
from pipeline.batch import Status, TodoRow
from pipeline.boundary import STAGES
from pipeline.output.sink import ModelNames, faces_table
from pipeline.settings import RowSettings
from tests.support.photos import BUS, ZIDANE


@pytest.mark.parametrize(
    ("argument", "uri"),
    [("/a/../b.jpg", "/a/../b.jpg"), ("/t.tar#../m.jpg", "/t.tar#../m.jpg"), ("s3://b/50% off?.jpg",) * 2,
     ("s3://b/k.jpg?region=eu-west-1", "s3://b/k.jpg"), ("file:///a%20b.jpg", "/a b.jpg"),
     ("file://localhost/a%20b.jpg", "/a b.jpg"),
     ("file:///%FF.jpg", "file:///%FF.jpg"), ("/\udcff.jpg", "file:///%FF.jpg"), ("x/../y.jpg", f"{Path.cwd()}/y.jpg")],
)
def test_arguments_become_uris(argument, uri):
    assert as_uri(argument) == uri


@pytest.fixture(scope="module")
def models():
    return read_models(None, DEFAULT_MODELS)


@pytest.fixture(scope="module")
def read_photos(models):
    return PhotoReader(RowSettings(), models, DEFAULT_WEIGHTS_DIR, pictures=True)


def extracted(models, photo):
    """The rows of a photo from the stages one after the other."""
    builders = stage_builders(StageConfig(RowSettings(), models, batches=DEFAULT_BATCHES["cpu"]))
    (batch,) = builders["decode"](1, 1)([TodoRow(str(photo))])
    for name in STAGES[1:]:
        batch = builders[name](1, 1)(batch)
    names = ModelNames(**{role: card.identity for role, card in models.by_role.items()})
    return faces_table(batch, names, 512, "float32").to_pylist()


def test_no_photos(read_photos):
    assert read_photos([]) == []


def test_the_faces_are_those_of_the_job(models, read_photos, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(ZIDANE.read_bytes()[:9000])
    zidane, torn, bus = read_photos([str(ZIDANE), str(tmp_path / "torn.jpg"), str(BUS)])
    assert (torn.record.status, torn.rows, len(torn.vectors)) == (Status.UNREADABLE, [], 0)
    for photo, found in ((ZIDANE, zidane), (BUS, bus)):
        rows = extracted(models, photo)
        assert len(rows) == len(found.rows) == len(found.views) == 2
        for row, mine, vector in zip(rows, found.rows, found.vectors, strict=True):
            embedding = np.array(row.pop("embedding"))
            assert embedding @ vector > 0.9999
            assert {name: row[name] for name in ("uri", "face_index", "detector", "align_ok")} == {
                name: mine[name] for name in ("uri", "face_index", "detector", "align_ok")
            }
            assert abs(row["x1"] - mine["x1"]) < 1


def test_photos_of_two_stores(read_photos, bucket, s3_endpoint):
    bucket.put("a b.jpg", BUS.read_bytes())
    named = f"{bucket.uri}/a b.jpg?endpoint_override={s3_endpoint}"
    first, second, third = read_photos([named, str(BUS), named])
    assert [first.record.uri, second.record.uri] == [f"{bucket.uri}/a b.jpg", str(BUS)]
    assert np.array_equal(first.vectors, second.vectors) and np.array_equal(first.vectors, third.vectors)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.jpg", "fetch_failed: no such file or directory$"), ("text.jpg", "unsupported"),
     ("out#x#0", "no beginning of it is an output"), ("out#3", "no such file or directory$")],
)
def test_a_photo_that_cannot_be_read_is_refused(read_photos, tmp_path, name, reason):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ArgumentError, match=f"the photo .*{name} cannot be read: .*{reason}"):
        read_photo(str(tmp_path / name), read_photos)
