from __future__ import annotations

import numpy as np
import pytest
import torch

from models.engines.engine import OutOfDeviceMemory
from models.padded_batches import PaddedBatches


class RowSums:
    """A network that sums each row and records its batches. More than `room` rows are out of memory."""

    def __init__(self, room: int = 100) -> None:
        self.batches: list[list[list[int]]] = []
        self._room = room

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        if len(batch) > self._room:
            raise OutOfDeviceMemory("no room")
        self.batches.append(batch.tolist())
        return batch.astype(np.float32).sum(axis=1, keepdims=True)


def rows(count: int) -> np.ndarray:
    inputs = np.arange(1, 2 * count + 1, dtype=np.uint8).reshape(count, 2)
    inputs.flags.writeable = False
    return inputs


@pytest.mark.parametrize(
    ("count", "outputs", "batches"),
    [
        (1, [3], [[[1, 2], [0, 0]]]),
        (2, [3, 7], [[[1, 2], [3, 4]]]),
        (3, [3, 7, 11], [[[1, 2], [3, 4]], [[5, 6], [0, 0]]]),
    ],
)
def test_every_batch_has_the_same_shape(count: int, outputs, batches) -> None:
    model = RowSums()
    result = PaddedBatches(model, 2)(rows(count))
    assert result.shape == (count, 1)
    assert result.flatten().tolist() == outputs
    assert model.batches == batches


def test_out_of_memory_halves_the_batch_size_for_good() -> None:
    model = RowSums(room=2)
    run = PaddedBatches(model, 8)
    assert run(rows(5)).flatten().tolist() == [3, 7, 11, 15, 19]
    assert [len(batch) for batch in model.batches] == [2, 2, 2]
    assert run.batch_size == 2
    run(rows(3))
    assert [len(batch) for batch in model.batches] == [2] * 5


class OnSmallDevice(torch.Tensor):
    """A tensor on a device that has room for two rows more."""

    def new_zeros(self, shape, **options) -> torch.Tensor:
        if shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(shape)


def test_padding_that_does_not_fit_the_device_halves_the_batch_size_too() -> None:
    def sums(batch: torch.Tensor) -> np.ndarray:
        return batch.sum(1, keepdim=True).numpy()

    run = PaddedBatches(sums, 8)
    inputs = torch.from_numpy(rows(3).astype(np.float32)).as_subclass(OnSmallDevice)
    assert run(inputs).flatten().tolist() == [3, 7, 11]
    assert run.batch_size == 2


def test_out_of_memory_with_one_input_is_an_error() -> None:
    with pytest.raises(OutOfDeviceMemory):
        PaddedBatches(RowSums(room=0), 4)(rows(1))


def test_a_network_may_overwrite_its_output() -> None:
    output = np.zeros((2, 1), np.float32)

    def first_column(batch: np.ndarray) -> np.ndarray:
        output[:, 0] = batch[:, 0]
        return output

    assert PaddedBatches(first_column, 2)(rows(5)).flatten().tolist() == [1, 3, 5, 7, 9]


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        PaddedBatches(RowSums(), 0)
