import errno
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import chain

import numpy as np
import pytest

from pipeline.batch import NO_PIXELS, FaceBatch, FetchFailure, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.errors import EnvironmentFault
from pipeline.run.runner import DEVICE_FAULTS, StageRunner
from pipeline.run.telemetry import PoolMeter
from pipeline.stages.decode import Decode
from tests.support.stages import FakeBoard, StubDecode, faces_on, grey_image


def decoded(runner, rows):
    """The batches of all portions."""
    return chain.from_iterable(runner.decode(rows))


def build(board=None, **stages):
    """A runner of these stages, already built."""
    builders = {name: (lambda threads, calls, stage=stage: stage) for name, stage in stages.items()}
    return StageRunner(tuple(stages), builders, 1, 1, board or FakeBoard(), PoolMeter(tuple(stages)))


def rows(n):
    return [TodoRow(f"/{i}") for i in range(n)]


def two_a_batch(todo):
    for start in range(0, len(todo), 2):
        records = tuple(ImageRecord(row.uri) for row in todo[start : start + 2])
        yield ImageBatch(records, (NO_PIXELS,) * len(records))


def greys(*names):
    return ImageBatch(*zip(*(grey_image(name, broken=False) for name in names), strict=True))


def one_face_each(batch):
    return faces_on(batch, [1] * len(batch))


def test_builders_get_the_threads_and_the_calls():
    got = []
    builders = {"align": lambda threads, calls: got.append((threads, calls)), "embed": None}
    StageRunner(("align",), builders, 7, 2, FakeBoard(), PoolMeter(("align",)))
    assert got == [(7, 2)]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_decoded_batches_pass_through(n):
    batches = list(decoded(build(decode=StubDecode(two_a_batch)), rows(n)))
    assert [record.uri for batch in batches for record in batch.records] == [f"/{i}" for i in range(n)]
    assert [len(batch) for batch in batches] == [min(2, n - start) for start in range(0, n, 2)]


def test_an_error_of_decode_passes_through():
    def broken(todo):
        yield next(two_a_batch(todo))
        raise OSError("gone")

    batches = decoded(build(decode=StubDecode(broken)), rows(4))
    assert len(next(batches)) == 2
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_faces_pass_through_unchanged():
    batch = FaceBatch.without_faces((ImageRecord("/a"),))
    assert build(embed=lambda batch: batch).run("embed", batch) is batch


def test_one_bad_image_costs_only_itself():
    def fails_on_two(batch):
        if any(pixels[0, 0, 0] == 2 for pixels in batch.pixels):
            raise RuntimeError("no good\nsecond line")
        return one_face_each(batch)

    faces = build(detect=fails_on_two).run("detect", greys("0", "1", "2", "3"))
    assert [record.uri for record in faces.records] == ["0", "1", "2", "3"]
    assert faces.face_counts.tolist() == [1, 1, 0, 1]
    assert [record.status for record in faces.records] == [Status.OK, Status.OK, Status.FAILED, Status.OK]
    assert faces.records[2].error == "detect: RuntimeError: no good"


