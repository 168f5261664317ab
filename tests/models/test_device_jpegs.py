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


def refusing(*refused):
    """A decoder that raises for a whole batch if one of these files is in it."""
    def decode(contents, device):
        if not set(refused).isdisjoint(contents):
            raise RuntimeError("nvjpegDecode failed: 5")
        return planes(contents, device)

    return decode


@pytest.mark.parametrize("files", ["x", "ax", "xa", "abxcd", "axbcdxe"])
def test_a_file_that_is_refused_is_for_the_cpu_and_no_other(files):
    decode = DeviceJpegs(CPU, refusing("x"), pytest.fail)
    for _ in range(2):
        found = decode(list(files), [6] * len(files))
        assert [image is None for image in found] == [file == "x" for file in files]
        assert all(image is None or image.shape == (6, 4, 3) for image in found)


def test_when_all_files_are_refused_later_ones_are_too_and_the_reason_is_told_once():
    reasons = []
    decode = DeviceJpegs(CPU, refusing("x", "y"), reasons.append)
    assert decode(["x", "y"], [1, 1]) == [None, None]
    assert decode(["a"], [1]) == [None]
    assert reasons == ["RuntimeError: nvjpegDecode failed: 5"]


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_without_memory_for_a_batch_its_parts_are_decoded(kind):
    """torchcodec raises a RuntimeError."""
    def room_for_two(contents, device):
        if len(contents) > 2 or b"large" in contents:
            raise kind("CUDA out of memory. Tried to allocate 2 GiB")
        return planes(contents, device)

    decode = DeviceJpegs(CPU, room_for_two, pytest.fail)
    assert [image is None for image in decode([b"file"] * 4 + [b"large"], [1] * 5)] == [False] * 4 + [True]
    assert decode([b"large", b"large"], [1, 1]) == [None, None] and decode([b"file"], [1]) != [None]


def test_a_fault_of_the_device_is_raised():
    def fault(contents, device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        DeviceJpegs(CPU, fault, pytest.fail)([b"file"], [None])
