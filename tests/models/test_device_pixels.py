"""The operations on pixels by torch give what those by OpenCV give, on the CPU here, on GPUs in tests/gpu."""

import cv2
import numpy as np
import pytest
import torch

from models.device_pixels import DevicePixels, _area_taps, sharpness
from models.keypointer import View, middles, views_of
from pipeline import geometry
from pipeline.batch import ChipStack
from pipeline.stages import align
from pipeline.stages.operations import OpenCv, Operations

DEVICE, HOST = DevicePixels(torch.device("cpu")), OpenCv()


def test_opencv_takes_what_a_gpu_has_decoded():
    """The decoder of the GPU may work where the operations on pixels do not."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    loaded = HOST.load([torch.from_numpy(image), image])
    np.testing.assert_array_equal(HOST.letterbox(loaded, 32)[0][0], HOST.letterbox([image], 32)[0][0])
    assert loaded[1] is image


def photo(width, height, seed=0):
    """A soft picture with some noise, read-only like those of Ray."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), np.uint8)
    soft = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(soft.astype(np.int16) + rng.integers(-6, 7, soft.shape), 0, 255).astype(np.uint8)
    noisy.flags.writeable = False
    return noisy


def difference(found, expected):
    """The mean and the largest difference, of 255."""
    off = np.abs(np.asarray(found).astype(np.int16) - np.asarray(expected).astype(np.int16))
    return (off.mean() if off.size else 0.0), off.max(initial=0)


def boxes(*values):
    return np.array(values, np.float32).reshape(-1, 4)


def cut(images, of_each):
    """The chips of both, and the chips of torch with their matrices."""
    expected, wanted_matrices = HOST.cut_chips(images, of_each)
    chips, matrices = DEVICE.cut_chips(DEVICE.load(images), of_each)
    np.testing.assert_allclose(matrices, wanted_matrices, atol=1e-9)
    return chips, expected


def test_it_has_the_interface():
    operations: Operations = DEVICE
    chips, _ = operations.cut_chips(DEVICE.load([photo(40, 40)]), [boxes((5, 5, 20, 20))])
    assert isinstance(chips, ChipStack)


@pytest.mark.parametrize("sizes", [[], [(30, 20)], [(30, 20), (1, 1), (64, 7)]])
def test_loaded_images_have_the_same_pixels_in_one_buffer(sizes):
    images = [photo(*size, seed) for seed, size in enumerate(sizes)]
    loaded = DEVICE.load([torch.from_numpy(image.copy()) if i % 2 else image for i, image in enumerate(images)])
    assert len({image.untyped_storage().data_ptr() for image in loaded}) <= 1
    for image, found in zip(images, loaded, strict=True):
        np.testing.assert_array_equal(found.numpy(), image)


@pytest.mark.parametrize("rotation_deg", [0, 90, 180, 270])
def test_turned(rotation_deg):
    (image,) = DEVICE.load([photo(30, 20)])
    np.testing.assert_array_equal(
        DEVICE.turned(image, rotation_deg).numpy(), HOST.turned(image.numpy(), rotation_deg)
    )


@pytest.mark.parametrize(
    "sizes", [[], [(100, 60)], [(50, 160), (160, 160), (170, 150)], [(700, 300), (300, 2), (1, 1), (2000, 1500)]]
)
def test_letterbox(sizes):
    images = [photo(*size, seed) for seed, size in enumerate(sizes)]
    canvases, matrices = DEVICE.letterbox(DEVICE.load(images), 160)
    expected, wanted_matrices = HOST.letterbox(images, 160)
    np.testing.assert_allclose(matrices, wanted_matrices, atol=1e-12)
    assert canvases.shape == expected.shape
    assert difference(canvases, expected)[1] <= 1


def test_a_part_of_an_image_is_letterboxed_too():
    image = photo(300, 200)
    canvases, _ = DEVICE.letterbox([DEVICE.load([image])[0][20:120, 50:250]], 160)
    assert difference(canvases, HOST.letterbox([image[20:120, 50:250]], 160)[0])[1] <= 1


