"""Run a network on any number of inputs in batches of one fixed shape."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import numpy as np

from models.engines.engine import OutOfDeviceMemory

logger = logging.getLogger(__name__)

Outputs = TypeVar("Outputs", bound=Sequence[object] | np.ndarray)


class PaddedBatches(Generic[Outputs]):
    """Call a network in batches of exactly `batch_size`; zeros pad the last one.

    The output of an input does not depend on the other inputs: one shape means one convolution algorithm.
    When the device runs out of memory, the batch size halves for good and the batch is run again. Several threads may
    call it at once.
    """

    def __init__(self, network: Callable[[Any], Outputs], batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._network = network
        self._lock = threading.Lock()
        self.batch_size = batch_size

    def __call__(self: PaddedBatches[np.ndarray], inputs: Any) -> np.ndarray:
        """Inputs (n, …), an array or a tensor, at least one, to outputs (n, …) float32."""
        outputs: list[np.ndarray] = []
        for output in self.each(inputs):
            outputs.append(output.copy())
        return np.concatenate(outputs) if len(outputs) > 1 else outputs[0]

    def each(self, inputs: Any) -> Iterator[Outputs]:
        """The outputs, k of them, of one batch after the other. Asking for the next one may overwrite it."""
        done = 0
        while done < len(inputs):
            size = self.batch_size
            part = inputs[done : done + size]
            try:
                output = self._network(_padded(part, size))
            except OutOfDeviceMemory:
                if size == 1:
                    raise
                self._halve(size)
            else:
                yield cast(Outputs, output[: len(part)])
                done += len(part)

    def _halve(self, size: int) -> None:
        """Halve the batch size, unless another thread has done so since."""
        with self._lock:
            if self.batch_size == size:
                self.batch_size = size // 2
                logger.warning("out of device memory: the batch size is %d from now on", self.batch_size)


def _padded(part: Any, size: int) -> Any:
    """The inputs, and zeros up to size; a tensor stays in the memory where it is."""
    if len(part) == size:
        return np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part
    shape = (size, *part.shape[1:])
    padded = np.zeros(shape, part.dtype) if isinstance(part, np.ndarray) else _zeros_beside(part, shape)
    padded[: len(part)] = part
    return padded


def _zeros_beside(tensor: Any, shape: Sequence[int]) -> Any:
    """Zeros in the memory of a tensor. Raises OutOfDeviceMemory."""
    import torch

    try:
        return tensor.new_zeros(shape)
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemory(str(error)) from None
