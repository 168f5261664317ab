from __future__ import annotations

import numpy as np
import pytest
import torch

from models.device import copied_back, set_threads, to_device, torch_device, wait_for
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


def test_a_thread_that_waits_for_a_gpu_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself CUDA keeps a CPU busy in every wait. There is no GPU here, so its calls are recorded."""
    calls: list[object] = []

    class Event:
        def __init__(self, **options: bool) -> None:
            calls.append(options)

        def record(self, stream: str) -> None:
            calls.append(f"record in {stream}")

        def synchronize(self) -> None:
            calls.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    wait_for(torch.device("cpu"))
    assert calls == []
    wait_for(torch.device("cuda:0"))
    assert calls == [{"blocking": True}, "record in the stream of cuda:0", "synchronize"]


def test_tensors_are_copied_back_as_arrays() -> None:
    numbers, flags = copied_back([torch.arange(6).view(2, 3), torch.tensor([True, False])])
    assert numbers.tolist() == [[0, 1, 2], [3, 4, 5]] and flags.tolist() == [True, False]
    assert numbers.dtype == np.int64 and flags.dtype == np.bool_
