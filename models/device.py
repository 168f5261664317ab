"""The device that networks run on: which one, how many threads, and a network's move to it."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from models.store import WeightsError

Network = TypeVar("Network", bound=nn.Module)


def torch_device(device: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises WeightsError for cuda when there is none."""
    if device not in ("auto", "cpu", "cuda"):
        raise WeightsError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise WeightsError(
            "--device cuda, but torch sees no CUDA device: check nvidia-smi and that this torch was built for CUDA "
            f"(torch.version.cuda is {torch.version.cuda}), or use --device cpu"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # TF32 keeps ten bits: the same face would differ by 1e-3 between batch sizes.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", torch.cuda.current_device())      # with the number: a thread's default is GPU 0


def set_threads(count: int) -> None:
    """Set how many threads torch computes with in this process."""
    torch.set_num_threads(count)


def to_device(network: Network, device: torch.device) -> Network:
    """Move a network to the device in place, its convolutions in channels_last.

    channels_last doubles the speed of convolutions on CPUs (10 → 23 img/s, YOLOv8n at 640, batch 8, 2 cores).
    """
    network.to(device)
    network.to(memory_format=torch.channels_last)
    return network
