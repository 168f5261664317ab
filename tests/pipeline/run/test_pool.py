import numpy as np
import pyarrow as pa
import pytest

from pipeline.batch import FaceBatch, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.boundary import fold, images_to_table, table_to_faces, unfold
from pipeline.geometry import CROP_PX
from pipeline.run.pool import Pool, run_isolated


def image(name, value):
    return ImageRecord(name, width=4, height=4), np.full((4, 4, 3), value, np.uint8)


def decode(rows):
    """Two images a sub-batch."""
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


def fails_on(*values):
    def stage(batch):
        if any(p[0, 0, 0] in values for p in batch.pixels):
            raise RuntimeError("no good\nsecond line")
        return one_face_each(batch)
    return stage


def todo(*names):
    return pa.table({"uri": pa.array(names, pa.string())})


def read_todo(blocks):
    return [TodoRow(uri) for uri in blocks["uri"].to_pylist()]


def build(**stages):
    return {name: (lambda threads, stage=stage: stage) for name, stage in stages.items()}


@pytest.mark.parametrize("names", [(), ("1",), ("1", "2", "3", "4", "5")])
def test_decode_and_detect_in_one_pool(names):
    pool = Pool(("decode", "detect"), build(decode=decode, detect=one_face_each), read_todo, threads=1)
    tables = [unfold(table) for table in pool(todo(*names))]
    assert [len(table) for table in tables] == [len(names[i : i + 2]) for i in range(0, len(names), 2)]
    faces = [table_to_faces(table, "detect") for table in tables]
    assert [record.uri for batch in faces for record in batch.records] == list(names)
    assert [box[0] for batch in faces for box in batch.boxes_xyxy] == [float(name) for name in names]


def test_a_pool_without_decode_takes_a_batch_as_it_was():
    """A row of several batches, cut out of a block as Ray does it."""
    folded = [fold(images_to_table(ImageBatch(*zip(*(image(str(i), i) for i in range(start, end)), strict=True))))
              for start, end in ((0, 3), (3, 5))]
    pool = Pool(("detect",), build(detect=one_face_each), read_todo, threads=1)
    (out,) = pool(pa.concat_tables(folded).combine_chunks().slice(1, 1))
    faces = table_to_faces(unfold(out), "detect")
    assert len(out) == 1 and [record.uri for record in faces.records] == ["3", "4"]
    assert faces.boxes_xyxy[:, 0].tolist() == [3, 4] and faces.chips[1][0, 0, 0] == 4


def test_after_the_last_stage_a_row_is_an_image():
    def embed(batch):
        return batch.with_embeddings(np.ones((len(batch), 2), np.float32), np.ones(len(batch), np.float32))

    stages = {"decode": decode, "detect": one_face_each, "keypoint": with_eyes, "align": with_crops, "embed": embed}
    pool = Pool(tuple(stages), build(**stages), read_todo, threads=1)
    assert [table["uri"].to_pylist() for table in pool(todo("1", "2", "3"))] == [["1", "2"], ["3"]]


def test_builders_get_the_threads():
    got = []
    Pool(("align",), {"align": lambda threads: got.append(threads)}, read_todo, threads=7)
    assert got == [7]


def test_one_bad_image_costs_only_itself():
    records, pixels = zip(*(image(str(i), i) for i in range(4)), strict=True)
    faces = run_isolated("detect", fails_on(2), ImageBatch(records, pixels))
    assert [record.uri for record in faces.records] == ["0", "1", "2", "3"]
    assert faces.face_counts.tolist() == [1, 1, 0, 1]
    assert [record.status for record in faces.records] == [Status.OK, Status.OK, Status.FAILED, Status.OK]
    assert faces.records[2].error == "detect: RuntimeError: no good"


def test_a_failed_image_has_no_faces_left():
    records = (ImageRecord("a", n_faces=1, detect_pass=1, faces_truncated=False), ImageRecord("b", n_faces=2))
    batch = FaceBatch(records, np.array([1, 2]), np.zeros((3, 4), np.float32), np.zeros(3, np.float32))

    def two_is_too_many(batch):
        if len(batch) > 1:
            raise ValueError("two")
        return batch

    faces = run_isolated("embed", two_is_too_many, batch)
    assert faces.face_counts.tolist() == [1, 0]
    assert faces.records[1].n_faces is None and faces.records[1].status is Status.FAILED


def test_crowds_pass_in_parts(monkeypatch):
    """The stages after detect see few faces at a time; no image is cut in two."""
    seen = []

    def counting(batch):
        seen.append(len(batch))
        return with_eyes(batch)

    monkeypatch.setattr("pipeline.run.pool.MAX_FACES", 1)
    builders = build(decode=decode, detect=one_face_each, keypoint=counting)
    pool = Pool(("decode", "detect", "keypoint"), builders, read_todo, threads=1)
    tables = [unfold(table) for table in pool(todo("1", "2", "3"))]
    assert seen == [1, 1, 1] and [table["uri"].to_pylist() for table in tables] == [["1"], ["2"], ["3"]]