@pytest.mark.parametrize(
    "of_each",
    [
        [boxes(), boxes()],
        [boxes((10, 10, 40, 50)), boxes()],
        [boxes((-20, -5, 30, 30), (150, 90, 260, 210), (0, 0, 1, 1)), boxes((3, 4, 90, 80))],      # over the edges
    ],
)
def test_chips_that_do_not_shrink_are_the_same(of_each):
    chips, expected = cut([photo(200, 120), photo(100, 90, 1)], of_each)
    assert len(chips) == len(expected)
    for chip, wanted in zip(chips, expected, strict=True):
        np.testing.assert_array_equal(chip, wanted)


def test_chips_that_shrink():
    (inside, over_an_edge), expected = cut([photo(900, 700)], [boxes((250, 200, 610, 560), (500, 100, 900, 600))])
    assert inside.shape == over_an_edge.shape == (256, 256, 3)
    assert difference(inside, expected[0])[1] <= 1
    assert difference(over_an_edge, expected[1])[0] < 4      # OpenCV shrinks the part inside first, and blurs it


@pytest.mark.parametrize("together", [1, 600_000, 1 << 30])
def test_chips_that_shrink_do_not_depend_on_each_other(monkeypatch, together):
    """Squares of 257 to 1,600 px of two images, some over their edges, shrunk one by one, in groups and all at once."""
    monkeypatch.setattr("models.device_pixels.SHRINK_PIXELS", together)
    images = [photo(1100, 900), photo(700, 1200, 1)]
    of_each = [boxes((300, 200, 461, 361), (250, 100, 700, 550), (10, 10, 60, 60), (-60, 400, 900, 890)),
               boxes((100, 300, 400, 600), (90, 290, 410, 610), (0, 100, 690, 1190))]
    chips, expected = cut(images, of_each)
    for chip, wanted in zip(chips, expected, strict=True):
        assert difference(chip, wanted)[0] < 4      # OpenCV blurs what lies over an edge, as above
    each = [(image, of[i : i + 1]) for image, of in zip(images, of_each, strict=True) for i in range(len(of))]
    for chip, (image, of) in zip(chips, each, strict=True):
        np.testing.assert_array_equal(chip, next(iter(cut([image], [of])[0])))


@pytest.mark.parametrize("count", [112, 256])
def test_what_shrinks_does_not_depend_on_the_longest_beside_it(count):
    """The pixels beyond a square, and those that only a longer square needs, have no weight."""
    sides = torch.arange(count + 1, 4 * count)[:, None]
    first, weights = _area_taps(sides, count, 6)
    pixels = first[:, :, None] + torch.arange(6)
    own = (sides + count - 1) // count + 1      # pixels that a stretch can touch
    beyond = (pixels >= sides[:, :, None]) | (torch.arange(6) >= own[:, :, None])
    assert weights[beyond].max() < 1e-9
    torch.testing.assert_close(weights.sum(2), torch.ones(len(sides), count))


def test_chips_of_images_in_several_buffers():
    images, of_each = [photo(200, 120), photo(100, 90, 1)], [boxes((10, 10, 40, 50)), boxes((3, 4, 90, 80))]
    chips, _ = DEVICE.cut_chips([DEVICE.load([image])[0] for image in images], of_each)
    for chip, wanted in zip(chips, HOST.cut_chips(images, of_each)[0], strict=True):
        np.testing.assert_array_equal(chip, wanted)


def test_chips_can_be_taken_apart_and_joined():
    chips, expected = cut([photo(200, 120)], [boxes((10, 10, 40, 50), (30, 20, 90, 80), (100, 9, 160, 70))])
    again = chips[2:].joined([chips[:2]])
    assert len(again) == 3 and again.pixels is chips.pixels
    for chip, wanted in zip(again, (expected[2], expected[0], expected[1]), strict=True):
        np.testing.assert_array_equal(chip, wanted)


