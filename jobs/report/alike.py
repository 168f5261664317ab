"""The most alike faces among those of a page, found once so that the page has lists in place of vectors.

A list of eight faces is 24 bytes, a vector in int8 is 512.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.people.likeness import unit

LIST_LENGTH = 8
_BLOCK_COSINES = 16 << 20       # 64 MB
NOBODY = 0xFFFF


@dataclass(frozen=True, slots=True)
class Alike:
    """For every face the most alike ones of other photos, best first.

    faces: their numbers (n, k) uint16; NOBODY where there are fewer. cosines: (n, k) float32.
    """

    faces: np.ndarray
    cosines: np.ndarray

    def best(self, face: int) -> tuple[int, float] | None:
        """The most alike face of another photo, and the cosine."""
        if not self.faces.shape[1] or self.faces[face, 0] == NOBODY:
            return None
        return int(self.faces[face, 0]), float(self.cosines[face, 0])


def most_alike(vectors: np.ndarray, photo_of: np.ndarray, k: int = LIST_LENGTH) -> Alike:
    """The k most alike faces of each face (n, dim). photo_of: the number of each face's photo, (n,)."""
    n = len(vectors)
    k = min(k, max(0, n - 1))
    faces, cosines = np.full((n, k), NOBODY, np.uint16), np.zeros((n, k), np.float32)
    if not k:
        return Alike(faces, cosines)
    vectors = unit(np.nan_to_num(vectors))
    rows = max(1, _BLOCK_COSINES // n)
    for start in range(0, n, rows):
        block = vectors[start : start + rows] @ vectors.T
        block[photo_of[start : start + rows, None] == photo_of] = -np.inf
        best = np.argpartition(-block, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(block, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        values = np.take_along_axis(block, best, axis=1)
        faces[start : start + rows] = np.where(np.isfinite(values), best, NOBODY)
        cosines[start : start + rows] = np.where(np.isfinite(values), values, 0)
    return Alike(faces, np.clip(cosines, -1, 1))
