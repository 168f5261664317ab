"""Run a network over any number of inputs in batches of one fixed shape."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from models.store import WeightsError

logger = logging.getLogger(__name__)

ModelFn = Callable[[torch.Tensor], torch.Tensor]
"""A batch on the CPU, (b, …) of the inputs' dtype, to a tensor (b, …) on any device."""


class PaddedBatches:
    """Call a network in batches of exactly `batch_size`, the last one padded with zeros.

    One shape means one convolution algorithm, so an input's output does not depend on how many others came with it.
    When a CUDA device runs out of memory the size halves, stays halved, and the batch is done again.
    """

    def __init__(self, model_fn: ModelFn, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._model_fn = model_fn
        self.batch_size = batch_size

    def __call__(self, inputs: np.ndarray) -> torch.Tensor:
        """Outputs (n, …) float32 on the CPU for inputs (n, …); for no inputs (0, …), at the price of one batch."""
        outputs: list[torch.Tensor] = []
        done = 0
        while done < len(inputs) or not outputs:
            part = inputs[done : done + self.batch_size]
            padded = np.zeros((self.batch_size, *inputs.shape[1:]), inputs.dtype)
            padded[: len(part)] = part
            try:
                with torch.inference_mode():
                    outputs.append(self._model_fn(torch.from_numpy(padded))[: len(part)].float().cpu())
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                logger.warning("out of device memory: going on with batches of %d", self.batch_size)
                torch.cuda.empty_cache()
                continue
            done += len(part)
        return torch.cat(outputs)


def torch_device(device: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" stands for. Raises WeightsError when CUDA is asked for and missing."""
    if device not in ("auto", "cpu", "cuda"):
        raise WeightsError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise WeightsError(
            "device cuda was asked for, but torch sees no CUDA device: check nvidia-smi and that this torch was built "
            f"for CUDA (torch.version.cuda is {torch.version.cuda}), or use --device cpu"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # TF32's ten bits would let the same face differ by 1e-3 between batch sizes.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", torch.cuda.current_device())      # threads would take the first GPU for theirs


def set_threads(count: int) -> None:
    """How many threads torch computes with in this process."""
    torch.set_num_threads(count)
