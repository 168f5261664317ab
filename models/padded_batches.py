"""Run a network on any number of inputs in batches of one fixed shape."""

from __future__ import annotations

import logging

import numpy as np

from models.engines.engine import Network, OutOfDeviceMemory

logger = logging.getLogger(__name__)


class PaddedBatches:
    """Call a network in batches of exactly `batch_size`; zeros pad the last one.

    The output of an input does not depend on the other inputs: one shape means one convolution algorithm.
    When the device runs out of memory, the batch size halves for good and the batch is run again.
    """

    def __init__(self, network: Network, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._network = network
        self.batch_size = batch_size

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Inputs (n, …) to outputs (n, …) float32. Without inputs it runs one batch to learn the shape."""
        outputs: list[np.ndarray] = []
        done = 0
        while done < len(inputs) or not outputs:
            part = inputs[done : done + self.batch_size]
            try:
                outputs.append(self._run_padded(part))
            except OutOfDeviceMemory:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                logger.warning("out of device memory: the batch size is %d from now on", self.batch_size)
            else:
                done += len(part)
        return np.concatenate(outputs)

    def _run_padded(self, part: np.ndarray) -> np.ndarray:
        padded = np.zeros((self.batch_size, *part.shape[1:]), part.dtype)
        padded[: len(part)] = part
        return self._network(padded)[: len(part)].copy()      # a network may overwrite its output at the next call
