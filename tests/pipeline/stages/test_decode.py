import hashlib
import io
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from pipeline.batch import Fetched, FetchFailure, ImageBatch, ImageRecord, Status, TodoRow
from pipeline.stages.decode import (
    Decode,
    DecodeError,
    _MemoryGate,
    decode_image,
    is_too_large,
    jpeg_scale,
    read_header,
    upright,
)
from tests.support import corpus

# pytest undoes what prepare_pillow set.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

MAX_PIXELS = corpus.MAX_PIXELS
GOOD = [sample for sample in corpus.samples() if sample.picture is not None]


def decode_full(content):
    return decode_image(content, max_pixels=MAX_PIXELS, min_side_px=None)


# One image


@pytest.mark.parametrize("sample", GOOD, ids=lambda sample: sample.name)
def test_good_files_show_their_picture_upright(sample):
    decoded = decode_full(sample.content)
    height, width = sample.picture.shape[:2]
    assert decoded.pixels.dtype == np.uint8 and decoded.pixels.flags.c_contiguous
    assert decoded.pixels.shape == sample.picture.shape
    assert np.abs(decoded.pixels.astype(int) - sample.picture).mean() <= sample.mean_error
    header = decoded.header
    assert (header.format, header.width, header.height, header.decode_scale) == (sample.format, width, height, 1.0)
    assert header.exif_orientation == sample.orientation


def test_the_file_is_named_as_its_content_and_the_limit_is_told():
    with pytest.raises(DecodeError, match="over the limit of 9599 pixels") as told:
        decode_image(corpus.jpeg(), max_pixels=9599, min_side_px=None)
    assert (told.value.status, told.value.format, told.value.size_wh) == (Status.TOO_LARGE, "jpeg", (120, 80))
    assert decode_image(corpus.jpeg(), max_pixels=9600, min_side_px=None).header.format == "jpeg"
    with pytest.raises(DecodeError) as told:
        decode_image(corpus.turned("jpeg", 6), max_pixels=9599, min_side_px=None)
    assert told.value.size_wh == (120, 80)        # upright, as the sizes of good images are


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation):
    stored = np.random.default_rng(orientation).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    stored.flags.writeable = False
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(upright(stored, orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize(
    ("size_wh", "min_side_px", "scale"),
    [
        ((0, 0), 1280, 1.0),
        ((4000, 3000), None, 1.0),
        ((1279, 900), 1280, 1.0),
        ((2559, 1000), 1280, 1.0),
        ((2560, 1000), 1280, 0.5),
        ((1000, 2560), 1280, 0.5),
        ((5119, 100), 1280, 0.5),
        ((5120, 100), 1280, 0.25),
        ((10240, 9000), 1280, 0.125),
        ((65535, 65535), 1280, 0.125),
    ],
)
def test_the_scale_keeps_the_longest_side_long_enough(size_wh, min_side_px, scale):
    assert jpeg_scale(*size_wh, min_side_px) == scale


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(("scale", "decoded_wh"), [(1.0, (403, 301)), (0.5, (202, 151)), (0.25, (101, 76)),
                                                   (0.125, (51, 38))])
def test_scaled_jpegs_round_up_and_stand_upright(mode, progressive, scale, decoded_wh):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = cv2.resize(corpus.picture(), (403, 301))
    inks = Image.fromarray(corpus.cmyk(picture), "CMYK")
    stored = (inks if mode == "CMYK" else Image.fromarray(picture).convert(mode)).transpose(Image.Transpose.ROTATE_90)
    content = corpus.encode(stored, "JPEG", quality=95, subsampling=0, progressive=progressive, exif=exif)
    decoded = decode_image(content, max_pixels=MAX_PIXELS, min_side_px=int(403 * scale))
    width, height = decoded_wh
    assert decoded.pixels.shape == (height, width, 3)
    header = decoded.header
    assert (header.width, header.height, header.decode_scale) == (403, 301, scale)
    assert header.decoded_wh == decoded_wh
    assert header.decoded_bytes == decoded.pixels.nbytes
    # Stored pixels beyond the right edge fill the last block's column, hence no comparison at the edges.
    expected = corpus.grey(picture) if mode == "L" else picture
    expected = cv2.resize(expected, decoded_wh, interpolation=cv2.INTER_AREA)
    assert np.abs(decoded.pixels.astype(int) - expected)[2:-2, 2:-2].mean() < 4


def test_heic_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)      # as if it were not installed
    with pytest.raises(DecodeError, match=r"pip install pillow-heif") as told:
        decode_full(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    assert (told.value.status, told.value.format) == (Status.UNSUPPORTED, "heic")


def test_only_jpegs_are_scaled():
    decoded = decode_image(corpus.encode(corpus.picture(), "PNG"), max_pixels=MAX_PIXELS, min_side_px=10)
    assert decoded.pixels.shape == (80, 120, 3)
    assert decoded.header.decode_scale == 1.0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_the_header_is_read_without_decoding_a_pixel(format):
    content = corpus.encode(cv2.resize(corpus.picture(), (4000, 3000)), format)
    started = time.process_time()
    header = read_header(content, max_pixels=MAX_PIXELS, min_side_px=None)
    assert time.process_time() - started < 0.02       # decoding takes 0.06 s and more, but for BMP
    assert (header.width, header.height) == (4000, 3000)


def test_a_jpeg_of_several_scans_says_that_it_needs_its_coefficients():
    def needed(content):
        return read_header(content, max_pixels=MAX_PIXELS, min_side_px=10).work_bytes

    assert needed(corpus.jpeg()) == 0
    assert needed(corpus.jpeg(progressive=True)) == 120 * 80 * 3 * 2
    one_by_one = corpus.jpeg()
    at = one_by_one.index(b"\xff\xda")              # of the three components it names one
    one_by_one = one_by_one[:at] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + b"\xff\xda" + one_by_one[at + 2 :]
    assert needed(one_by_one) == 120 * 80 * 3 * 2


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0.0, 0.0], [0, 0]),
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([-3.0, 0.5, np.nan], [0, 128, 0]),
        ([np.inf, 1.0, -np.inf], [255, 255, 0]),
        ([0.0, 100.0, 200.0], [0, 100, 200]),
        ([0.0, 25700.0], [0, 100]),
        ([50_000.0, 100_000.0], [128, 255]),
    ],
)
def test_float_samples_are_scaled_to_what_their_highest_implies(samples, expected):
    content = corpus.encode(Image.fromarray(np.array([samples], np.float32)), "TIFF")
    assert decode_full(content).pixels[0, :, 1].tolist() == expected


