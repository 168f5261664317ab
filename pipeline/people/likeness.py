"""How alike faces are: cosines, and the threshold from which two faces count as one person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError

DEFAULT_FPR = 0.001


class LikenessError(UserError):
    """These faces cannot be compared, or not at this rate. The message says why."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """The cosine from which two faces count as one person. fpr: the share of pairs of two people that reach it."""

    cosine: float
    fpr: float


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cosine of each vector of `first` (n, dim) to each of `second` (m, dim); (n, m) float32.

    A zero vector has the cosine 0 to all, itself too. Vectors need not have the length 1.
    """
    found: np.ndarray = unit(first) @ unit(second).T
    return np.clip(found, -1.0, 1.0, out=found)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors (n, dim) with length 1, float32; zero vectors stay."""
    vectors = vectors.astype(np.float32)           # float16 would overflow in the sum of squares
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    vectors /= np.where(lengths > 0, lengths, 1)[:, None]
    return vectors


def threshold_at(thresholds: Mapping[str, float], fpr: float, embedder: str) -> Threshold:
    """The embedder's threshold at a false positive rate.

    thresholds: from rate to cosine, as cards have them. Raises LikenessError for a rate that was not measured.
    """
    found = {float(rate): cosine for rate, cosine in thresholds.items()}
    if not found:
        raise LikenessError(
            f"the embedder {embedder} has no threshold: `python -m jobs.evaluate identification … --update-card` "
            "measures it"
        )
    if fpr not in found:
        known = ", ".join(f"{rate:g}" for rate in sorted(found))
        raise LikenessError(f"--fpr {fpr:g}: the embedder {embedder} has thresholds for {known} only; choose one")
    return Threshold(found[fpr], fpr)
