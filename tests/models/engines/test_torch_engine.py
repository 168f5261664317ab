"""Networks run by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.engines.engine import OutOfDeviceMemory, Runtime
from models.engines.torch_engine import TorchNetwork, module_of
from models.store import DEFAULT_WEIGHTS_DIR, read_model


class Remember(nn.Module):
    """Returns the first column of its input times a weight, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.convolution = nn.Conv2d(3, 1, 1)
        self.seen: list[torch.Tensor] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels)
        return pixels[:, :, 0, 0] * self.weight + 0 * self.convolution(pixels).mean()


def batch(*values: int) -> np.ndarray:
    """Canvases of one pixel colour each: red v, green 51, blue 255."""
    made = np.zeros((len(values), 4, 4, 3), np.uint8)
    made[..., 0] = np.array(values)[:, None, None]
    made[..., 1], made[..., 2] = 51, 255
    made.flags.writeable = False
    return made


def test_the_network_sees_normalised_rgb_and_gives_numpy() -> None:
    module = Remember()
    output = TorchNetwork(module, Runtime(), mean=[0, 0, 0], std=[255, 255, 255])(batch(0, 51))
    assert tuple(module.seen[0].shape) == (2, 3, 4, 4)
    assert output.dtype == np.float32
    assert output == pytest.approx(np.array([[0, 0.2, 1], [0.2, 0.2, 1]]))
    assert TorchNetwork(module, Runtime(), mean=[127.5] * 3, std=[127.5] * 3)(batch(255)) == pytest.approx(
        np.array([[1, -0.6, 1]])
    )
    assert not module.training


def test_bfloat16_computes_the_convolutions_in_bfloat16_and_gives_float32() -> None:
    class Convolve(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 1, 1, bias=False)
            nn.init.constant_(self.convolution.weight, 1.0)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.convolution(pixels).mean((1, 2, 3))

    exact, rounded = (
        TorchNetwork(Convolve(), Runtime(precision=precision), mean=[0] * 3, std=[1] * 3)(batch(1))
        for precision in ("float32", "bfloat16")
    )
    assert exact.tolist() == [307.0]            # 1 + 51 + 255
    assert rounded.dtype == np.float32 and rounded.tolist() == [308.0]     # bfloat16 has 8 bits: steps of 2 above 256


def test_no_memory_on_the_device_is_an_error_of_its_own() -> None:
    class TooLarge(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfDeviceMemory, match="CUDA out of memory"):
        TorchNetwork(TooLarge(), Runtime(), mean=[0] * 3, std=[1] * 3)(batch(1))


def test_the_threads_are_those_of_the_runtime() -> None:
    before = torch.get_num_threads()
    try:
        TorchNetwork(Remember(), Runtime(threads=1), mean=[0] * 3, std=[1] * 3)
        assert torch.get_num_threads() == 1
        TorchNetwork(Remember(), Runtime(), mean=[0] * 3, std=[1] * 3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("role", "name", "side", "shape"),
    [
        ("detector", "yolov8n", 64, (2, 65, 84)), ("keypointer", "resnet18", 112, (2, 12, 2)),
        ("embedder", "edgenext", 112, (2, 512)),
    ],
)
def test_the_shipped_models_give_what_their_callers_take(role, name, side, shape) -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, role, name)
    preprocessing = model.card.preprocessing
    network = TorchNetwork(module_of(model), Runtime(), mean=preprocessing["mean"], std=preprocessing["std"])
    output = network(np.zeros((2, side, side, 3), np.uint8))
    assert output.shape == shape and np.isfinite(output).all()
