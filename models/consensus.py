"""What several landmark networks agree on: twelve points of a face, and for each eye by how much they differ.

Every teacher marks the eye at a place of its own, so each is first moved to where people's points lie, by its mean
difference on faces that have both. The centre of an eye is then the median of the teachers', which a single wrong one
cannot move, or their weighted mean, and the points around it are the median of their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.eye_layout import MIRRORED

MIRRORED_EYES = np.array([1, 0])


@dataclass(frozen=True)
class Consensus:
    """Labels of n faces: points (n, 12, 2) in the pixels of their images, differences (n, 2) in longer box sides.

    The difference of an eye is the mean distance of the teachers' centres from the consensus.
    """

    points: np.ndarray
    differences: np.ndarray


def centres(points: np.ndarray) -> np.ndarray:
    """The eye centres (n, 2, 2) of eye points (n, 12, 2)."""
    middle: np.ndarray = points.reshape(len(points), 2, 6, 2).mean(2)
    return middle


def to_face(points: np.ndarray, middle: np.ndarray, side: np.ndarray, turn_deg: np.ndarray) -> np.ndarray:
    """Points (n, k, 2) in a face's own frame: from its middle (n, 2), turned back (n,), in box sides (n,)."""
    own: np.ndarray = _turn(points - middle[:, None], -turn_deg) / side[:, None, None]
    return own


def from_face(points: np.ndarray, middle: np.ndarray, side: np.ndarray, turn_deg: np.ndarray) -> np.ndarray:
    """The inverse of `to_face`."""
    placed: np.ndarray = _turn(points * side[:, None, None], turn_deg) + middle[:, None]
    return placed


def _turn(points: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Points (n, k, 2) turned by degrees (n,), clockwise on screen."""
    radians = np.radians(degrees)
    cos, sin = np.cos(radians)[:, None], np.sin(radians)[:, None]
    x, y = points[..., 0], points[..., 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], -1)


def offset(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The median of wanted − found over faces, (k, 2), made the same for both sides of the face.

    wanted, found: (n, k, 2) in the faces' own frames; k is 12, or 2 for centres. Rows with NaN do not count.
    """
    order = MIRRORED if wanted.shape[1] == 12 else MIRRORED_EYES
    counted = np.isfinite(wanted).all((1, 2)) & np.isfinite(found).all((1, 2))
    if not counted.any():
        return np.zeros(wanted.shape[1:])
    medians = np.median((wanted - found)[counted], axis=0)
    both_sides: np.ndarray = (medians + medians[order] * (-1, 1)) / 2
    return both_sides


def agree(
    shapes: Mapping[str, np.ndarray], eyes: Mapping[str, np.ndarray], given: np.ndarray,
    votes: Mapping[str, float] | None = None,
) -> Consensus:
    """The consensus of teachers, in the frame that the points are in, and given points where there are some.

    shapes: by teacher (n, 12, 2). eyes: centres (n, 2, 2) of the teachers that have no points, NaN where one has none.
    given: people's points (n, 12, 2), NaN where there are none; they count as they are, and differ by nothing.
    votes: by teacher, how much it counts; centres are then weighted means, and a teacher without a vote is not asked.
    """
    asked = {name for name in (*shapes, *eyes) if votes is None or votes.get(name, 0) > 0}
    centres_of = {name: centres(of) for name, of in shapes.items()} | dict(eyes)
    places = np.stack([of for name, of in centres_of.items() if name in asked])          # (teachers, n, 2, 2)
    counts = np.array([1.0 if votes is None else votes[name] for name in centres_of if name in asked])
    counts = np.where(np.isfinite(places).all(-1), counts[:, None, None], 0.0)           # (teachers, n, 2)
    middle = np.nanmedian(places, axis=0) if votes is None else _mean(places, counts[..., None])
    shape = np.median(
        [of - np.repeat(centres(of), 6, axis=1) for name, of in shapes.items() if name in asked], axis=0
    )
    points = shape + np.repeat(middle, 6, axis=1)
    differences = _mean(np.linalg.norm(places - middle, axis=-1), counts)
    known = np.isfinite(given).all((1, 2))
    return Consensus(
        np.where(known[:, None, None], given, points), np.where(known[:, None], 0.0, differences)
    )


def _mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The weighted mean over the first axis; values may be NaN where they count nothing."""
    mean: np.ndarray = (np.nan_to_num(values) * counts).sum(0) / counts.sum(0)
    return mean


def label_weights(differences: np.ndarray, half_at: float = 0.03) -> np.ndarray:
    """How much an eye's label counts, (n, 2) from 1 down: half where teachers differ by half_at longer box sides."""
    weights: np.ndarray = 1 / (1 + (differences / half_at) ** 2)
    return weights
