"""What the stages use of a GPU beside the networks: its decoder of JPEGs, and the operations on pixels there.

Each is tried on a made picture when an actor starts. What fails there or differs from the CPU's is left out, part by
part; `StageConfig.opened` is told, so that the user reads it and run.json counts it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg

from models.engines.engine import EngineError, Opened
from models.keypointer import View, views_of
from pipeline.errors import is_device_fault
from pipeline.geometry import compose, scale_shift
from pipeline.stages.align import warp
from pipeline.stages.decode import DecodeOnDevice
from pipeline.stages.operations import OpenCv, Operations

PICTURE_WH = (400, 320)
CANVASES_PX = (160, 320)      # the picture is averaged to fit into one, and interpolated for the other
BOXES = np.array([[30, 40, 130, 170], [-20, 230, 60, 330], [90, 60, 290, 250]], np.float32)      # the last chip shrinks
VIEWS, VIEW_PX = (View(0.75), View(0.65, mirrored=True)), 112      # some chips shrink to it, others grow
MAX_DIFFERENCE = 4.0          # mean, of 255; measured: up to 0.1 for the operations, 0.6 for the decoder

Told = Callable[[Opened], object] | None


def device_operations(told: Told) -> Operations:
    """The operations on the GPU of this process, or those of OpenCV where they fail."""
    try:
        from models.device import torch_device
        from models.device_pixels import DevicePixels

        operations = DevicePixels(torch_device("cuda"))
        check_operations(operations)
    except Exception as error:
        _raise_device_fault(error)
        _tell(told, "the operations on pixels", "OpenCV", _reason(error))
        return OpenCv()
    _tell(told, "the operations on pixels", "torch")
    return operations


def device_jpegs(told: Told) -> DecodeOnDevice | None:
    """The JPEG decoder of the GPU of this process; None where there is none, or it fails."""
    def given_up(reason: str) -> None:
        _tell(told, "the decoder of JPEGs", "libjpeg-turbo", reason)

    try:
        from models.device import torch_device
        from models.device_jpegs import DeviceJpegs, torchcodec_decoder

        decoder = DeviceJpegs(torch_device("cuda"), torchcodec_decoder(), given_up)
        check_jpegs(decoder)
    except Exception as error:
        _raise_device_fault(error)
        _tell(told, "the decoder of JPEGs", "libjpeg-turbo", _reason(error))
        return None
    _tell(told, "the decoder of JPEGs", "nvJPEG")
    return decoder


def check_operations(operations: Any) -> None:
    """Raises EngineError where operations give other pixels than OpenCV's. operations: of `models.device_pixels`."""
    picture, opencv = made_picture(), OpenCv()
    images = operations.load([picture])
    for side_px in CANVASES_PX:
        canvases, _ = operations.letterbox(images, side_px)
        _compare("letterbox", canvases.cpu().numpy(), opencv.letterbox([picture], side_px)[0])
    chips, _ = operations.cut_chips(images, [BOXES])
    expected, _ = opencv.cut_chips([picture], [BOXES])
    for chip, other in zip(chips, expected, strict=True):
        _compare("chips", chip, other)
    _compare("eye inputs", chips.views(VIEWS, VIEW_PX)[0].cpu().numpy(), views_of(tuple(expected), VIEWS, VIEW_PX)[0])
    chip_to_crop = compose(scale_shift((0.6, 0.6), (3.5, 4.0)), np.array([[0.9, 0.2, 5.0], [-0.2, 0.9, 7.0]]))
    crops, _ = chips.aligned(np.stack([chip_to_crop] * len(BOXES)))
    _compare("crops", crops.cpu().numpy(), np.stack([warp(chip, chip_to_crop) for chip in expected]))


def check_jpegs(decoder: DecodeOnDevice) -> None:
    """Raises EngineError where a GPU's decoder gives other pixels than libjpeg-turbo."""
    content = cv2.imencode(".jpg", made_picture()[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    decoded = decoder([content, content], [1, 6])
    expected = simplejpeg.decode_jpeg(content, "RGB")
    for image, other in zip(decoded, (expected, np.rot90(expected, -1)), strict=True):
        if image is None:
            raise EngineError("it decoded nothing")
        _compare("pixels", image.cpu().numpy(), other)


def made_picture() -> np.ndarray:
    """A soft picture in colours, (240, 320, 3) uint8, the same on every machine."""
    width, height = PICTURE_WH
    y, x = np.mgrid[:height, :width] / 40.0
    waves = [np.sin(x + 0.5 * y), np.cos(0.7 * x - y), np.sin(x * y / 6)]
    return (127 + 110 * np.stack(waves, axis=2)).astype(np.uint8)


def _compare(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    if found.shape != expected.shape:
        raise EngineError(f"{what}: shape {found.shape}, the CPU gives {expected.shape}")
    difference = float(np.abs(found.astype(np.int16) - expected).mean())
    if not difference <= MAX_DIFFERENCE:
        raise EngineError(f"{what} differ from the CPU's by {difference:.1f} of 255, {MAX_DIFFERENCE} at most")


def _raise_device_fault(error: Exception) -> None:
    if is_device_fault(error):
        raise error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _tell(told: Told, what: str, by: str, departure: str | None = None) -> None:
    if told:
        told(Opened(what, by, "uint8", departure=departure))
