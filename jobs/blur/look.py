"""A second look at the copies: what the detector still finds there, and what the embedder still recognises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jobs.blur.faces import FoundFaces
from jobs.blur.hide import widened
from jobs.extract.stages import min_side_of
from jobs.people.photos import PhotoFaces
from models.metrics import box_iou
from pipeline.batch import ImageBatch, ImageRecord
from pipeline.people.likeness import cosines
from pipeline.settings import RowSettings
from pipeline.stages.image import decode_image

_TIE = 1e-6          # the same photo may be in OUTPUT twice
_SAME_IOU = 0.3      # of a face in the copy and one in OUTPUT: re-encoding moves boxes by a few pixels


@dataclass(frozen=True, slots=True)
class Seen:
    """What can be seen in a copy; see `table.COPIES`. highest_cosine: None if nothing is found in a hidden place."""

    still_found: int
    still_recognised: int
    highest_cosine: float | None
    not_in_output: int


class SecondLook:
    """Looks for faces in a copy as jobs.extract does.

    A face counts as recognised from min_cosine on, if it is also the most alike of all faces of its part. The cosine
    alone says little: all poor faces are alike, and one in six black squares reaches the threshold.
    """

    def __init__(
        self, find_faces: Callable[[ImageBatch], PhotoFaces], settings: RowSettings, min_cosine: float
    ) -> None:
        self._find_faces, self._settings, self._min_cosine = find_faces, settings, min_cosine

    def __call__(self, uri: str, copy: bytes, faces: FoundFaces) -> Seen:
        """Raises DecodeError if the copy cannot be read."""
        decoded = decode_image(copy, max_pixels=self._settings.max_pixels, min_side_px=min_side_of(self._settings))
        header = decoded.header
        record = ImageRecord(
            uri, width=header.width, height=header.height, format=header.format,
            exif_orientation=header.exif_orientation, decode_scale=header.decode_scale,
        )
        found = self._find_faces(ImageBatch((record,), (decoded.pixels,)))
        boxes = np.array([[row[name] for name in ("x1", "y1", "x2", "y2")] for row in found.rows], np.float32)
        return compare(faces, boxes.reshape(-1, 4), found.vectors, self._min_cosine)


def compare(faces: FoundFaces, boxes_xyxy: np.ndarray, vectors: np.ndarray, min_cosine: float) -> Seen:
    """Compare the faces of OUTPUT with those in the copy: boxes (m, 4), vectors (m, dim)."""
    hidden, kept = faces.boxes_xyxy[faces.hidden], faces.boxes_xyxy[~faces.hidden]
    places = np.array([widened(box) for box in hidden]).reshape(-1, 4)
    middles = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    within = ((places[:, None, :2] <= middles) & (middles <= places[:, None, 2:])).all(axis=-1)      # (hidden, m)
    is_kept = (box_iou(boxes_xyxy, kept) >= _SAME_IOU).any(axis=1)
    within &= ~is_kept
    alike = _cosines_to_own(faces, vectors, within)
    return Seen(
        still_found=int(within.any(axis=1).sum()),
        still_recognised=int((alike.recognised & (alike.cosines >= min_cosine)).any(axis=1).sum()),
        highest_cosine=float(alike.cosines.max()) if within.any() else None,
        not_in_output=int((~is_kept & ~within.any(axis=0)).sum()),
    )


@dataclass(frozen=True, slots=True)
class _Alike:
    """Of every hidden face and every face in the copy: the cosine, −1 where they are at two places.

    recognised: whether no other face of the part is more alike.
    """

    cosines: np.ndarray
    recognised: np.ndarray


def _cosines_to_own(faces: FoundFaces, vectors: np.ndarray, within: np.ndarray) -> _Alike:
    if not within.any():
        return _Alike(np.full(within.shape, -1.0), np.zeros(within.shape, bool))
    to_all = cosines(vectors, faces.everyone)                                        # (m, faces of the part)
    own = to_all[:, faces.rows[faces.hidden]].T
    return _Alike(np.where(within, own, -1.0), within & (own >= to_all.max(axis=1) - _TIE))
