"""JPEGs decoded by a device: upright, and left to the CPU when the device cannot."""

import numpy as np
import pytest
import torch

from models.device_jpegs import DeviceJpegs
from pipeline.stages.image import upright

CPU = torch.device("cpu")
STORED = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def planes(contents, device):
    """A decoder that gives one picture for all files, as nvJPEG does: plane by plane."""
    return [torch.from_numpy(STORED).permute(2, 0, 1) for _ in contents]


@pytest.mark.parametrize("orientations", [[], [None], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_pixels_are_upright(orientations):
    found = DeviceJpegs(CPU, planes)([b"file"] * len(orientations), orientations)
    assert len(found) == len(orientations)
    for image, orientation in zip(found, orientations, strict=True):
        np.testing.assert_array_equal(image.numpy(), upright(STORED, orientation))


def test_after_an_error_all_files_are_for_the_cpu_and_the_reason_is_told_once():
    reasons = []

    def broken(contents, device):
        raise RuntimeError("nvjpegDecode failed: 5")

    decode = DeviceJpegs(CPU, broken, reasons.append)
    assert decode([b"file"], [None]) is None
    assert decode([b"file"], [None]) is None
    assert reasons == ["RuntimeError: nvjpegDecode failed: 5"]


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_without_memory_one_batch_is_for_the_cpu(kind):
    """torchcodec raises a RuntimeError."""
    answers = iter([kind("CUDA out of memory. Tried to allocate 2 GiB"), None])

    def short_of_memory(contents, device):
        if error := next(answers):
            raise error
        return planes(contents, device)

    decode = DeviceJpegs(CPU, short_of_memory, pytest.fail)
    assert decode([b"file"], [None]) is None
    assert len(decode([b"file"], [None])) == 1


def test_a_fault_of_the_device_is_raised():
    def fault(contents, device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        DeviceJpegs(CPU, fault, pytest.fail)([b"file"], [None])
