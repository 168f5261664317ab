"""Run a network on any number of inputs in batches of one fixed shape."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

logger = logging.getLogger(__name__)

ModelFn = Callable[[torch.Tensor], torch.Tensor]
"""From a batch (b, …) on the CPU, of the inputs' dtype, to a tensor (b, …) on any device."""


class PaddedBatches:
    """Call a network in batches of exactly `batch_size`; zeros pad the last one.

    The output of an input does not depend on the other inputs: one shape means one convolution algorithm.
    When a CUDA device runs out of memory, the batch size halves for good and the batch is run again.
    """

    def __init__(self, model_fn: ModelFn, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._model_fn = model_fn
        self.batch_size = batch_size

    def __call__(self, inputs: np.ndarray) -> torch.Tensor:
        """Inputs (n, …) to outputs (n, …) float32 on the CPU. Without inputs it runs one batch to learn the shape."""
        outputs: list[torch.Tensor] = []
        done = 0
        while done < len(inputs) or not outputs:
            part = inputs[done : done + self.batch_size]
            try:
                outputs.append(self._run_padded(part))
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                logger.warning("out of device memory: the batch size is %d from now on", self.batch_size)
                torch.cuda.empty_cache()
            else:
                done += len(part)
        return torch.cat(outputs)

    @torch.inference_mode()
    def _run_padded(self, part: np.ndarray) -> torch.Tensor:
        padded = np.zeros((self.batch_size, *part.shape[1:]), part.dtype)
        padded[: len(part)] = part
        return self._model_fn(torch.from_numpy(padded))[: len(part)].float().cpu()
