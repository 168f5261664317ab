import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.stages.image import decode_image, read_header
from pipeline.stages.jpeg import jpeg_scale
from tests.support import corpus

MAX_PIXELS = corpus.MAX_PIXELS


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
    assert jpeg_scale(*size_wh, corpus.least_side(min_side_px)) == scale


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
    decoded = decode_image(content, max_pixels=MAX_PIXELS, min_side_px=corpus.least_side(int(403 * scale)))
    width, height = decoded_wh
    assert decoded.pixels.shape == (height, width, 3)
    header = decoded.header
    assert (header.width, header.height, header.decode_scale) == (403, 301, scale)
    assert header.decoded_wh == decoded_wh
    assert header.decoded_bytes == decoded.pixels.nbytes
    # The last blocks hold padding beyond the edge of the picture, so the edges are not compared.
    expected = corpus.grey(picture) if mode == "L" else picture
    expected = cv2.resize(expected, decoded_wh, interpolation=cv2.INTER_AREA)
    assert np.abs(decoded.pixels.astype(int) - expected)[2:-2, 2:-2].mean() < 4


def test_a_jpeg_of_several_scans_needs_memory_for_its_coefficients():
    def needed(content):
        return read_header(content, max_pixels=MAX_PIXELS, min_side_px=corpus.least_side(10)).work_bytes

    assert needed(corpus.jpeg()) == 0
    assert needed(corpus.jpeg(progressive=True)) == 120 * 80 * 3 * 2
    one_by_one = corpus.jpeg()
    at = one_by_one.index(b"\xff\xda")              # the first scan has one of three components
    one_by_one = one_by_one[:at] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + b"\xff\xda" + one_by_one[at + 2 :]
    assert needed(one_by_one) == 120 * 80 * 3 * 2
