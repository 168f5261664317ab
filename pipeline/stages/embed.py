"""The fifth stage: one unit vector per face; the cosine of two vectors is their similarity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.batch import FaceBatch, Pixels

EmbedModel = Callable[[Pixels], np.ndarray]
"""From crops (n, 112, 112, 3) uint8 RGB to vectors (n, dim) float32 of any length."""


class Embed:
    """Compute the embeddings of all crops, the faces of many images in one call."""

    def __init__(self, embed: EmbedModel) -> None:
        self._embed = embed

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        vectors = self._embed(batch.crops)
        norms = np.linalg.norm(vectors, axis=1)
        return batch.with_embeddings(vectors / np.maximum(norms, 1e-12)[:, None], norms)
