"""Who is who in a gallery: groups of faces that are of one person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.people.gallery import VECTOR_TYPE, Gallery
from pipeline.people.likeness import unit
from pipeline.people.linkage import Apart, Groups, LinkThreshold, link
from pipeline.people.neighbours import Neighbours, nearest, renewed

NEIGHBOURS = 16           # of a face or a group; 8 and 30 give the same groups of a few thousand faces
_CANDIDATES = 4           # groups that a face may join
_LEVELS = 8               # at most; two or three are needed
_FEW = 0.001              # of the groups: so few that were merged in a level are the last
_BLOCK = 65_536           # vectors in memory at once

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Grouping:
    """People, numbered from 0, of n faces.

    person: (n,) of each face. is_core: (n,) whether the face made the group; others only joined, or are alone.
    cosine: (n,) of each face to the mean of its person's core. core_size, cohesion, nearest, nearest_cosine, best:
    (people,) number of core faces; the mean cosine of their pairs, NaN if there is none; the most alike other person,
    −1 for none, and the cosine of both means; the face most like the mean.
    """

    person: np.ndarray
    is_core: np.ndarray
    cosine: np.ndarray
    core_size: np.ndarray
    cohesion: np.ndarray
    nearest: np.ndarray
    nearest_cosine: np.ndarray
    best: np.ndarray


def group_faces(
    gallery: Gallery, folder: Path, threshold: LinkThreshold, *, names: np.ndarray, same_photo: bool, progress: Progress
) -> Grouping:
    """The people of a gallery.

    folder: for temporary vectors. names: (n,) the number of the person that a face is known to be, −1 for unknown.
    same_photo: one person may be twice on a photo. progress: is told of each step how much is done, and of how much.
    """
    core = np.flatnonzero(gallery.clear | (names >= 0))
    groups = Groups.single(_copy(gallery.vectors(), core, folder / "means"))
    unite(groups, names[core])
    photos = np.full(len(core), -1) if same_photo else shared_photos(gallery.photos[core])
    apart = Apart(photos, names[core])
    nearest_other = _link_levels(groups, threshold, apart, folder, progress)
    joined = _join(gallery, core, groups, folder, threshold, same_photo=same_photo)
    return _grouping(gallery, core, groups, nearest_other, joined)


def shared_photos(photos: np.ndarray) -> np.ndarray:
    """The number of each face's photo, (n,); −1 where it has one face only."""
    several = np.bincount(photos, minlength=1) > 1
    return np.where(several[photos], photos, -1)


def unite(groups: Groups, names: np.ndarray) -> None:
    """Make one group of all single faces with the same name. names: (n,), −1 for none."""
    known = np.flatnonzero(names >= 0)
    known = known[np.argsort(names[known], kind="stable")]
    for same in np.split(known, np.flatnonzero(np.diff(names[known])) + 1) if len(known) else []:
        while len(same) > 1:
            half = len(same) // 2
            groups.merge(same[:half], same[-half:])
            same = same[: len(same) - half]


def _copy(vectors: np.ndarray, rows: np.ndarray, file: Path) -> np.ndarray:
    """Some vectors in a file, writable."""
    copied = _on_disk(file, (len(rows), vectors.shape[1]))
    for start in range(0, len(rows), _BLOCK):
        copied[start : start + _BLOCK] = vectors[rows[start : start + _BLOCK]]
    return copied


