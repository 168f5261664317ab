"""The most alike vectors of each vector: by all cosines, or for many vectors by those of the lists nearby.

Lists as in faiss's IndexIVFFlat, but a whole list is compared with those around it in one product. All cosines in NumPy
take a quarter to two thirds of the time of faiss.knn (`jobs.bench people --what groups`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

EXACT_UP_TO = 200_000         # vectors, each compared with each; for more products, lists
_ROWS, _COLUMNS = 2048, 16_384      # of a product: 134 MB
_FIRST_COLUMNS = 1024         # after so many a row knows what it has to beat
_LISTS = 4                    # times the root of the number of vectors
_PROBED = 48                  # lists that a list is compared with
_SAMPLED = 32                 # vectors a list, by which the lists are placed
_ROUNDS = 5                   # of k-means

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The k most alike of each vector, best first: their numbers, (n, k) int32, −1 for none, and their cosines."""

    numbers: np.ndarray
    cosines: np.ndarray

    @classmethod
    def none(cls, count: int, k: int, floor: float) -> Neighbours:
        """Nothing found yet above a cosine."""
        return cls(np.full((count, k), -1, np.int32), np.full((count, k), floor, np.float32))

    def add(self, cosines: np.ndarray, numbers: np.ndarray) -> None:
        """Keep the best of these, (n, m), and of those before. numbers: (m,) of the columns."""
        found = np.flatnonzero(cosines > self.cosines[:, -1:])        # five times as fast as nonzero of two dimensions
        rows, columns = np.divmod(found, cosines.shape[1] or 1)
        if not len(rows):
            return
        values = cosines[rows, columns]
        order = np.lexsort((-values, rows))
        rows, columns, values = rows[order], columns[order], values[order]
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
        k = self.numbers.shape[1]
        kept = rank < k
        new = Neighbours.none(len(self.numbers), k, -np.inf)
        new.numbers[rows[kept], rank[kept]] = numbers[columns[kept]]
        new.cosines[rows[kept], rank[kept]] = values[kept]
        changed = np.unique(rows)
        both = np.concatenate([self.cosines[changed], new.cosines[changed]], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        self.cosines[changed] = np.take_along_axis(both, order, axis=1)
        both = np.concatenate([self.numbers[changed], new.numbers[changed]], axis=1)
        self.numbers[changed] = np.take_along_axis(both, order, axis=1)

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each pair of neighbours once: the smaller number, the larger, (m,) int32, and the cosine."""
        rows, columns = np.nonzero(self.numbers >= 0)
        rows, others, cosines = rows.astype(np.int32), self.numbers[rows, columns], self.cosines[rows, columns]
        return merge_pairs(np.minimum(rows, others), np.maximum(rows, others), cosines)


def merge_pairs(low: np.ndarray, high: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair once, sorted."""
    _, kept = np.unique(low.astype(np.int64) << 32 | high, return_index=True)
    return low[kept], high[kept], cosines[kept]


def nearest(
    vectors: np.ndarray, k: int, floor: float, of: np.ndarray | None = None, *, rows: np.ndarray | None = None,
    columns: np.ndarray | None = None, progress: Progress = lambda done, all_: None,
) -> Neighbours:
    """The k most alike among `vectors` (n, dim), each of length 1, above a cosine, for every vector of `of` (m, dim).

    of: None for the vectors themselves, and then none is its own neighbour. rows: the numbers of those that neighbours
    are wanted for, and columns: those among which they are looked for, both sorted; None for all. progress: is told how
    many are done.
    """
    wanted = vectors if of is None else of
    rows = np.arange(len(wanted)) if rows is None else rows
    columns = np.arange(len(vectors)) if columns is None else columns
    is_small = len(rows) * len(columns) <= EXACT_UP_TO**2
    groups = _everyone(rows, columns) if is_small else _by_lists(vectors, wanted, rows, columns)
    found, done = Neighbours.none(len(rows), k, floor), 0
    for places, near in groups:
        best = Neighbours.none(len(places), k, floor)
        queries = wanted[rows[places]].astype(np.float32)
        for start, end in _chunks(len(near)):
            some = near[start:end]
            cosines = queries @ vectors[some].astype(np.float32).T
            if of is None:
                _forget_own(cosines, rows[places], some)
            best.add(cosines, some)
        found.numbers[places], found.cosines[places] = best.numbers, best.cosines
        done += len(places)
        progress(done, len(rows))
    return found


def renewed(
    before: Neighbours, vectors: np.ndarray, same: np.ndarray, floor: float,
    progress: Progress = lambda done, all_: None,
) -> Neighbours:
    """What `nearest` gives for vectors of which some were there before, with fewer products.

    before: the neighbours then. same: (n,) the number that a vector had then, −1 for a new one. Vectors that are new,
    and those that had k neighbours and lost one, are compared with all; the others with the new ones only. If there
    were so many then that lists were used, which miss some neighbours, all are compared with all.
    """
    k = before.numbers.shape[1]
    if len(before.numbers) > EXACT_UP_TO:
        same = np.full_like(same, -1)
    old, new = np.flatnonzero(same >= 0), np.flatnonzero(same < 0)
    now = np.full(len(before.numbers) + 1, -1, np.int32)               # the last for the number −1
    now[same[old]] = old
    numbers = now[before.numbers[same[old]]]
    cosines = np.where(numbers >= 0, before.cosines[same[old]], np.float32(floor))
    complete = (before.numbers[same[old], -1] < 0) | (numbers >= 0).all(axis=1)
    stays, others = old[complete], np.sort(np.concatenate([new, old[~complete]]))
    found = Neighbours.none(len(vectors), k, floor)
    again = nearest(vectors, k, floor, rows=others, progress=lambda done, _: progress(done, len(vectors)))
    found.numbers[others], found.cosines[others] = again.numbers, again.cosines
    more = nearest(vectors, k, floor, rows=stays, columns=new,
                   progress=lambda done, _: progress(len(others) + done, len(vectors)))
    numbers = np.concatenate([numbers[complete], more.numbers], axis=1)
    cosines = np.concatenate([cosines[complete], more.cosines], axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    found.numbers[stays] = np.take_along_axis(numbers, order, axis=1)
    found.cosines[stays] = np.take_along_axis(cosines, order, axis=1)
    return found


def _forget_own(cosines: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Leave out the cosine of each vector to itself. columns: sorted."""
    places = np.minimum(np.searchsorted(columns, rows), len(columns) - 1)
    own = np.flatnonzero(columns[places] == rows)
    cosines[own, places[own]] = -np.inf


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns: a short one first."""
    starts = [0, *range(_FIRST_COLUMNS, count, _COLUMNS)]
    return ((start, end) for start, end in zip(starts, [*starts[1:], count], strict=True) if end > start)


Groups = Iterator[tuple[np.ndarray, np.ndarray]]
"""Places in the rows that neighbours are wanted for, and the numbers of all that they are compared with, sorted."""


def _everyone(rows: np.ndarray, columns: np.ndarray) -> Groups:
    columns = columns.astype(np.int32)
    for start in range(0, len(rows), _ROWS):
        yield np.arange(start, min(start + _ROWS, len(rows))), columns


def _by_lists(vectors: np.ndarray, wanted: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Groups:
    centres = list_centres(vectors, columns, min(int(_LISTS * len(columns) ** 0.5), len(columns)))
    lists = _members(_assign(vectors, columns, centres), len(centres))
    same = wanted is vectors and np.array_equal(rows, columns)
    asking = lists if same else _members(_assign(wanted, rows, centres), len(centres))
    likeness = centres @ centres.T
    near = np.argpartition(-likeness, min(_PROBED, len(centres) - 1), axis=1)[:, :_PROBED]
    for number, places in enumerate(asking):
        compared = columns[np.sort(np.concatenate([lists[other] for other in near[number]]))]
        for start in range(0, len(places) if len(compared) else 0, _ROWS):
            yield places[start : start + _ROWS], compared.astype(np.int32)


def list_centres(vectors: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Centres for so many lists of some vectors, (count, dim) float32 of length 1: spherical k-means on a sample."""
    random = np.random.default_rng(0)
    sample = np.sort(random.choice(rows, min(len(rows), count * _SAMPLED), replace=False))
    some = vectors[sample].astype(np.float32)
    centres: np.ndarray = some[random.choice(len(some), count, replace=False)]
    for _ in range(_ROUNDS):
        members = _assign(some, np.arange(len(some)), centres)
        order = np.argsort(members, kind="stable")
        filled, starts = np.unique(members[order], return_index=True)
        centres[filled] = np.add.reduceat(some[order], starts, axis=0)      # an empty list keeps its centre
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return centres


def _assign(vectors: np.ndarray, rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The most alike centre of each of some vectors, (len(rows),)."""
    blocks = (vectors[rows[start : start + _ROWS]].astype(np.float32) for start in range(0, len(rows), _ROWS))
    return np.concatenate([np.zeros(0, np.int64), *((block @ centres.T).argmax(axis=1) for block in blocks)])


def _members(lists: np.ndarray, count: int) -> list[np.ndarray]:
    """The numbers of the vectors in each list, sorted."""
    order = np.argsort(lists, kind="stable").astype(np.int32)
    return np.split(order, np.searchsorted(lists[order], np.arange(1, count)))
