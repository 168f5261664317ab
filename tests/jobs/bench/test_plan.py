import pyarrow.parquet as pq
import pytest

from jobs.bench.plan import GREY_PNG, PartMaker, make_manifest
from pipeline import schemas
from pipeline.output import ledger
from pipeline.stages.image import decode_image
from pipeline.storage import open_storage

IMAGE = {"uri": "/grey.png", "status": "no_face", "n_faces": 0, "run_id": "r"}


def test_the_grey_pixel_is_one():
    assert decode_image(GREY_PNG, max_pixels=1, min_side_px=None).pixels.shape == (1, 1, 3)


@pytest.mark.parametrize(("done", "parts"), [(0, 0), (3, 1), (2001, 2)])
def test_the_ledger_has_the_first_images_of_the_manifest(tmp_path, done, parts):
    """In parts that the job takes for its own."""
    storage = open_storage(str(tmp_path / "out"))
    maker = PartMaker(storage, schemas.faces_schema(512, "float32").empty_table(), IMAGE)
    make_manifest(tmp_path, 2005, done, maker)
    listed = pq.read_table(tmp_path / "manifest.parquet")["uri"].to_pylist()
    assert len(listed) == 2005 and not ledger.list_files(storage).foreign
    assert sorted(ledger.read_ledger(storage)["uri"].to_pylist()) == listed[:done]
    assert len(ledger.committed_parts(storage)) == maker.count == parts
