"""Where faces are in the stored picture, and what is left of them."""

import cv2
import numpy as np
import pytest
from PIL import Image

from jobs.blur.hide import CELLS, MIN_CELL_PX, STRIP_ROWS, How, Region, hidden, hide_in_image, regions_of
from pipeline.stages.image import upright

BOX = np.array([[40.0, 10.0, 60.0, 50.0]], np.float32)      # with its margin of 10 px: 30, 0, 70, 60


def test_no_box_no_region():
    assert regions_of(np.zeros((0, 4), np.float32), (200, 100), 1) == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_region_is_where_readers_see_the_box(orientation):
    stored = np.zeros((100, 200, 3) if orientation < 5 else (200, 100, 3), np.uint8)
    (region,) = regions_of(BOX, (200, 100), orientation)
    stored[region.y1 : region.y2, region.x1 : region.x2] = 255
    seen = np.argwhere(upright(stored, orientation)[..., 0])
    assert [*seen.min(axis=0), *seen.max(axis=0) + 1] == [0, 30, 60, 70]


def test_a_box_over_the_edge_is_cut_and_one_outside_is_none():
    boxes = np.array([[-20.0, 80.0, 20.0, 120.0], [300.0, 300.0, 320.0, 320.0]], np.float32)
    (region,) = regions_of(boxes, (200, 100), 1)
    assert region.box == (0, 70, 30, 100)


@pytest.mark.parametrize(("side_px", "cell_px"), [(300, 300 / CELLS), (8, MIN_CELL_PX)])
def test_the_strength_follows_the_size_of_the_face(side_px, cell_px):
    (region,) = regions_of(np.array([[0, 0, side_px, side_px / 2]], np.float32), (400, 400), 1)
    assert region.cell_px == cell_px


@pytest.mark.parametrize("shape", [(90, 60), (90, 60, 3), (90, 60, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pixels_that_differ_only_within_cells_end_alike(shape, dtype):
    first = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    second = first.reshape(3, 30, 2, 30, -1)[:, ::-1, :, ::-1].reshape(shape)       # every cell is turned by itself
    region = Region(0, 0, 60, 90, 30.0)
    for how in How:
        ends = hidden(first, region, how), hidden(second, region, how)
        assert ends[0].shape == shape and ends[0].dtype == dtype
        assert np.allclose(*ends, atol=1 if dtype != np.float32 else 1e-3)
    assert len(np.unique(hidden(first, region, How.PIXELATE).reshape(-1, *shape[2:]), axis=0)) <= 6
    assert not hidden(first, region, How.FILL).any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16"])
@pytest.mark.parametrize("how", How)
def test_a_picture_changes_in_its_region_alone_and_keeps_its_mode(mode, how):
    colours = cv2.resize(np.random.default_rng(2).integers(0, 255, (20, 20, 3), np.uint8), (100, 100))
    image = Image.fromarray(colours)
    image = Image.fromarray(np.asarray(image.convert("L"), np.uint16)) if mode == "I;16" else image.convert(mode)
    before = np.asarray(image.convert("RGB") if mode != "I;16" else image).copy()
    hide_in_image(image, regions_of(BOX, (100, 100), 1), how)
    after = np.asarray(image.convert("RGB") if mode != "I;16" else image)
    assert image.mode == mode
    changed = np.argwhere(before != after)[:, :2]
    assert changed.min(axis=0)[1] >= 30 and changed.max(axis=0)[1] < 70 and changed.max(axis=0)[0] < 60
    assert len(changed) > 200


@pytest.mark.parametrize("how", How)
def test_a_large_region_is_hidden_as_a_whole(how):
    """It is changed strip by strip, and strips must not show."""
    pixels = np.random.default_rng(4).integers(0, 255, (3 * STRIP_ROWS + 7, 90, 3), np.uint8)
    image, region = Image.fromarray(pixels), Region(5, 3, 85, 3 * STRIP_ROWS + 1, 250.0)
    hide_in_image(image, [region], how)
    expected = hidden(pixels[region.y1 : region.y2, region.x1 : region.x2], region, how)
    assert np.abs(np.asarray(image.crop(region.box)).astype(int) - expected).max() <= 1