def test_a_batch_that_is_too_large_passes_in_halves():
    """A GPU without memory for the pixels of five images."""
    sizes = []

    def out_of_memory(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("CUDA out of memory")
        return one_face_each(batch)

    faces = build(detect=out_of_memory).run("detect", greys(*map(str, range(5))))
    assert [record.uri for record in faces.records] == [str(i) for i in range(5)]
    assert {record.status for record in faces.records} == {Status.OK} and sizes == [5, 2, 3, 1, 2]


def test_the_halves_have_the_memory_of_the_call_that_failed():
    class Pixels:
        """What a call holds."""

    held, seen = weakref.WeakSet(), []

    def out_of_memory(batch):
        seen.append(len(held))
        held.add(pixels := Pixels())
        if len(batch) > 1:
            raise RuntimeError(f"CUDA out of memory with {pixels}")
        return one_face_each(batch)

    build(detect=out_of_memory).run("detect", greys(*map(str, range(8))))
    assert seen == [0] * 15


def test_a_failed_image_has_no_faces_left():
    records = (ImageRecord("a", n_faces=1, detect_pass=1, faces_truncated=False), ImageRecord("b", n_faces=2))
    batch = FaceBatch(records, np.array([1, 2]), np.zeros((3, 4), np.float32), np.zeros(3, np.float32))

    def two_is_too_many(batch):
        if len(batch) > 1:
            raise ValueError("two")
        return batch

    faces = build(embed=two_is_too_many).run("embed", batch)
    assert faces.face_counts.tolist() == [1, 0]
    assert faces.records[1].n_faces is None and faces.records[1].status is Status.FAILED


@pytest.mark.parametrize("n", [0, 1, 3])
def test_stages_report_what_they_do(n):
    """Decode in batches of two, then a stage that fails and runs again image by image."""
    seen = []

    def see():
        seen.append((runner._reporter.status().doing, runner._reporter.status().uris))

    def decode(todo):
        for batch in two_a_batch(todo):
            see()
            yield batch

    def detect(batch):
        see()
        raise ValueError("on demand")

    runner = build(decode=StubDecode(decode), detect=detect)
    assert runner._reporter.status().ready and runner._reporter.status().steps == 2
    for batch in decoded(runner, rows(n)):
        runner.run("detect", batch)
    expected = {
        0: [],
        1: [("decode", ("/0",)), ("detect", ("/0",))],
        3: [("decode", ("/0", "/1", "/2")), ("detect", ("/0", "/1")), ("detect", ("/0",)), ("detect", ("/1",)),
            ("decode", ("/2",)), ("detect", ("/2",))],
    }[n]
    assert seen == expected
    last = 1 if n else 0       # decode is called once more, and answers that there is no further batch
    assert runner._reporter.status().steps == 2 + len(expected) + last
    assert runner._reporter.status().doing == "waiting"


def test_a_stage_is_reported_while_it_loads(monkeypatch):
    monkeypatch.setattr("pipeline.run.status.SEND_EVERY_S", 0.01)
    board, reported = FakeBoard(), []

    def load(threads, calls):
        reported.append(board.wait_for("loading detect"))

    StageRunner(("detect",), {"detect": load}, 1, 1, board, PoolMeter(("detect",)))
    assert reported == [True] and board.wait_for("waiting")


def test_the_file_that_decode_waits_for_is_reported():
    asked, arrives = threading.Event(), threading.Event()

    def fetch(todo):
        yield FetchFailure("gone")
        asked.set()
        arrives.wait(20)
        yield from [FetchFailure("gone")] * (len(todo) - 1)

    board, batches = FakeBoard(), []
    decode = Decode(fetch, max_pixels=10**6, min_side_px=None, threads=1, batch_images=8, batch_bytes=1 << 20)
    runner = build(board, decode=decode)
    thread = threading.Thread(target=lambda: batches.extend(decoded(runner, rows(3))))
    thread.start()
    assert asked.wait(20)
    runner._reporter.send()
    assert (board.statuses[-1].doing, board.statuses[-1].reading) == ("decode", "/1")
    assert board.statuses[-1].uris == ("/0", "/1", "/2")
    arrives.set()
    thread.join()
    runner._reporter.send()
    assert board.statuses[-1].reading is None and board.statuses[-1].steps == 1 + 3 + 2
    assert [len(batch) for batch in batches] == [3]


def test_an_image_that_killed_its_process_is_left_out():
    board = FakeBoard(**{"decode: 2 images from /0": 2, "decode: 1 images from /0": 2})
    first, second = decoded(build(board, decode=StubDecode(two_a_batch)), rows(2))
    assert [record.status for batch in (first, second) for record in batch.records] == [Status.FAILED, Status.OK]


class ProcessEnds(BaseException):
    """Stands for the end of the process."""


def end():
    raise ProcessEnds


def failing(error):
    def stage(batch):
        raise error

    return stage


@pytest.mark.parametrize("error", [
    EnvironmentFault("the credentials have expired"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EMFILE, "Too many open files"),
])
@pytest.mark.parametrize("n", [1, 3])
def test_a_fault_of_the_environment_is_no_fault_of_an_image(error, n):
    with pytest.raises(EnvironmentFault, match=re.escape(str(error))):
        build(detect=failing(error)).run("detect", greys(*map(str, range(n))))

    def decode(todo):
        raise error
        yield

    with pytest.raises(EnvironmentFault, match=re.escape(str(error))):
        list(decoded(build(decode=StubDecode(decode)), rows(n)))


@pytest.mark.parametrize(("message", "ends"), [
    ("CUDA error: an illegal memory access was encountered\nmore", True),
    ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
    ("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling cublasCreate", True),
    ("CUDA error: uncorrectable ECC error encountered", True),
    ("CUDA error: out of memory", False),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
    ("CUDA out of memory. Tried to allocate 2 GiB", False),
    ("shapes do not match", False),
])
def test_an_error_of_the_gpu_ends_the_process_and_marks_no_image(message, ends):
    builders = {"detect": lambda threads, calls: failing(RuntimeError(message))}
    runner = StageRunner(("detect",), builders, 1, 1, FakeBoard(), PoolMeter(("detect",)), end)
    if ends:
        with pytest.raises(ProcessEnds):
            runner.run("detect", greys("0", "1"))
    else:
        assert {record.status for record in runner.run("detect", greys("0", "1")).records} == {Status.FAILED}


def test_a_gpu_that_fails_in_every_new_process_ends_the_run():
    error = RuntimeError("CUDA error: lost\nand more")
    board, builders = FakeBoard(), {"detect": lambda threads, calls: failing(error)}

    def process():
        StageRunner(("detect",), builders, 1, 1, board, PoolMeter(("detect",)), end).run("detect", greys("0"))

    for _ in range(DEVICE_FAULTS - 1):
        with pytest.raises(ProcessEnds):
            process()
    with pytest.raises(EnvironmentFault, match=r"the GPU failed on .*CUDA error: lost\. So it did 12 times in a row"):
        process()


def test_threads_that_see_the_same_fault_of_the_gpu_count_it_once():
    board, together, ending, may_end = FakeBoard(), threading.Barrier(2), threading.Event(), threading.Event()

    def lost(batch):
        together.wait(20)
        raise RuntimeError("CUDA error: lost")

    def end_late():
        ending.set()
        may_end.wait(20)
        end()

    builders = {"detect": lambda threads, calls: lost}
    runner = StageRunner(("detect",), builders, 1, 1, board, PoolMeter(("detect",)), end_late)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(runner.run, "detect", greys(name)) for name in "01"]
        assert ending.wait(20)
        wait(calls, timeout=0.2)      # time for the other to count it too
        assert board.begun == {"device faults of actor": ["here"]}
        may_end.set()


def test_a_batch_that_comes_through_forgives_the_gpu():
    board = FakeBoard(**{"device faults of actor": DEVICE_FAULTS - 1})
    build(board, detect=one_face_each).run("detect", greys("0"))
    assert not board.begun
