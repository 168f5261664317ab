"""How far groups agree with the people that faces are known to be of: BCubed and pairwise figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Agreement:
    """Precision and recall, from 0 to 1.

    bcubed_*: the mean over faces of the share of its group that is its person, and of its person that is in its group
    (Bagga and Baldwin, 1998). pairwise_*: of the pairs in one group the share that is one person, and of the pairs of
    one person the share that is in one group; 1 without any pair.
    """

    bcubed_precision: float
    bcubed_recall: float
    pairwise_precision: float
    pairwise_recall: float

    @property
    def bcubed_f(self) -> float:
        """The harmonic mean of both."""
        return _harmonic(self.bcubed_precision, self.bcubed_recall)

    @property
    def pairwise_f(self) -> float:
        """The harmonic mean of both."""
        return _harmonic(self.pairwise_precision, self.pairwise_recall)

    def words(self) -> str:
        """For a line of output."""
        return (
            f"BCubed F {self.bcubed_f:.4f} (precision {self.bcubed_precision:.4f}, recall {self.bcubed_recall:.4f}), "
            f"pairwise F {self.pairwise_f:.4f} (precision {self.pairwise_precision:.4f}, "
            f"recall {self.pairwise_recall:.4f})"
        )


def agreement(groups: np.ndarray, people: np.ndarray) -> Agreement:
    """How far the groups of faces, (n,), agree with their people, (n,). Any numbers or texts."""
    if not len(groups):
        return Agreement(1.0, 1.0, 1.0, 1.0)
    group, group_sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    person, person_sizes = np.unique(people, return_inverse=True, return_counts=True)[1:]
    both, counts = np.unique(group.astype(np.int64) << 32 | person, return_counts=True)
    squared = counts.astype(np.float64) ** 2
    pairs, in_group, of_person = (_pairs(sizes) for sizes in (counts, group_sizes, person_sizes))
    return Agreement(
        float((squared / group_sizes[both >> 32]).sum() / len(groups)),
        float((squared / person_sizes[both & 0xFFFFFFFF]).sum() / len(groups)),
        pairs / in_group if in_group else 1.0, pairs / of_person if of_person else 1.0,
    )


def _pairs(sizes: np.ndarray) -> float:
    return float((sizes.astype(np.float64) * (sizes - 1) / 2).sum())


def _harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other else 0.0