def test_chips_of_several_batches_can_be_joined():
    each = [cut([photo(200, 120, seed)], [boxes((10, 10, 40, 50), (30, 20, 90, 80))]) for seed in range(3)]
    joined = each[0][0].joined([chips for chips, _ in each[1:]])
    wanted = [chip for _, expected in each for chip in expected]
    assert len(joined) == len(wanted) == 6
    for chip, expected in zip(joined, wanted, strict=True):
        np.testing.assert_array_equal(chip, expected)


@pytest.mark.parametrize("fraction", [0.7, 1.0])
def test_middles_of_chips(fraction):
    chips, host = cut([photo(600, 500)], [boxes((10, 10, 40, 50), (200, 150, 350, 310), (300, 290, 302, 291))])
    views, sides, margins = chips.middles(fraction, 112)
    wanted, wanted_sides, wanted_margins = middles(host, fraction, 112)
    np.testing.assert_array_equal(sides, wanted_sides)
    np.testing.assert_array_equal(margins, wanted_margins)
    assert sides.dtype == margins.dtype == np.float32
    for view, other in zip(views, wanted, strict=True):
        assert difference(view, other)[1] <= 1


def test_views_of_chips():
    chips, host = cut([photo(600, 500)], [boxes((10, 10, 40, 50), (200, 150, 350, 310))])
    named = [View(0.75), View(0.75, mirrored=True), View(0.6, mirrored=True)]
    inputs, sides, margins = chips.views(named, 112)
    wanted, wanted_sides, wanted_margins = views_of(host, named, 112)
    assert inputs.shape == wanted.shape == (6, 112, 112, 3)
    np.testing.assert_array_equal(sides, wanted_sides)
    np.testing.assert_array_equal(margins, wanted_margins)
    for view, other in zip(inputs, wanted, strict=True):
        assert difference(view, other)[1] <= 1


def test_aligned_faces_and_their_sharpness():
    chips, host = cut([photo(600, 500)], [boxes((10, 10, 80, 90), (200, 150, 350, 310))])
    angle = np.radians([25.0, -70.0])
    turn = np.stack([np.stack([np.cos(angle), np.sin(angle)], 1), np.stack([-np.sin(angle), np.cos(angle)], 1)], 1)
    scale = np.array([112 / len(chip) for chip in host])[:, None, None]
    chip_to_crop = np.concatenate([turn * scale, np.array([[[30.0], [40.0]], [[20.0], [90.0]]])], axis=2)
    crops, sharp = chips.aligned(chip_to_crop)
    for crop, other, matrix in zip(crops, host, chip_to_crop, strict=True):
        assert difference(crop, align.warp(other, matrix))[1] <= 2
    np.testing.assert_allclose(sharp, [align.sharpness(crop.numpy()) for crop in crops], rtol=1e-4)


@pytest.mark.parametrize("together", [1, 2 * 112**2, 1 << 30])
def test_a_face_is_the_same_in_every_batch(monkeypatch, together):
    monkeypatch.setattr("models.device_pixels.CHIP_PIXELS", together)
    image, of = photo(600, 500), boxes((10, 10, 80, 90), (200, 150, 350, 310), (100, 60, 480, 440))
    together, _ = DEVICE.cut_chips(DEVICE.load([image]), [of])
    views, crops = together.middles(0.7, 112)[0], together.aligned(np.stack([geometry.IDENTITY] * 3))[0]
    for i in range(3):
        alone, _ = DEVICE.cut_chips(DEVICE.load([image]), [of[i : i + 1]])
        np.testing.assert_array_equal(alone.middles(0.7, 112)[0][0], views[i])
        np.testing.assert_array_equal(alone.aligned(geometry.IDENTITY[None])[0][0], crops[i])


def test_sharpness_of_a_plain_face_is_zero():
    assert sharpness(torch.full((2, 112, 112, 3), 9, dtype=torch.uint8)).tolist() == [0.0, 0.0]