def test_16_bit_samples_are_scaled_and_not_cut_off():
    ramp = np.tile(np.arange(0, 65536, 256, dtype=np.uint16), (4, 1))
    for format in ("PNG", "TIFF"):
        pixels = decode_full(corpus.encode(Image.fromarray(ramp), format)).pixels
        assert pixels[0, :, 0].tolist() == list(range(256))


# Many images


class FakeFetch:
    """Hands out contents by uri, and notes how far it was read and whether it was closed."""

    def __init__(self, contents):
        self.contents = contents
        self.read = 0
        self.closed = False

    def __call__(self, rows):
        try:
            for row in rows:
                self.read += 1
                answer = self.contents[row.uri]
                yield answer if isinstance(answer, Fetched | FetchFailure) else Fetched(answer)
        finally:
            self.closed = True


def decoder(contents, **options):
    return Decode(FakeFetch(contents), **{"max_pixels": MAX_PIXELS, "min_side_px": None, "threads": 2, **options})


def flat_jpeg(side_px):
    return simplejpeg.encode_jpeg(np.full((side_px, side_px, 3), 128, np.uint8), 90)


def test_no_rows_give_no_batches():
    assert list(decoder({})([])) == []


def test_every_row_gets_one_record_in_order_a_broken_one_among_them():
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
    """The content of a file that breaks the decoder's own code."""

    def startswith(self, *args):
        raise MemoryError("no 9 GB left")


def test_our_own_error_in_one_image_fails_that_one_alone():
    contents = {"a": corpus.jpeg(), "b": OutOfMemory(b"x"), "c": corpus.jpeg()}
    (batch,) = decoder(contents)([TodoRow(uri) for uri in "abc"])
    assert [record.status for record in batch.records] == [Status.OK, Status.FAILED, Status.OK]
    assert batch.records[1].error == "decode: MemoryError: no 9 GB left"


