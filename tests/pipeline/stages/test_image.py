import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.batch import Status
from pipeline.stages.codec import DecodeError
from pipeline.stages.image import decode_image, is_too_large, read_header, upright
from tests.support import corpus

# pytest undoes the warning filter of prepare_pillow.
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


def test_too_large_files_name_the_limit_the_format_and_the_upright_size():
    with pytest.raises(DecodeError, match="over the limit of 9599 pixels") as refused:
        decode_image(corpus.jpeg(), max_pixels=9599, min_side_px=None)
    assert (refused.value.status, refused.value.format, refused.value.size_wh) == (Status.TOO_LARGE, "jpeg", (120, 80))
    assert decode_image(corpus.jpeg(), max_pixels=9600, min_side_px=None).header.format == "jpeg"
    with pytest.raises(DecodeError) as refused:
        decode_image(corpus.turned("jpeg", 6), max_pixels=9599, min_side_px=None)
    assert refused.value.size_wh == (120, 80)        # upright, as for good images


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation):
    stored = np.random.default_rng(orientation).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    stored.flags.writeable = False
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(upright(stored, orientation), np.asarray(ImageOps.exif_transpose(image)))


def test_only_jpegs_are_scaled():
    content, least = corpus.encode(corpus.picture(), "PNG"), corpus.least_side(10)
    decoded = decode_image(content, max_pixels=MAX_PIXELS, min_side_px=least)
    assert decoded.pixels.shape == (80, 120, 3)
    assert decoded.header.decode_scale == 1.0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_the_header_needs_no_pixels(format):
    """The second half of the file is lost: the header is the same, the picture is not."""
    content = corpus.encode(cv2.resize(corpus.picture(), (400, 300)), format)
    damaged = content[: len(content) // 2] + bytes(len(content) - len(content) // 2)
    header = read_header(damaged, max_pixels=MAX_PIXELS, min_side_px=None)
    assert header == read_header(content, max_pixels=MAX_PIXELS, min_side_px=None)
    assert (header.width, header.height) == (400, 300)
    try:
        pixels = decode_full(damaged).pixels
    except DecodeError as error:
        assert error.status is Status.UNREADABLE
    else:
        assert not np.array_equal(pixels, decode_full(content).pixels)


def test_the_beginning_of_a_file_can_show_that_it_is_too_large():
    content = corpus.encode(np.zeros((300, 500, 3), np.uint8), "PNG")
    assert is_too_large(content[:100], max_pixels=1000)
    assert not is_too_large(content[:100], max_pixels=10**6)
    assert not is_too_large(content[:20], max_pixels=1000) and not is_too_large(b"", max_pixels=1000)