def _on_disk(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """Vectors in a file, which need not be in memory all at once."""
    if 0 in shape:
        return np.zeros(shape, VECTOR_TYPE)
    return np.memmap(file, VECTOR_TYPE, mode="w+", shape=shape)


def _link_levels(
    groups: Groups, threshold: LinkThreshold, apart: Apart, folder: Path, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Merge groups that are neighbours, then look for the neighbours of the new groups, until no more can be merged.

    A face with many near copies of its photo has no other neighbours than these; their group has. Returns the most
    alike other group of each that is left, −1 for none, and the cosine of both means.
    """
    alive, near = np.zeros(0, np.int32), Neighbours.none(0, NEIGHBOURS, threshold.large)
    sizes = np.zeros_like(groups.sizes)
    for level in range(_LEVELS):
        before, alive = alive, groups.alive()
        units = _units(groups, alive, folder / "units")
        same = np.where(sizes[alive] == groups.sizes[alive], np.searchsorted(before, alive), -1)
        near = renewed(near, units, same, threshold.large, partial(progress, "compared"))
        sizes = groups.sizes.copy()
        merged = link(groups, _pairs(groups, alive, near), threshold, apart) if len(alive) else 0
        progress("linked", level + 1, level + 1)
        if merged <= len(alive) * _FEW:
            break
    return _nearest_other(groups, alive, near)


def _units(groups: Groups, alive: np.ndarray, file: Path) -> np.ndarray:
    """The means of groups with length 1."""
    units = _on_disk(file, (len(alive), groups.means.shape[1]))
    for start in range(0, len(alive), _BLOCK):
        units[start : start + _BLOCK] = unit(groups.means[alive[start : start + _BLOCK]])
    return units


def _pairs(groups: Groups, alive: np.ndarray, near: Neighbours) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours as pairs of groups, with the mean of the cosines between the two."""
    low, high, cosines = near.pairs()
    first, second = alive[low], alive[high]
    several = np.flatnonzero(groups.sizes[first] + groups.sizes[second] > 2)
    cosines[several] = groups.mean_cosines(first[several], second[several])
    return first, second, cosines


def _nearest_other(groups: Groups, before: np.ndarray, near: Neighbours) -> tuple[np.ndarray, np.ndarray]:
    """For each group that is left the most alike other one, −1 for none, and the cosine of both means.

    before: the groups before the last merges, whose neighbours are `near`.
    """
    now = groups.of[before]                                     # the number of a group is that of a member
    others = np.append(now, -1)[near.numbers]                   # −1 takes the last
    others[others == now[:, None]] = -1
    rows = np.flatnonzero(now == before)
    column = (others[rows] >= 0).argmax(axis=1)
    found, cosines = others[rows, column], near.cosines[rows, column]
    return np.where(found >= 0, np.searchsorted(before[rows], found), -1), np.where(found >= 0, cosines, np.nan)


def _join(
    gallery: Gallery, core: np.ndarray, groups: Groups, folder: Path, threshold: LinkThreshold, *, same_photo: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The faces that are not core, (m,), and the group that each joins, counted in `groups.alive()`; −1 for none."""
    rest = np.setdiff1d(np.arange(len(gallery)), core)
    alive = groups.alive()
    units = _units(groups, alive, folder / "units")
    near = nearest(units, _CANDIDATES, threshold.large, of=_copy(gallery.vectors(), rest, folder / "rest"))
    lengths = np.linalg.norm(groups.means[alive].astype(np.float32), axis=1) if len(alive) else np.zeros(1)
    sizes = groups.sizes[alive] if len(alive) else np.ones(1)
    margins = near.cosines * lengths[near.numbers] - threshold(sizes[near.numbers], np.ones(1))
    margins[near.numbers < 0] = -1
    of_core = np.searchsorted(alive, groups.of).astype(np.int64)
    taken = np.zeros(0, np.int64) if same_photo else of_core << 32 | gallery.photos[core]
    return rest, _choose(near.numbers, margins, None if same_photo else gallery.photos[rest], taken)


def _choose(candidates: np.ndarray, margins: np.ndarray, photos: np.ndarray | None, taken: np.ndarray) -> np.ndarray:
    """For each face its best candidate above 0, (n,), −1 for none; of two faces of a photo only the better one.

    candidates, margins: (n, k). taken: the groups that have a face of a photo already, group << 32 | photo.
    """
    chosen = np.full(len(candidates), -1, np.int64)
    for column in np.argsort(-margins, axis=1, kind="stable").T:
        rows = np.flatnonzero(chosen < 0)
        group, margin = candidates[rows, column[rows]], margins[rows, column[rows]]
        fits = margin > 0
        if photos is not None:
            keys = group.astype(np.int64) << 32 | photos[rows]
            order = np.lexsort((-margin, keys))
            first = np.zeros(len(rows), bool)
            first[order[np.unique(keys[order], return_index=True)[1]]] = True
            fits &= first & ~np.isin(keys, taken)
            taken = np.concatenate([taken, keys[fits]])
        chosen[rows[fits]] = group[fits]
    return chosen


def _grouping(
    gallery: Gallery, core: np.ndarray, groups: Groups, nearest_other: tuple[np.ndarray, np.ndarray],
    joined: tuple[np.ndarray, np.ndarray],
) -> Grouping:
    """The people: the groups, and after them each face that is in none."""
    alive = groups.alive()
    rest, joins = joined
    alone = joins < 0
    person = np.empty(len(gallery), np.int64)
    person[core] = np.searchsorted(alive, groups.of)
    person[rest] = np.where(alone, len(alive) + np.cumsum(alone) - 1, joins)
    is_core = np.zeros(len(gallery), bool)
    is_core[core] = True
    cosine = _cosines(gallery.vectors(), person, groups.means, alive)
    order = np.lexsort((-cosine, ~is_core, person))
    best = order[np.unique(person[order], return_index=True)[1]]
    none = np.zeros(int(alone.sum()))
    sizes = np.concatenate([groups.sizes[alive], none]).astype(np.int64)
    return Grouping(
        person, is_core, cosine, sizes, np.concatenate([_cohesion(groups, alive), none + np.nan]),
        np.concatenate([nearest_other[0], none - 1]).astype(np.int64),
        np.concatenate([nearest_other[1], none + np.nan]),
        best,
    )


def _cosines(vectors: np.ndarray, person: np.ndarray, means: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """The cosine of each face to its person, (n,) float32; 1 for one that is in no group."""
    cosines = np.ones(len(vectors), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        rows = start + np.flatnonzero(person[start : start + _BLOCK] < len(alive))
        block = vectors[rows].astype(np.float32)
        cosines[rows] = np.einsum("nd,nd->n", block, unit(means[alive[person[rows]]]))
    return np.clip(cosines, -1, 1)


def _cohesion(groups: Groups, alive: np.ndarray) -> np.ndarray:
    """The mean cosine of all pairs of a group, from the length of its mean vector."""
    lengths = np.zeros(len(alive))
    for start in range(0, len(alive), _BLOCK):
        block = groups.means[alive[start : start + _BLOCK]].astype(np.float32)
        lengths[start : start + _BLOCK] = np.einsum("nd,nd->n", block, block)
    sizes = groups.sizes[alive].astype(np.float64)
    cohesion: np.ndarray = np.where(sizes > 1, (sizes * lengths - 1) / np.maximum(sizes - 1, 1), np.nan)
    return cohesion
