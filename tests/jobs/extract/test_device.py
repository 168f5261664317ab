"""The checks of a GPU's operations and decoder, with stand-ins on the CPU that are right and that are wrong."""

import numpy as np
import pytest
import simplejpeg
import torch

from jobs.extract.device import check_jpegs, check_operations, device_jpegs, device_operations, made_picture
from models.device_jpegs import DeviceJpegs
from models.device_pixels import DeviceChips, DevicePixels
from models.engines.engine import EngineError, Opened
from pipeline.geometry import CHIP_MAX_PX
from pipeline.stages.operations import OpenCv

CPU = torch.device("cpu")


def libjpeg(contents, device):
    return [torch.from_numpy(simplejpeg.decode_jpeg(content, "RGB")).permute(2, 0, 1) for content in contents]


class Brighter(DevicePixels):
    """Canvases are wrong."""

    def letterbox(self, images, side_px):
        canvases, matrices = super().letterbox(images, side_px)
        return 255 - canvases, matrices


class Black(DevicePixels):
    """Crops are wrong."""

    def cut_chips(self, images, boxes):
        chips, matrices = super().cut_chips(images, boxes)
        return BlackCrops(chips.pixels, chips.starts, chips.sides), matrices


class BlackCrops(DeviceChips):
    def aligned(self, chip_to_crop):
        crops, sharp = DeviceChips.aligned(self, chip_to_crop)
        return torch.zeros_like(crops), sharp


class NoLargeChips(DevicePixels):
    """Chips that shrink are wrong."""

    def cut_chips(self, images, boxes):
        chips, matrices = super().cut_chips(images, boxes)
        (large,) = np.flatnonzero(chips.sides == CHIP_MAX_PX)
        pixels = chips.pixels.clone()
        pixels[chips.starts[large] :][: CHIP_MAX_PX**2] = 0
        return DeviceChips(pixels, chips.starts, chips.sides), matrices


class Unmirrored(DevicePixels):
    """Eye inputs are wrong."""

    def cut_chips(self, images, boxes):
        chips, matrices = super().cut_chips(images, boxes)
        return UnmirroredViews(chips.pixels, chips.starts, chips.sides), matrices


class UnmirroredViews(DeviceChips):
    def views(self, views, side_px):
        return DeviceChips.views(self, [view._replace(mirrored=False) for view in views], side_px)


def test_right_operations_pass():
    check_operations(DevicePixels(CPU))


@pytest.mark.parametrize(
    ("operations", "what"),
    [(Brighter(CPU), "letterbox"), (NoLargeChips(CPU), "chips"), (Unmirrored(CPU), "eye inputs"),
     (Black(CPU), "crops")],
)
def test_wrong_operations_are_found(operations, what):
    with pytest.raises(EngineError, match=rf"^{what} differ from the CPU's by \d+\.\d of 255, 4.0 at most$"):
        check_operations(operations)


def test_a_right_decoder_passes():
    check_jpegs(DeviceJpegs(CPU, libjpeg))


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda contents, device: [255 - image for image in libjpeg(contents, device)], "pixels differ from"),
        (lambda contents, device: [image[:, :-1] for image in libjpeg(contents, device)], "pixels: shape"),
        (lambda contents, device: [image.flip(0) for image in libjpeg(contents, device)], "pixels differ from"),
    ],
)
def test_a_wrong_decoder_is_found(decode, message):
    with pytest.raises(EngineError, match=message):
        check_jpegs(DeviceJpegs(CPU, decode))


def test_without_a_gpu_the_cpu_does_it_and_the_run_is_told_why():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    told: list[Opened] = []
    assert isinstance(device_operations(told.append), OpenCv)
    assert device_jpegs(told.append) is None
    assert [(each.model, each.engine) for each in told] == [
        ("the operations on pixels", "OpenCV"), ("the decoder of JPEGs", "libjpeg-turbo")
    ]
    assert all("torch sees no CUDA device" in (each.departure or "") for each in told)


def test_pixels_of_the_check_are_not_plain():
    assert np.ptp(made_picture()) > 200
