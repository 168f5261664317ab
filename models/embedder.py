"""The embedder: from an aligned face to a vector; the cosine of two vectors is the likeness of the faces."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.engines.engine import Network, Runtime, open_network
from models.padded_batches import PaddedBatches
from models.store import EMBEDDING_DIM, StoredModel
from pipeline.geometry import CROP_PX


class Embedder:
    """Aligned crops to vectors, in batches of one fixed shape.

    network: (b, 112, 112, 3) uint8 RGB to (b, 512). flip_average: add the vector of the mirrored crop; costs twice the
    time.
    """

    def __init__(self, network: Network, *, batch_size: int, flip_average: bool) -> None:
        self._flip_average = flip_average
        self._batches = PaddedBatches(network, batch_size)

    def __call__(self, crops: Any) -> np.ndarray:
        """crops: (n, 112, 112, 3) uint8 RGB, an array, or a tensor of the network's device.

        Returns (n, 512) float32, not normalised.
        """
        if crops.shape[1:] != (CROP_PX, CROP_PX, 3):
            raise ValueError(f"crops must be (n, {CROP_PX}, {CROP_PX}, 3), got {crops.shape}")
        if len(crops) == 0:
            return np.zeros((0, EMBEDDING_DIM), np.float32)
        vectors = self._batches(crops)
        return vectors + self._batches(_mirrored(crops)) if self._flip_average else vectors


def _mirrored(crops: Any) -> Any:
    """torch has no negative steps."""
    return crops[:, :, ::-1] if isinstance(crops, np.ndarray) else crops.flip(2)


def load_embedder(model: StoredModel, runtime: Runtime, *, batch_size: int) -> Embedder:
    """The embedder ready to call. Raises WeightsError."""
    return Embedder(
        open_network(model, runtime, [(batch_size, CROP_PX, CROP_PX, 3)]), batch_size=batch_size,
        flip_average=bool(model.card.preprocessing.get("flip_average", False)),
    )
