import itertools

import numpy as np
import pytest

from pipeline.batch import Status
from pipeline.stages.codec import DecodeError
from pipeline.stages.image import decode_image, read_header
from pipeline.stages.tiff_planes import split
from tests.support import corpus
from tests.support.tiffs import COMPRESSIONS, Layout, tiff

RGB = corpus.picture()
GREY = corpus.grey(RGB)[..., :1]
OPACITY = np.tile(np.linspace(0, 255, 120).astype(np.uint8), (80, 1))[..., None]
OVER_WHITE = (RGB * (OPACITY / 255) + 255 * (1 - OPACITY / 255)).round().astype(np.uint8)


def pixels(content):
    return decode_image(content, max_pixels=10**6, min_side_px=None).pixels


def of_depth(samples, dtype):
    """8-bit samples in another depth."""
    if np.dtype(dtype).kind == "f":
        return (samples / 255).astype(dtype)
    return samples.astype(dtype) * (1 if dtype == "u1" else 257)


@pytest.mark.parametrize("content", [b"II*\0", corpus.encode(RGB, "TIFF"), tiff(GREY, Layout(photometric=1))],
                         ids=["cut", "pixel by pixel", "one plane"])
def test_a_tiff_without_planes_is_not_split(content):
    assert split(content) is None


@pytest.mark.parametrize(("order", "tile", "predictor", "big"), [*itertools.product("<>", (None, 32), (0, 1), (0, 1))])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f4"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("planar", [True, False])
def test_every_layout_is_right_or_refused(planar, compression, dtype, order, tile, predictor, big):
    predictor = bool(predictor) and compression in ("lzw", "deflate") and dtype != "f4"
    layout = Layout(planar, compression, predictor, tile, order, bool(big))
    content = tiff(of_depth(RGB, dtype), layout)
    refused = (big and order == ">") or (not planar and dtype in ("u4", "f4")) or (dtype == "u4" and order == ">")
    if refused:
        with pytest.raises(DecodeError, match="TIFF: a variant we do not decode") as error:
            pixels(content)
        assert error.value.status is Status.UNSUPPORTED
    else:
        assert np.abs(pixels(content).astype(int) - RGB).max() <= 1


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("compression", ["none", "lzw"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize(("extra", "expected"), [(None, RGB), ((0,), RGB), ((2,), OVER_WHITE)])
def test_a_fourth_sample_is_opacity_only_if_it_says_so(planar, compression, dtype, extra, expected):
    samples = of_depth(np.concatenate([RGB, OPACITY], axis=2), dtype)
    content = tiff(samples, Layout(planar, compression, extra=extra))
    assert np.abs(pixels(content).astype(int) - expected).max() <= 1


def test_colours_that_are_multiplied_with_the_opacity():
    samples = np.concatenate([(RGB * (OPACITY / 255)).round().astype(np.uint8), OPACITY], axis=2)
    assert np.abs(pixels(tiff(samples, Layout(extra=(1,)))).astype(int) - OVER_WHITE).mean() < 1


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_further_planes_are_ignored(dtype):
    extra = of_depth(np.concatenate([RGB, OPACITY, OPACITY], axis=2), dtype)
    assert np.abs(pixels(tiff(extra, Layout(extra=(0, 2)))).astype(int) - RGB).max() <= 1
    greys = of_depth(np.concatenate([GREY, OPACITY], axis=2), dtype)
    assert np.abs(pixels(tiff(greys, Layout(photometric=1, extra=(0,)))).astype(int) - GREY).max() <= 1


def test_inks_in_planes():
    inks = of_depth(corpus.cmyk(RGB), "u2")
    assert np.abs(pixels(tiff(inks, Layout(photometric=5))).astype(int) - RGB).mean() < 2


@pytest.mark.parametrize("photometric", [3, 6, 8, 32803])
def test_other_colours_in_planes_are_refused(photometric):
    with pytest.raises(DecodeError, match="a variant we do not decode"):
        pixels(tiff(RGB, Layout(photometric=photometric)))


@pytest.mark.parametrize("dtype", ["u2", "f4"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_greys_of_which_0_is_white(dtype, order, compression):
    deep = of_depth(GREY, dtype)
    content = tiff((deep.max() - deep + of_depth(255 - GREY.max(), dtype)).astype(dtype),
                   Layout(planar=False, photometric=0, order=order, compression=compression))
    try:
        assert np.abs(pixels(content).astype(int) - GREY).max() <= 1
    except DecodeError as error:
        assert error.status is Status.UNSUPPORTED


@pytest.mark.parametrize(("compression", "order", "tile"), [*itertools.product(COMPRESSIONS, "<>", (None, 32))])
def test_greys_of_one_float(compression, order, tile):
    content = tiff(of_depth(GREY, "f4"), Layout(False, compression, tile=tile, order=order, photometric=1))
    assert np.abs(pixels(content).astype(int) - GREY).max() <= 1


def test_signed_bytes_are_refused():
    with pytest.raises(DecodeError, match="a variant we do not decode"):
        pixels(tiff(GREY.astype("i1"), Layout(planar=False, photometric=1)))


def test_the_header_of_planes_needs_no_pixel_and_tells_the_memory():
    content = tiff(RGB, Layout(strip_rows=80))
    header = read_header(content, max_pixels=10**6, min_side_px=None)
    assert (header.width, header.height, header.format) == (120, 80, "tiff")
    assert header.work_bytes >= 3 * len(content)


@pytest.mark.parametrize("cut", [1, 100, 20_000])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_planes_that_are_cut_off(compression, cut):
    content = tiff(RGB, Layout(compression=compression))
    with pytest.raises(DecodeError, match=r"cut off before the picture ends") as error:
        pixels(content[:-cut] if cut < len(content) - 900 else content[:900])
    assert error.value.status is Status.UNREADABLE
