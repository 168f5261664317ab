from __future__ import annotations

import pytest
import torch

from models.device import set_threads, to_device, torch_device
from models.store import WeightsError


@pytest.mark.parametrize("device", ["", "gpu", "cuda:7"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(WeightsError, match="auto, cpu or cuda"):
        torch_device(device)


def test_devices() -> None:
    assert torch_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert torch_device("auto").type == "cuda"
        assert torch_device("cuda").type == "cuda"
    else:
        assert torch_device("auto").type == "cpu"
        with pytest.raises(WeightsError, match="sees no CUDA device"):
            torch_device("cuda")


def test_threads() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        set_threads(before)


def test_convolutions_run_in_channels_last() -> None:
    network = torch.nn.Conv2d(2, 2, 3)
    assert to_device(network, torch.device("cpu")) is network
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
