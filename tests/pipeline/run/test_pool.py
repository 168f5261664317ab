import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import repeat

import numpy as np
import pyarrow as pa
import pytest

from pipeline.batch import FaceBatch, ImageBatch, ImageRecord, TodoRow
from pipeline.boundary import faces_to_table, fold, images_to_table, table_to_faces, unfold
from pipeline.geometry import CROP_PX
from pipeline.run.pool import Pool, in_order, in_steps
from pipeline.stages.decode import MemoryGate
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
    return batch.with_eyes(np.zeros((len(batch), 12, 2), np.float32), np.zeros(len(batch), np.float32))


def with_crops(batch):
    n = len(batch)
    crops = np.zeros((n, CROP_PX, CROP_PX, 3), np.uint8)
    return batch.with_crops(crops, np.ones(n, bool), np.zeros(n, np.float32), np.zeros(n, np.float32))


def embedded(batch):
    return batch.with_embeddings(np.ones((len(batch), 2), np.float32), np.ones(len(batch), np.float32))


STAGES_AFTER_DECODE = {"detect": one_face_each, "keypoint": with_eyes, "align": with_crops, "embed": embedded}


def todo(*names):
    return pa.table({"uri": pa.array(names, pa.string())})


def read_todo(blocks):
    return [TodoRow(uri) for uri in blocks["uri"].to_pylist()]


def make_pool(calls=1, pixel_bytes=1 << 20, board=None, **stages):
    builders = {name: (lambda threads, calls, stage=stage: stage) for name, stage in stages.items()}
    return Pool(tuple(stages), builders, read_todo, threads=1, calls=calls, pixel_bytes=pixel_bytes, step_images=16,
                board=board or FakeBoard())


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


def test_after_the_last_stage_a_row_has_so_many_images():
    pool = make_pool(decode=StubDecode(decode), **STAGES_AFTER_DECODE)
    assert [unfold(table)["uri"].to_pylist() for table in pool(todo("1", "2", "3"))] == [["1", "2", "3"]]
    tables = [unfold(table)["uri"].to_pylist() for table in pool(todo(*map(str, range(37))))]
    assert tables == [[str(i) for i in range(start, min(start + 16, 37))] for start in (0, 16, 32)]


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


@pytest.mark.parametrize(
    ("sizes", "lengths", "steps"),
    [
        (repeat(3), lengths, steps) for lengths, steps in (
            ((), []), ((0,), []), ((1,), [1]), ((3,), [3]), ((2, 1, 2, 2), [3, 3, 1]), ((7, 2), [3, 3, 3]),
            ((1, 8), [3, 3, 3]),
        )
    ] + [((), (2, 0, 5), [2, 5]), ((1, 3), (2, 5, 1), [1, 3, 3, 1]), ((4, 4), (3,), [3]), ((2, 2), (5,), [2, 2, 1])],
)
def test_steps_have_the_same_rows_however_they_came(sizes, lengths, steps):
    numbers = iter(range(100))
    tables = [pa.table({"n": pa.array([next(numbers) for _ in range(n)], pa.int64())}) for n in lengths]
    found = [table["n"].to_pylist() for table in in_steps(tables, sizes)]
    assert [len(rows) for rows in found] == steps
    assert [n for rows in found for n in rows] == list(range(sum(lengths)))


