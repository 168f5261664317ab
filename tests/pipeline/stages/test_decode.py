import errno
import hashlib
import io
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.batch import Fetched, FetchFailure, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.errors import EnvironmentFault
from pipeline.stages.decode import Decode, MemoryGate
from tests.support import corpus

MAX_PIXELS = corpus.MAX_PIXELS


# Many images


class FakeFetch:
    """Gives contents by uri. Counts its reads, and notes at each what `asked` was: the batches asked for so far."""

    def __init__(self, contents):
        self.contents = contents
        self.asked = 0
        self.asked_at_read = []
        self.closed = False
        self._changed = threading.Condition()

    def __call__(self, rows):
        try:
            for row in rows:
                with self._changed:
                    self.asked_at_read.append(self.asked)
                    self._changed.notify_all()
                answer = self.contents[row.uri]
                yield answer if isinstance(answer, Fetched | FetchFailure) else Fetched(answer)
        finally:
            self.closed = True

    @property
    def read(self):
        return len(self.asked_at_read)

    def wait_for_reads(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: self.read >= count, timeout=60)


def decoder(contents, **options):
    usual = {"max_pixels": MAX_PIXELS, "min_side_px": None, "threads": 2, "batch_images": 64, "batch_bytes": 256 << 20}
    return Decode(FakeFetch(contents), **usual | options)


def flat_jpeg(side_px):
    return simplejpeg.encode_jpeg(np.full((side_px, side_px, 3), 128, np.uint8), 90)


def test_no_rows_give_no_batches():
    assert list(decoder({})([])) == []


def test_every_row_gives_one_record_in_order():
    png = corpus.encode(corpus.picture(), "PNG")
    mtime = datetime(2024, 5, 6, tzinfo=UTC)
    contents = {
        "a": Fetched(corpus.turned("JPEG", 6), "from-store", mtime),
        "b": corpus.jpeg()[:500],
        "c": FetchFailure("not found"),
        "d": FetchFailure("over the limit of 8 bytes", Status.TOO_LARGE),
        "e": b"",
        "f": corpus.png_of_size(50_000, 50_000),
        "g": Fetched(png, "of-a-newer-one", datetime(2025, 1, 1, tzinfo=UTC)),
    }
    rows = [TodoRow(uri) for uri in "abcdef"] + [TodoRow("g", size=7, etag="from-listing", mtime=mtime)]
    batches = list(decoder(contents)(rows))
    assert len(batches) == 1
    records, pixels = batches[0].records, batches[0].pixels

    def sha256(content):
        return hashlib.sha256(content).hexdigest()

    a, bomb = contents["a"].content, contents["f"]
    assert records == (
        ImageRecord("a", format="jpeg", width=120, height=80, exif_orientation=6, decode_scale=1.0, file_bytes=len(a),
                    sha256=sha256(a), etag="from-store", mtime=mtime),
        ImageRecord("b", Status.UNREADABLE, "JPEG: cut off before the picture ends", format="jpeg", file_bytes=500,
                    sha256=sha256(contents["b"])),
        ImageRecord("c", Status.FETCH_FAILED, "not found"),
        ImageRecord("d", Status.TOO_LARGE, "over the limit of 8 bytes"),
        ImageRecord("e", Status.UNREADABLE, "empty file", file_bytes=0, sha256=sha256(b"")),
        ImageRecord("f", Status.TOO_LARGE, "over the limit of 200000000 pixels", format="png", width=50_000,
                    height=50_000, file_bytes=len(bomb), sha256=sha256(bomb)),
        ImageRecord("g", format="png", width=120, height=80, decode_scale=1.0, file_bytes=len(png), sha256=sha256(png),
                    etag="from-listing", mtime=mtime),
    )
    assert [image.shape for image in pixels] == [(80, 120, 3), *[(0, 0, 3)] * 5, (80, 120, 3)]
    assert np.array_equal(pixels[6], corpus.picture())


class OutOfMemory(bytes):
    """The content of a file on which our own code fails."""

    def startswith(self, *args):
        raise MemoryError("no 9 GB left")