@pytest.mark.parametrize(
    ("sides_px", "options", "sizes"),
    [
        ([100] * 5, {"batch_images": 2}, [2, 2, 1]),
        ([100] * 5, {"batch_images": 5}, [5]),
        ([100] * 5, {"batch_bytes": 70_000}, [2, 2, 1]),        # 30,000 bytes of pixels each, and a small file
        ([300, 100, 100, 300], {"batch_bytes": 70_000}, [1, 2, 1]),
    ],
)
def test_sub_batches_are_capped_by_images_and_bytes(sides_px, options, sizes):
    contents = {str(i): flat_jpeg(side) for i, side in enumerate(sides_px)}
    batches = list(decoder(contents, **options)([TodoRow(uri) for uri in contents]))
    assert [len(batch) for batch in batches] == sizes
    assert [record.uri for batch in batches for record in batch.records] == list(contents)


def test_what_a_scaled_jpeg_will_take_is_counted_and_not_what_it_has():
    contents = {str(i): flat_jpeg(400) for i in range(4)}     # 480,000 bytes at full size, 7,500 at an eighth
    assert len(list(decoder(contents, batch_bytes=100_000)([TodoRow(uri) for uri in contents]))) == 4
    assert len(list(decoder(contents, batch_bytes=100_000, min_side_px=50)([TodoRow(uri) for uri in contents]))) == 1


def test_one_sub_batch_is_decoded_ahead_and_no_more():
    contents = {str(i): flat_jpeg(50) for i in range(10)}
    decode = decoder(contents, batch_images=2)
    fetch = decode._fetch
    batches = decode([TodoRow(uri) for uri in contents])
    assert fetch.read == 0
    next(batches)
    deadline = time.monotonic() + 5
    while fetch.read < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert fetch.read == 5        # two taken, two ahead, and the one whose header showed that the sub-batch was full


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
    """Counts the images it decodes, a hundredth of a second each."""

    decoded = 0

    def _decode_one(self, *waiting):
        self.decoded += 1
        time.sleep(0.01)
        return super()._decode_one(*waiting)


def test_closing_early_leaves_the_rest_of_the_sub_batch_ahead():
    contents = {str(i): flat_jpeg(20) for i in range(100)}
    decode = SlowDecode(FakeFetch(contents), max_pixels=MAX_PIXELS, min_side_px=None, threads=1, batch_images=50)
    batches = decode([TodoRow(uri) for uri in contents])
    next(batches)
    batches.close()
    assert 50 <= decode.decoded < 90


def test_the_gate_lets_in_what_fits_and_one_in_any_case():
    gate = _MemoryGate(100)
    inside, most_inside = [], []

    def work(n_bytes):
        with gate.hold(n_bytes):
            inside.append(n_bytes)
            most_inside.append(sum(inside))
            time.sleep(0.01)
            inside.remove(n_bytes)

    threads = [threading.Thread(target=work, args=(n_bytes,)) for n_bytes in (60, 40, 60, 500, 30, 30, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)
    assert len(most_inside) == 7
    assert max(total for total in most_inside if total != 500) <= 100
    assert 500 in most_inside


def test_pillow_s_own_limit_does_not_stand_in_the_way(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    buffer = io.BytesIO()
    Image.fromarray(corpus.picture()).save(buffer, "WEBP")
    (batch,) = decoder({"a": buffer.getvalue()})([TodoRow("a")])
    assert batch.records[0].status is Status.OK


def test_a_beginning_that_says_too_large_makes_the_row_of_the_whole_file():
    """All but the sha256, which takes the whole file."""
    content = corpus.encode(np.zeros((300, 500, 3), np.uint8), "PNG") + bytes(1000)
    assert is_too_large(content[:100], max_pixels=1000) and not is_too_large(content[:100], max_pixels=10**6)
    assert not is_too_large(content[:20], max_pixels=1000) and not is_too_large(b"", max_pixels=1000)
    contents = {"whole": content, "beginning": Fetched(content[:100], file_bytes=len(content))}
    [batch] = decoder(contents, max_pixels=1000)([TodoRow("whole"), TodoRow("beginning")])
    whole, beginning = batch.records
    assert beginning.status is Status.TOO_LARGE and beginning.sha256 is None and len(whole.sha256) == 64
    assert replace(beginning, uri="whole", sha256=whole.sha256) == whole