def one_image(value, bytes_=12):
    pixels = np.full((1, bytes_ // 3, 3), value, np.uint8)
    return ImageBatch((ImageRecord(str(value)),), (pixels,))


def test_batches_run_at_once_and_come_in_order():
    """The first batch ends only when the second has begun, and the second ends first."""
    second_done = threading.Event()

    def run(held):
        name = held.pop().records[0].uri
        if name == "0":
            assert second_done.wait(20)
        elif name == "1":
            second_done.set()
        return [pa.table({"n": [name]})]

    with ThreadPoolExecutor(2) as threads:
        found = list(in_order(threads, run, map(one_image, range(5)), ahead=2, room=MemoryGate(1 << 20)))
    assert [tables[0]["n"].to_pylist() for tables in found] == [["0"], ["1"], ["2"], ["3"], ["4"]]


@pytest.mark.parametrize(("max_bytes", "at_once"), [(1, 1), (24, 2), (1000, 3)])
def test_the_pixels_in_work_are_bounded(max_bytes, at_once):
    """How many batches are taken before the first result is asked for; one batch may be larger than the bound."""
    taken = []

    def batches():
        for i in range(6):
            taken.append(i)
            yield one_image(i)

    with ThreadPoolExecutor(2) as threads:
        found = in_order(threads, lambda held: [held.pop()], batches(), ahead=2, room=MemoryGate(max_bytes))
        next(found)
        assert len(taken) == at_once + 1      # the last one waits for room
        assert len(list(found)) == 5


def test_pixels_are_freed_after_their_last_use():
    class Pixels(np.ndarray):
        """An array that a weak reference can watch."""

    pixels = np.zeros((4, 4, 3), np.uint8).view(Pixels)
    watched, alive = weakref.ref(pixels), []

    def with_eyes_late(batch):
        alive.append(watched() is not None)
        return with_eyes(batch)

    class DecodeOnce:
        files_read, reading = 0, None

        def __call__(self, rows):
            yield ImageBatch((ImageRecord("1", width=4, height=4),), (source.pop(),))

    def without_pixels(batch):
        faces = one_face_each(batch)
        return replace(faces, chips=tuple(chip.copy().view(np.ndarray) for chip in faces.chips))

    source = [pixels]
    del pixels
    pool = make_pool(decode=DecodeOnce(), detect=without_pixels, keypoint=with_eyes_late)
    list(pool(todo("1")))
    assert alive == [False]


def test_the_next_block_is_decoded_while_the_last_is_in_its_stages():
    """The stages of the first block wait until the second is decoded."""
    first_begun, second_decoded, rows_of = threading.Event(), threading.Event(), []

    def decoding(rows):
        rows_of.append([row.uri for row in rows])
        first_begun.set()
        yield from decode(rows)
        if rows[0].uri == "3":
            second_decoded.set()

    def detect(batch):
        assert batch.records[0].uri == "3" or second_decoded.wait(20)
        return one_face_each(batch)

    pool = make_pool(calls=2, decode=StubDecode(decoding), detect=detect)
    with ThreadPoolExecutor(1) as ray:
        first = pool(todo("1", "2"))
        found = ray.submit(lambda: [unfold(table)["uri"].to_pylist() for table in first])
        assert first_begun.wait(20)
        assert [unfold(table)["uri"].to_pylist() for table in pool(todo("3", "4"))] == [["3", "4"]]
        assert found.result(20) == [["1", "2"]] and rows_of == [["1", "2"], ["3", "4"]]


def test_how_a_block_was_cut_is_kept_until_ray_has_its_last_rows():
    """Ray repeats the block if the process dies before, in another block for example."""
    pool = "decode+detect+keypoint+align+embed: "
    board = FakeBoard(**{f"{pool}3 images from 1": 2, f"{pool}1 images from 2": 2})
    rows = make_pool(board=board, decode=StubDecode(decode), **STAGES_AFTER_DECODE)(todo("1", "2", "3"))
    assert unfold(next(rows)).select(["uri", "status"]).to_pylist() == [
        {"uri": "1", "status": "ok"}, {"uri": "2", "status": "failed"}, {"uri": "3", "status": "ok"}]
    assert {f"{pool}3 images from 1", f"cut {pool}3 images from 1"} <= set(board.begun)
    assert not list(rows)
    assert set(board.begun) == {f"{pool}1 images from 2", f"cut {pool}1 images from 2"}


def test_an_image_that_kills_a_pool_without_decode_is_left_out():
    """Ray would give the same batch to one new process after the other."""
    board = FakeBoard(**{"detect: 3 images from 1": 2, "detect: 1 images from 2": 2})
    batch = ImageBatch(*zip(*(image(str(i), i) for i in (1, 2, 3)), strict=True))
    def detect(batch):
        found = [one_face_each(ImageBatch((record,), (pixels,))) if record.error is None
                 else FaceBatch.without_faces((record,))
                 for record, pixels in zip(batch.records, batch.pixels, strict=True)]
        return FaceBatch.concatenate(found)

    pool = make_pool(board=board, detect=detect)
    parts = [table_to_faces(unfold(table), "detect") for table in pool(fold(images_to_table(batch)))]
    records = [(record.uri, str(record.status)) for part in parts for record in part.records]
    assert records == [("1", "ok"), ("2", "failed"), ("3", "ok")]
    assert "died 2 times at this image" in parts[1].records[0].error
    assert [box[0] for part in parts for box in part.boxes_xyxy] == [1, 3]
    assert set(board.begun) == {"detect: 1 images from 2", "cut detect: 1 images from 2"}


def test_the_faces_of_an_image_that_kills_a_later_pool_are_left_out_with_it():
    board = FakeBoard(**{"keypoint+align+embed: 2 images from 1": 2, "keypoint+align+embed: 1 images from 1": 2})
    faces = one_face_each(ImageBatch(*zip(*(image(str(i), i) for i in (1, 2)), strict=True)))
    stages = {name: STAGES_AFTER_DECODE[name] for name in ("keypoint", "align", "embed")}
    (table,) = make_pool(board=board, **stages)(fold(faces_to_table(faces, "detect")))
    found = table_to_faces(unfold(table), "embed")
    assert [(record.uri, str(record.status)) for record in found.records] == [("1", "failed"), ("2", "ok")]
    assert found.face_counts.tolist() == [0, 1]


@pytest.mark.parametrize("seen", [0, 1, 2, 3])
@pytest.mark.parametrize("again", [1, 2, 3, 4, 5])
def test_a_repeated_block_gives_every_row_once_however_its_batches_are_cut_now(seen, again):
    """Ray drops as many of the first outputs as it has seen of the attempt before."""
    sizes = [2]

    def decode(rows):
        for start in range(0, len(rows), sizes[0]):
            records, pixels = zip(*(image(row.uri, 1) for row in rows[start : start + sizes[0]]), strict=True)
            yield ImageBatch(records, pixels)

    board, names = FakeBoard(), ("1", "2", "3", "4", "5")
    before = make_pool(board=board, decode=StubDecode(decode))(todo(*names))
    found = [next(before) for _ in range(seen)]
    before.close()
    sizes[0] = again
    found += list(make_pool(board=board, decode=StubDecode(decode))(todo(*names)))[seen:]
    assert [uri for table in found for uri in unfold(table)["uri"].to_pylist()] == list(names)


def test_two_blocks_share_the_room_for_pixels():
    """The second block's batch waits for the first block's, although each alone has room."""
    begun, may_end, seen = threading.Event(), threading.Event(), []

    def detect(batch):
        seen.append(batch.records[0].uri)
        begun.set()
        assert may_end.wait(20)
        return one_face_each(batch)

    pool = make_pool(calls=2, pixel_bytes=100, decode=StubDecode(decode), detect=detect)
    with ThreadPoolExecutor(2) as ray:
        first = ray.submit(list, pool(todo("1", "2")))
        assert begun.wait(20)
        second = ray.submit(list, pool(todo("3", "4")))
        wait([second], timeout=0.2)
        assert seen == ["1"]
        may_end.set()
        assert [len(each.result(20)) for each in (first, second)] == [1, 1] and seen == ["1", "3"]


def test_an_error_waits_for_the_batches_in_work_and_cancels_the_others():
    begun, may_end = [], threading.Event()

    def run(held):
        name = held.pop().records[0].uri
        begun.append(name)
        if name == "0":
            raise ValueError("on demand")
        may_end.wait(0.2)
        begun.append(f"{name} ends")
        return []

    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="on demand"):
        list(in_order(threads, run, map(one_image, range(5)), ahead=3, room=MemoryGate(1 << 20)))
    assert begun in (["0"], ["0", "1", "1 ends"])