class FullDisk(bytes):
    """The content of a file for which no temporary file could be written."""

    def startswith(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_no_fault_of_an_image():
    contents = {"a": corpus.jpeg(), "b": FullDisk(b"x"), "c": corpus.jpeg()}
    with pytest.raises(EnvironmentFault, match="No space left on device: free space, or set TMPDIR"):
        list(decoder(contents)([TodoRow(uri) for uri in "abc"]))


def test_an_error_of_ours_fails_only_its_image():
    contents = {"a": corpus.jpeg(), "b": OutOfMemory(b"x"), "c": corpus.jpeg()}
    (batch,) = decoder(contents)([TodoRow(uri) for uri in "abc"])
    assert [record.status for record in batch.records] == [Status.OK, Status.FAILED, Status.OK]
    assert batch.records[1].error == "decode: MemoryError: no 9 GB left"


@pytest.mark.parametrize(
    ("sides_px", "options", "sizes"),
    [
        ([100] * 5, {"batch_images": 2}, [2, 2, 1]),
        ([100] * 5, {"batch_images": 5}, [5]),
        ([100] * 5, {"batch_bytes": 70_000}, [2, 2, 1]),        # 30,000 bytes of pixels each, and the file
        ([300, 100, 100, 300], {"batch_bytes": 70_000}, [1, 2, 1]),
    ],
)
def test_sub_batches_are_capped_by_images_and_bytes(sides_px, options, sizes):
    contents = {str(i): flat_jpeg(side) for i, side in enumerate(sides_px)}
    batches = list(decoder(contents, **options)([TodoRow(uri) for uri in contents]))
    assert [len(batch) for batch in batches] == sizes
    assert [record.uri for batch in batches for record in batch.records] == list(contents)


def test_a_scaled_jpeg_counts_with_its_decoded_size():
    contents = {str(i): flat_jpeg(400) for i in range(4)}     # 480,000 bytes each at full size, 7,500 at 1/8
    assert len(list(decoder(contents, batch_bytes=100_000)([TodoRow(uri) for uri in contents]))) == 4
    scaled = decoder(contents, batch_bytes=100_000, min_side_px=corpus.least_side(50))
    assert len(list(scaled([TodoRow(uri) for uri in contents]))) == 1


def test_one_sub_batch_is_decoded_ahead_and_no_more():
    contents = {str(i): flat_jpeg(50) for i in range(10)}
    decode = decoder(contents, batch_images=2)
    fetch = decode._fetch
    batches = decode([TodoRow(uri) for uri in contents])
    assert fetch.read == 0
    # Two images taken, two ahead, and one more: its header shows that the sub-batch is full.
    for asked, reads in ((1, 5), (2, 7), (3, 9), (4, 10)):
        fetch.asked = asked
        next(batches)
        fetch.wait_for_reads(reads)
    assert fetch.asked_at_read == [1, 1, 1, 1, 1, 2, 2, 3, 3, 4]
    assert len(list(batches)) == 1


class SlowStore(Decode):
    """A store whose next file arrives when the one before is decoded."""

    def __init__(self, content):
        super().__init__(self.fetch, max_pixels=MAX_PIXELS, min_side_px=None, threads=1, batch_images=64,
                         batch_bytes=256 << 20)
        self.content = content
        self.decoded = threading.Semaphore(1)

    def fetch(self, rows):
        for _ in rows:
            yield Fetched(self.content if self.decoded.acquire(timeout=60) else b"")

    def _decode_one(self, *arguments):
        answer = super()._decode_one(*arguments)
        self.decoded.release()
        return answer


def test_a_file_is_decoded_before_the_rest_of_its_sub_batch_has_arrived():
    (batch,) = SlowStore(flat_jpeg(50))([TodoRow(uri) for uri in "abc"])
    assert [record.status for record in batch.records] == [Status.OK] * 3


def test_closing_early_ends_the_threads_and_the_fetching():
    contents = {str(i): corpus.jpeg() for i in range(50)}
    decode = decoder(contents, batch_images=2)
    batches = decode([TodoRow(uri) for uri in contents])
    assert isinstance(next(batches), ImageBatch)
    batches.close()
    assert decode._fetch.closed
    assert decode._fetch.read < 10
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


class SlowDecode(Decode):
    """Counts the images it decodes. The second sub-batch waits for `closing`, then takes 0.05 s an image."""

    def __init__(self, contents, batch_images):
        super().__init__(FakeFetch(contents), max_pixels=MAX_PIXELS, min_side_px=None, threads=1,
                         batch_images=batch_images, batch_bytes=256 << 20)
        self.first = batch_images
        self.decoded = 0
        self.closing = threading.Event()

    def _decode_one(self, *arguments):
        self.decoded += 1
        if self.decoded > self.first:
            assert self.closing.wait(60)
            time.sleep(0.05)
        return super()._decode_one(*arguments)


def test_closing_early_cancels_the_rest_of_the_sub_batch_ahead():
    contents = {str(i): flat_jpeg(20) for i in range(100)}
    decode = SlowDecode(contents, batch_images=50)
    batches = decode([TodoRow(uri) for uri in contents])
    next(batches)
    decode.closing.set()
    batches.close()
    assert 50 <= decode.decoded < 90


@pytest.mark.parametrize("needs", [(60, 40), (30, 30, 40)])
def test_the_gate_lets_in_together_what_fits(needs):
    gate = MemoryGate(100)
    together = threading.Barrier(len(needs))
    entered = []

    def work(n_bytes):
        with gate.hold(n_bytes):
            together.wait(timeout=60)
            entered.append(n_bytes)

    in_threads(work, needs)
    assert sorted(entered) == sorted(needs)


def test_the_gate_keeps_the_total_below_the_limit_and_lets_in_a_larger_one_alone():
    gate = MemoryGate(100)
    inside, most_inside = [], []

    def work(n_bytes):
        with gate.hold(n_bytes):
            inside.append(n_bytes)
            most_inside.append(sum(inside))
            time.sleep(0.01)
            inside.remove(n_bytes)

    in_threads(work, (60, 40, 60, 500, 30, 30, 30))
    assert len(most_inside) == 7
    assert max(total for total in most_inside if total != 500) <= 100
    assert 500 in most_inside


def in_threads(work, values):
    threads = [threading.Thread(target=work, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)


def test_pillow_has_no_limit_of_its_own(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    buffer = io.BytesIO()
    Image.fromarray(corpus.picture()).save(buffer, "WEBP")
    (batch,) = decoder({"a": buffer.getvalue()})([TodoRow("a")])
    assert batch.records[0].status is Status.OK


def test_the_beginning_of_a_too_large_file_gives_the_row_of_the_whole_file():
    """Except for the sha256, which needs the whole file."""
    content = corpus.encode(np.zeros((300, 500, 3), np.uint8), "PNG") + bytes(1000)
    contents = {"whole": content, "beginning": Fetched(content[:100], file_bytes=len(content))}
    [batch] = decoder(contents, max_pixels=1000)([TodoRow("whole"), TodoRow("beginning")])
    whole, beginning = batch.records
    assert beginning.status is Status.TOO_LARGE and beginning.sha256 is None and len(whole.sha256) == 64
    assert replace(beginning, uri="whole", sha256=whole.sha256) == whole


# With a GPU


def on_device(*refused):
    """A decoder of a GPU that refuses the files at these places of the batch. Its pixels are all 7."""
    def decode(contents, orientations):
        return [None if i in refused else np.full((1, 1, 3), 7, np.uint8) for i in range(len(contents))]

    return decode


@pytest.mark.parametrize("refused", [(), (1,), (0, 1, 2)])
def test_what_the_gpu_refuses_is_decoded_here(refused):
    jpeg, png = flat_jpeg(80), corpus.encode(corpus.picture(), "PNG")
    contents = {"a": jpeg, "png": png, "b": jpeg, "c": jpeg}
    (batch,) = decoder(contents, decode_on_device=on_device(*refused))([TodoRow(uri) for uri in contents])
    assert [record.status for record in batch.records] == [Status.OK] * 4
    first = dict(zip(contents, (pixels.flat[0] for pixels in batch.pixels), strict=True))
    assert [first[uri] for uri in "abc"] == [128 if i in refused else 7 for i in range(3)]


def test_an_image_that_fails_here_after_the_gpu_refused_it_is_the_only_one(monkeypatch):
    def short_of_memory(content, header):
        raise MemoryError("for one image")

    monkeypatch.setattr("pipeline.stages.decode.decode_pixels", short_of_memory)
    contents = {"a": flat_jpeg(80), "b": flat_jpeg(80)}
    (batch,) = decoder(contents, decode_on_device=on_device(1))([TodoRow(uri) for uri in contents])
    assert [(record.status, record.error) for record in batch.records] == [
        (Status.OK, None), (Status.FAILED, "decode: MemoryError: for one image")
    ]
