"""What the stages use of a GPU beside the networks."""

from __future__ import annotations

import pytest
import torch

from jobs.extract.device import check_jpegs, check_operations, device_jpegs, device_operations
from models.device_jpegs import DeviceJpegs
from models.device_pixels import DevicePixels
from models.engines.engine import Opened

pytestmark = pytest.mark.gpu


def test_the_operations_and_the_decoder_pass_their_checks() -> None:
    told: list[Opened] = []
    operations, decoder = device_operations(told.append), device_jpegs(told.append)
    assert isinstance(operations, DevicePixels) and isinstance(decoder, DeviceJpegs)
    check_operations(operations)
    check_jpegs(decoder)
    assert [(each.engine, each.departure) for each in told] == [("torch", None), ("nvJPEG", None)]


def test_images_of_another_stream_are_not_overwritten_while_they_are_copied() -> None:
    """The memory of an image that was freed goes to the next one of its stream."""
    operations, stream = DevicePixels(torch.device("cuda", 0)), torch.cuda.Stream()
    for value in range(50):
        with torch.cuda.stream(stream):
            images = [torch.full((700, 900, 3), value, dtype=torch.uint8, device="cuda") for _ in range(8)]
            stream.synchronize()
        loaded = operations.load(images)
        del images
        with torch.cuda.stream(stream):
            other = [torch.full((700, 900, 3), 255, dtype=torch.uint8, device="cuda") for _ in range(8)]
        assert all((image == value).all() for image in loaded)
        del other
