"""Group vectors by average linkage along the pairs of neighbours, with a threshold that falls with the groups' sizes.

Two groups are merged if the mean of all cosines between them reaches a threshold. The mean is the dot product of the
groups' mean vectors, so no matrix is needed. Each round merges all pairs of groups that like each other best
(reciprocal nearest neighbours; Murtagh, 1983): on real faces the same groups as by merging the best pair each time.

Cosines of two strangers spread, and a mean of many spreads less: two single faces need much more than two large groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.people.likeness import DEFAULT_FPR, threshold_at
from pipeline.people.neighbours import merge_pairs

# Best mean F on people of `identities/train`, 400 to 18,000 faces at a time, 2026-11. 1.58 × 0.283 is 0.447.
PAIR_BY_LARGE = 1.58  # the threshold of two single faces by that of two large groups
_DECAY = 0.7          # of the threshold with the product of the sizes; 0.6 to 0.8 measure alike
_BLOCK = 32_768       # pairs whose vectors are in memory at once: 134 MB

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class LinkThreshold:
    """The mean cosine from which two groups are one. pair: of two single faces. large: of two large groups."""

    pair: float
    large: float

    @classmethod
    def of_pair(cls, cosine: float) -> LinkThreshold:
        """From that of two single faces."""
        return cls(cosine, cosine / PAIR_BY_LARGE)

    @classmethod
    def of_embedder(cls, thresholds: Mapping[str, float], embedder: str) -> LinkThreshold:
        """By its cosines at false positive rates, as cards have them. Raises LikenessError if it has none."""
        large = threshold_at(thresholds, DEFAULT_FPR, embedder).cosine
        return cls(large * PAIR_BY_LARGE, large)

    def __call__(self, sizes: np.ndarray, other_sizes: np.ndarray) -> np.ndarray:
        """For groups of these sizes."""
        spread = (sizes.astype(np.float64) * other_sizes) ** -_DECAY
        cosines: np.ndarray = self.large + (self.pair - self.large) * spread
        return cosines


@dataclass(frozen=True, slots=True)
class Apart:
    """Which members may not be in one group: two with the same number in `shared`, two different ones in `names`.

    shared: (n,) the photo of a member, or −1. names: (n,) the person that it is known to be, or −1.
    """

    shared: np.ndarray
    names: np.ndarray

    def between(self, groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Whether pairs of groups, no group in two, may not be merged, (m,). groups: (n,) of each member."""
        pair = np.full(len(groups), -1, np.int64)
        pair[first] = pair[second] = np.arange(len(first))
        of_member = pair[groups]
        found: np.ndarray = _clash(of_member, self.shared, len(first), same=True)
        found |= _clash(of_member, self.names, len(first), same=False)
        return found


def _clash(pair: np.ndarray, values: np.ndarray, count: int, *, same: bool) -> np.ndarray:
    """For each of `count` pairs whether two of its members have the same value, or two different ones.

    pair: (n,) of each member, −1 for none. values: (n,), −1 for none.
    """
    known = np.flatnonzero((pair >= 0) & (values >= 0))
    keys = np.sort(pair[known] << 32 | values[known])
    owners = keys if same else np.unique(keys) >> 32
    clashing = owners[1:][owners[1:] == owners[:-1]]
    found = np.zeros(count, bool)
    found[clashing >> 32 if same else clashing] = True
    return found


@dataclass(slots=True)
class Groups:
    """Groups that are being merged. The number of a group is that of one of its members.

    of: (n,) the group of each member. means: (n, dim) the mean vector of each group, written in place. sizes: (n,).
    Rows of numbers that are no group any more have no meaning.
    """

    of: np.ndarray
    means: np.ndarray
    sizes: np.ndarray

    @classmethod
    def single(cls, vectors: np.ndarray) -> Groups:
        """Every vector is a group. vectors: writable."""
        return cls(np.arange(len(vectors), dtype=np.int32), vectors, np.ones(len(vectors), np.int32))

    def alive(self) -> np.ndarray:
        """The numbers of the groups, sorted."""
        return np.unique(self.of)

    def merge(self, into: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """Merge pairs of groups, no group in two. Returns for each number the group that it is in now, (n,)."""
        for start in range(0, len(into), _BLOCK):
            kept, lost = into[start : start + _BLOCK], gone[start : start + _BLOCK]
            weight = (self.sizes[lost] / (self.sizes[kept] + self.sizes[lost])).astype(np.float32)[:, None]
            means = self.means[kept].astype(np.float32) * (1 - weight) + self.means[lost].astype(np.float32) * weight
            self.means[kept] = means
        self.sizes[into] += self.sizes[gone]
        moved = np.arange(len(self.sizes), dtype=np.int32)
        moved[gone] = into
        self.of = moved[self.of]
        return moved

    def mean_cosines(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The mean of all cosines between two groups, for pairs of them, (m,) float32."""
        found = np.empty(len(first), np.float32)
        for start in range(0, len(first), _BLOCK):
            some = slice(start, start + _BLOCK)
            a, b = self.means[first[some]].astype(np.float32), self.means[second[some]].astype(np.float32)
            found[some] = np.einsum("nd,nd->n", a, b)
        return found


def link(
    groups: Groups, pairs: Pairs, threshold: Callable[[np.ndarray, np.ndarray], np.ndarray], apart: Apart | None
) -> int:
    """Merge groups along pairs until none reaches the threshold; returns how many were merged away.

    pairs: of groups, with the mean cosine between the two.
    """
    first, second, cosines = pairs
    merged = 0
    while True:
        margins = cosines - threshold(groups.sizes[first], groups.sizes[second])
        best = _mutual_best(first, second, margins, len(groups.sizes))
        if not len(best):
            return merged
        forbidden = np.zeros(len(first), bool)
        if apart:
            forbidden[best] = apart.between(groups.of, first[best], second[best])
            best = best[~forbidden[best]]
        moved = groups.merge(first[best], second[best])
        merged += len(best)
        touched = np.zeros(len(moved), bool)
        touched[first[best]] = True
        first, second, cosines = _contract(
            (moved[first[~forbidden]], moved[second[~forbidden]], cosines[~forbidden]), touched
        )
        stale = np.flatnonzero(touched[first] | touched[second])
        cosines[stale] = groups.mean_cosines(first[stale], second[stale])


def _mutual_best(first: np.ndarray, second: np.ndarray, margins: np.ndarray, count: int) -> np.ndarray:
    """The pairs above 0 in which each is the other's best. Where margins are equal, the first pair is the better."""
    above = np.flatnonzero(margins > 0)
    above = above[np.argsort(-margins[above], kind="stable")[::-1]]
    best = np.full(count, -1, np.int64)
    ends = np.stack([first[above], second[above]], axis=1).ravel()
    best[ends] = np.repeat(above, 2)                      # the last one written stays
    mutual: np.ndarray = above[(best[first[above]] == above) & (best[second[above]] == above)]
    return np.sort(mutual)


def _contract(pairs: Pairs, touched: np.ndarray) -> Pairs:
    """The pairs after groups were merged, each once. touched: of each number, whether another was merged into it."""
    first, second, cosines = pairs
    again = (touched[first] | touched[second]) & (first != second)
    same = ~(touched[first] | touched[second])
    low, high = np.minimum(first[again], second[again]), np.maximum(first[again], second[again])
    new = merge_pairs(low, high, cosines[again])
    one, other, both = (np.concatenate([old[same], changed]) for old, changed in zip(pairs, new, strict=True))
    return one, other, both
