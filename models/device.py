"""The device that networks run on: which one, how many threads, a network's move to it, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

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


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what this thread has queued; nothing on a CPU. The thread sleeps meanwhile.

    With all other waits of CUDA a thread keeps one CPU busy, which the decoders of images need.
    """
    if device.type == "cuda":
        library: Any = torch.cuda
        done = library.Event(blocking=True)      # torch.Event would ignore it
        done.record(torch.cuda.current_stream(device))
        done.synchronize()


def copied_back(parts: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    """Tensors of one device as arrays. Those of a GPU are in pinned memory, after one wait for all."""
    device = parts[0].device
    if device.type == "cpu":
        return tuple(part.numpy() for part in parts)
    pinned = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in parts]
    for host, part in zip(pinned, parts, strict=True):
        host.copy_(part, non_blocking=True)
    wait_for(device)
    return tuple(host.numpy() for host in pinned)
