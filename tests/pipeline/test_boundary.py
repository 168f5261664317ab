from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest

from pipeline.batch import NO_PIXELS, FaceBatch, ImageBatch, ImageRecord, Status
from pipeline.boundary import faces_to_table, fold, images_to_table, table_to_faces, table_to_images, unfold
from pipeline.geometry import CROP_PX

RECORDS = {
    "none": (),
    "one": (ImageRecord("a.jpg", width=4, height=3, format="jpeg", n_faces=2),),
    "many": (
        ImageRecord("a.jpg", width=4, height=3),
        ImageRecord("b.jpg", status=Status.UNREADABLE, error="cut short"),
        ImageRecord("c.jpg", width=9, height=9),
    ),
}
COUNTS = {"none": [], "one": [2], "many": [1, 0, 3]}


def frozen(array):
    array.flags.writeable = False
    return array


def faces_after(stage, which):
    """A batch after a stage, filled with distinct numbers."""
    n, at = sum(COUNTS[which]), ("detect", "keypoint", "align", "embed").index(stage)
    numbers = iter(range(1, 10**9))

    def fill(*shape, dtype=np.float32):
        size = int(np.prod(shape))
        return frozen(np.array([next(numbers) % 251 for _ in range(size)], dtype).reshape(shape))

    values = {"boxes_xyxy": fill(n, 4), "scores": fill(n), "points5": fill(n, 5, 2)}
    if at <= 1:
        values |= {"chips": tuple(fill(i + 2, i + 2, 3, dtype=np.uint8) for i in range(n)),
                   "chip_to_image": fill(n, 2, 3, dtype=np.float64)}
    if at >= 1:
        values |= {"eye_points": fill(n, 12, 2), "eye_spread": fill(n)}
    if at >= 2:
        values |= {"align_ok": frozen(np.arange(n) % 2 == 0), "roll_deg": fill(n), "sharpness": fill(n)}
    if at == 2:
        values["crops"] = fill(n, CROP_PX, CROP_PX, 3, dtype=np.uint8)
    if at == 3:
        values |= {"embeddings": fill(n, 8), "embedding_norms": fill(n)}
    return FaceBatch(RECORDS[which], frozen(np.array(COUNTS[which], np.int64)), **values)


def assert_same(left, right):
    assert left.records == right.records
    for f in fields(FaceBatch):
        a, b = getattr(left, f.name), getattr(right, f.name)
        if f.name == "chips":
            assert len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        elif f.name != "records":
            assert np.array_equal(a, b) and a.dtype == b.dtype, f.name


@pytest.mark.parametrize("which", ["none", "one", "many"])
@pytest.mark.parametrize("stage", ["detect", "keypoint", "align", "embed"])
def test_faces_survive_the_boundary(stage, which):
    batch = faces_after(stage, which)
    back = table_to_faces(faces_to_table(batch, stage), stage)
    if len(batch):
        assert_same(batch, back)
    else:
        assert back.records == batch.records and len(back) == 0


@pytest.mark.parametrize("stage", ["detect", "keypoint", "align", "embed"])
def test_blocks_with_and_without_faces_have_one_schema(stage):
    """Ray joins the blocks of a pool, so blocks with and without faces need the same types."""
    tables = [faces_to_table(faces_after(stage, which), stage) for which in ("one", "many", "none")]
    tables.append(faces_to_table(FaceBatch.without_faces(RECORDS["one"]), stage))
    joined = pa.concat_tables(tables)
    back = table_to_faces(joined.slice(1, 3), stage)           # a slice: offsets do not start at 0
    assert back.face_counts.tolist() == [1, 0, 3]
    assert_same(back, faces_after(stage, "many"))


@pytest.mark.parametrize("pixels", [(), (np.full((3, 4, 3), 7, np.uint8), NO_PIXELS, np.zeros((1, 9, 3), np.uint8))])
def test_images_survive_the_boundary(pixels):
    records = RECORDS["many"] if pixels else ()
    back = table_to_images(images_to_table(ImageBatch(records, pixels)))
    assert back.records == records
    assert [p.shape for p in back.pixels] == [p.shape for p in pixels]
    assert all(np.array_equal(a, b) for a, b in zip(back.pixels, pixels, strict=True))


@pytest.mark.parametrize("stage", ["detect", "keypoint", "align"])
def test_a_folded_batch_is_one_row_and_unfolds_to_the_same(stage):
    """Alone, as a slice of a block, and after the block was written and read as Ray does."""
    tables = [faces_to_table(faces_after(stage, which), stage) for which in RECORDS]
    folded = [fold(table) for table in tables]
    assert [len(table) for table in folded] == [1] * len(tables)
    block = pa.concat_tables(folded).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as stream:
        stream.write_table(block)
    read = pa.ipc.open_stream(sink.getvalue()).read_all()
    for i, (table, which) in enumerate(zip(tables, RECORDS, strict=True)):
        for row in (folded[i], block.slice(i, 1), read.slice(i, 1)):
            assert unfold(row).equals(table)
            assert_same(table_to_faces(unfold(row), stage), faces_after(stage, which))


def test_folded_pixels_are_not_copied():
    pixels = (np.full((40, 50, 3), 7, np.uint8), NO_PIXELS)
    table = images_to_table(ImageBatch(RECORDS["many"][:2], pixels))
    before = pa.total_allocated_bytes()
    again = table_to_images(unfold(fold(table)))
    assert pa.total_allocated_bytes() - before < pixels[0].nbytes
    assert np.array_equal(again.pixels[0], pixels[0]) and again.pixels[1].shape == (0, 0, 3)
