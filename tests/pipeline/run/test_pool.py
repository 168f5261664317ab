import numpy as np
import pyarrow as pa
import pytest

from pipeline.batch import FaceBatch, ImageBatch, ImageRecord, TodoRow
from pipeline.boundary import fold, images_to_table, table_to_faces, unfold
from pipeline.geometry import CROP_PX
from pipeline.run.pool import Pool
from tests.support.stages import FakeBoard, StubDecode


def image(name, value):
    return ImageRecord(name, width=4, height=4), np.full((4, 4, 3), value, np.uint8)


def decode(rows):
    """Two images a batch."""
    for start in range(0, len(rows), 2):
        records, pixels = zip(*(image(row.uri, int(row.uri)) for row in rows[start : start + 2]), strict=True)
        yield ImageBatch(records, pixels)


def one_face_each(batch):
    n = len(batch)
    return FaceBatch(batch.records, np.ones(n, np.int64), np.array([p[0, :4, 0] for p in batch.pixels], np.float32),
                     np.ones(n, np.float32), chips=tuple(batch.pixels), chip_to_image=np.zeros((n, 2, 3)))


def with_eyes(batch):
    return batch.with_eyes(np.zeros((len(batch), 12, 2), np.float32))


def with_crops(batch):
    n = len(batch)
    crops = np.zeros((n, CROP_PX, CROP_PX, 3), np.uint8)
    return batch.with_crops(crops, np.ones(n, bool), np.zeros(n, np.float32), np.zeros(n, np.float32))


def todo(*names):
    return pa.table({"uri": pa.array(names, pa.string())})


def read_todo(blocks):
    return [TodoRow(uri) for uri in blocks["uri"].to_pylist()]


def make_pool(**stages):
    builders = {name: (lambda threads, stage=stage: stage) for name, stage in stages.items()}
    return Pool(tuple(stages), builders, read_todo, threads=1, board=FakeBoard())


@pytest.mark.parametrize("names", [(), ("1",), ("1", "2", "3", "4", "5")])
def test_decode_and_detect_in_one_pool(names):
    pool = make_pool(decode=StubDecode(decode), detect=one_face_each)
    tables = [unfold(table) for table in pool(todo(*names))]
    assert [len(table) for table in tables] == [len(names[i : i + 2]) for i in range(0, len(names), 2)]
    faces = [table_to_faces(table, "detect") for table in tables]
    assert [record.uri for batch in faces for record in batch.records] == list(names)
    assert [box[0] for batch in faces for box in batch.boxes_xyxy] == [float(name) for name in names]


def test_a_pool_without_decode_takes_a_batch_as_it_was():
    """A row of several batches, cut out of a block as Ray does it."""
    folded = [fold(images_to_table(ImageBatch(*zip(*(image(str(i), i) for i in range(start, end)), strict=True))))
              for start, end in ((0, 3), (3, 5))]
    pool = make_pool(detect=one_face_each)
    (out,) = pool(pa.concat_tables(folded).combine_chunks().slice(1, 1))
    faces = table_to_faces(unfold(out), "detect")
    assert len(out) == 1 and [record.uri for record in faces.records] == ["3", "4"]
    assert faces.boxes_xyxy[:, 0].tolist() == [3, 4] and faces.chips[1][0, 0, 0] == 4


def test_after_the_last_stage_a_row_is_an_image():
    def embed(batch):
        return batch.with_embeddings(np.ones((len(batch), 2), np.float32), np.ones(len(batch), np.float32))

    pool = make_pool(
        decode=StubDecode(decode), detect=one_face_each, keypoint=with_eyes, align=with_crops, embed=embed
    )
    assert [table["uri"].to_pylist() for table in pool(todo("1", "2", "3"))] == [["1", "2"], ["3"]]


def test_crowds_pass_in_parts(monkeypatch):
    """The stages after detect see few faces at a time; no image is cut in two."""
    seen = []

    def counting(batch):
        seen.append(len(batch))
        return with_eyes(batch)

    monkeypatch.setattr("pipeline.run.pool.MAX_FACES", 1)
    pool = make_pool(decode=StubDecode(decode), detect=one_face_each, keypoint=counting)
    tables = [unfold(table) for table in pool(todo("1", "2", "3"))]
    assert seen == [1, 1, 1] and [table["uri"].to_pylist() for table in tables] == [["1"], ["2"], ["3"]]
