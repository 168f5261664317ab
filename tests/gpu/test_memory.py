"""Batches that do not fit the memory of a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from models.engines.engine import Runtime, open_network
from models.padded_batches import PaddedBatches
from models.store import DEFAULT_WEIGHTS_DIR, read_model
from tests.gpu.limited_job import GPU_BYTES, limit_gpu_memory

pytestmark = pytest.mark.gpu

INPUT_PX = 640
TOO_LARGE = 512      # canvases; as float32 they take 2.5 GB, and GPU_BYTES is 1.6


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    limit_gpu_memory(GPU_BYTES)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_batch_size_halves_until_the_batch_fits(little_memory: None) -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, "detector", "yolov8n")
    detect = open_network(model, Runtime("cuda", precision="float32"), [])
    canvases = np.random.default_rng(0).integers(0, 256, (3, INPUT_PX, INPUT_PX, 3), np.uint8)
    batches = PaddedBatches(detect, TOO_LARGE)
    outputs = batches(canvases)
    assert 1 <= batches.batch_size < TOO_LARGE
    expected = PaddedBatches(detect, 1)(canvases)
    assert outputs.shape == expected.shape and np.allclose(outputs, expected, rtol=1e-3, atol=0.05)
