import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.batch import Status
from pipeline.stages.codec import DecodeError
from pipeline.stages.image import decode_image
from tests.support import corpus

# pytest undoes the warning filter of prepare_pillow.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")


def decode_full(content):
    return decode_image(content, max_pixels=corpus.MAX_PIXELS, min_side_px=None)


def test_heic_without_pillow_heif_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)      # as if it were not installed
    with pytest.raises(DecodeError, match=r"pip install pillow-heif") as refused:
        decode_full(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    assert (refused.value.status, refused.value.format) == (Status.UNSUPPORTED, "heic")


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
def test_float_samples_are_scaled_by_the_white_that_fits_the_highest(samples, expected):
    content = corpus.encode(Image.fromarray(np.array([samples], np.float32)), "TIFF")
    assert decode_full(content).pixels[0, :, 1].tolist() == expected


def test_16_bit_samples_are_scaled_and_not_clipped():
    ramp = np.tile(np.arange(0, 65536, 256, dtype=np.uint16), (4, 1))
    for format in ("PNG", "TIFF"):
        pixels = decode_full(corpus.encode(Image.fromarray(ramp), format)).pixels
        assert pixels[0, :, 0].tolist() == list(range(256))
