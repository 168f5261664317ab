"""How well the networks do: figures from predictions and labels, numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pair_cosines(vectors: np.ndarray, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs of unit vectors (n, dim), and whether both are of one person; (n·(n−1)/2,) each.

    people: (n,) any labels that compare equal for one person.
    """
    first, second = np.triu_indices(len(vectors), 1)
    return (vectors @ vectors.T)[first, second], people[first] == people[second]


def tpr_at_fpr(cosines: np.ndarray, same: np.ndarray, fprs: Sequence[float]) -> dict[float, tuple[float, float]]:
    """True positive rate and threshold at each false positive rate: `{fpr: (tpr, threshold)}`.

    The threshold is the cosine above which the given share of negatives lies; the rate is the share of positives
    above it. cosines: (pairs,); same: (pairs,) bool. Raises ValueError without positives or without negatives.
    """
    positives, negatives = cosines[same], np.sort(cosines[~same])
    if not len(positives) or not len(negatives):
        raise ValueError(f"need pairs of both kinds, got {len(positives)} same and {len(negatives)} different")
    rates = {}
    for fpr in fprs:
        threshold = float(negatives[len(negatives) - 1 - min(int(fpr * len(negatives)), len(negatives) - 1)])
        rates[fpr] = (float((positives > threshold).mean()), threshold)
    return rates
