"""The values that pass between stages: to-do rows, image records, decoded images, faces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pipeline.geometry import CROP_PX, no_points, transform


class Status(StrEnum):
    """The outcome for one input image."""

    OK = "ok"
    NO_FACE = "no_face"
    FETCH_FAILED = "fetch_failed"     # the next run tries again
    UNSUPPORTED = "unsupported"       # a format we do not decode
    UNREADABLE = "unreadable"         # a known format, broken or empty
    TOO_LARGE = "too_large"
    FAILED = "failed"                 # our own error with this image; the next run tries again


RETRIED = (Status.FETCH_FAILED, Status.FAILED)
GOOD = (Status.OK, Status.NO_FACE)


@dataclass(frozen=True, slots=True)
class TodoRow:
    """One image to read. A member of a tar or Parquet file names its container; a plain object has none."""

    uri: str
    container: str | None = None
    offset: int | None = None
    size: int | None = None           # bytes
    etag: str | None = None
    mtime: datetime | None = None     # UTC


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes of one image file, and its metadata from the store; None where the store gives none.

    file_bytes: the size of the whole file; set only if `content` is just its beginning (see `Fetch`).
    """

    content: bytes
    etag: str | None = None
    mtime: datetime | None = None     # UTC
    file_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FetchFailure:
    """Why one image file could not be fetched."""

    error: str
    status: Status = Status.FETCH_FAILED


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One row of images/. The stages fill it as the image passes through them; None means not measured."""

    uri: str
    status: Status = Status.OK
    error: str | None = None
    width: int | None = None          # of the upright image at its original size, pixels
    height: int | None = None
    format: str | None = None         # "jpeg", "png", …, detected from the content
    exif_orientation: int | None = None
    rotation_deg: int | None = None   # clockwise turn, after EXIF, at which faces were found
    decode_scale: float | None = None
    detect_pass: int | None = None    # 1: first pass, 2: second pass
    n_faces: int | None = None
    faces_truncated: bool | None = None
    file_bytes: int | None = None
    etag: str | None = None
    mtime: datetime | None = None
    sha256: str | None = None         # of the file, hexadecimal
    tiles: int | None = None          # looks of the detector at the image: the whole, and windows of it

    def failed(self, error: str) -> ImageRecord:
        """The record with this error and without what was found in the image."""
        return replace(
            self, status=Status.FAILED, error=error, detect_pass=None, rotation_deg=None, n_faces=None,
            faces_truncated=None,
        )


Pixels = Any
"""uint8 RGB: an array, or a torch tensor in a GPU's memory."""


@runtime_checkable
class ChipStack(Protocol):
    """n chips (s, s, 3) uint8, s ≤ 256, in a GPU's memory, with the operations on them."""

    def __len__(self) -> int:
        """The number of chips."""

    def __getitem__(self, part: slice) -> ChipStack:
        """Some of the chips."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """The chips as arrays."""

    def joined(self, others: Sequence[ChipStack]) -> ChipStack:
        """These chips and those of the others."""

    def views(self, views: Sequence[Any], side_px: int) -> tuple[Pixels, np.ndarray, np.ndarray]:
        """Squares around the middles of the chips, at another size: (v · n, side_px, side_px, 3).

        views: v pairs of a share of the chip's side and whether it is mirrored. Also the sides of the squares and their
        margins in pixels of the chip, both (v, n) float32.
        """

    def aligned(self, chip_to_crop: np.ndarray) -> tuple[Pixels, np.ndarray]:
        """Crops (n, 112, 112, 3) by matrices (n, 2, 3) from chip to crop pixels, and their sharpness (n,) float32."""


Chips = tuple[np.ndarray, ...] | ChipStack


NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
NO_PIXELS.flags.writeable = False


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Decoded images: upright RGB pixels (h, w, 3) uint8 at `decode_scale`; `NO_PIXELS` if the status is not ok."""

    records: tuple[ImageRecord, ...]
    pixels: tuple[Pixels, ...]

    def __post_init__(self) -> None:
        if len(self.records) != len(self.pixels):
            raise ValueError(f"pixels must have {len(self.records)} images, one per record, got {len(self.pixels)}")

    def __len__(self) -> int:
        return len(self.records)

    def part(self, start: int, end: int) -> ImageBatch:
        """The images from `start` on, before `end`."""
        return ImageBatch(self.records[start:end], self.pixels[start:end])

    def singles(self) -> list[ImageBatch]:
        """The same images, each in a batch of its own."""
        return [ImageBatch((record,), (pixels,)) for record, pixels in zip(self.records, self.pixels, strict=True)]

    def halves(self) -> list[ImageBatch]:
        """The same images in two batches."""
        middle = len(self.records) // 2
        return [self.part(0, middle), self.part(middle, len(self))]


def _empty(shape: tuple[int, ...], dtype: type) -> Any:
    """A dataclass field whose default is a new empty array of that shape."""
    return field(default_factory=lambda: np.zeros(shape, dtype))


def on_host(pixels: Pixels) -> np.ndarray:
    """The same pixels as an array."""
    return pixels if isinstance(pixels, np.ndarray) else pixels.cpu().numpy()


def _joined(parts: Sequence[Any]) -> Any:
    """Tuples, arrays, or pixels of several batches as one; not empty."""
    if isinstance(parts[0], tuple):
        return tuple(item for part in parts for item in part)
    if isinstance(parts[0], ChipStack):
        return parts[0].joined(parts[1:])
    return np.concatenate([on_host(part) for part in parts])


@dataclass(frozen=True, slots=True)
class FaceBatch:
    """The faces of several images, in the order of the images; `face_counts` gives the number of faces per image.

    Coordinates are pixels of the upright image at its original size. A field has length 0 until its stage fills it.
    Chips and crops are emptied after their last use. points5 is NaN for each face whose detector gives no points.
    """

    records: tuple[ImageRecord, ...]
    face_counts: np.ndarray           # (images,) int64
    boxes_xyxy: np.ndarray            # (n, 4) float32
    scores: np.ndarray                # (n,) float32
    chips: Chips = ()                                           # n × (s, s, 3) uint8, s ≤ 256
    chip_to_image: np.ndarray = _empty((0, 2, 3), np.float64)   # (n, 2, 3) float64
    eye_points: np.ndarray = _empty((0, 12, 2), np.float32)   # (n, 12, 2) float32
    eye_spread: np.ndarray = _empty((0,), np.float32)   # (n,), in longer box sides; NaN: the network does not say it
    crops: Pixels = _empty((0, CROP_PX, CROP_PX, 3), np.uint8)   # (n, 112, 112, 3) uint8
    align_ok: np.ndarray = _empty((0,), bool)   # (n,)
    roll_deg: np.ndarray = _empty((0,), np.float32)   # (n,)
    sharpness: np.ndarray = _empty((0,), np.float32)   # (n,)
    embeddings: np.ndarray = _empty((0, 0), np.float32)   # (n, dim), unit vectors
    embedding_norms: np.ndarray = _empty((0,), np.float32)   # (n,)
    points5: np.ndarray = _empty((0, 5, 2), np.float32)   # (n, 5, 2) float32: eyes, nose, mouth corners of the detector

    def __post_init__(self) -> None:
        n = int(self.face_counts.sum())
        if len(self.face_counts) != len(self.records):
            raise ValueError(f"face_counts must be ({len(self.records)},), got {self.face_counts.shape}")
        if self.boxes_xyxy.shape != (n, 4) or self.scores.shape != (n,):
            raise ValueError(
                f"boxes_xyxy must be ({n}, 4) and scores ({n},), got {self.boxes_xyxy.shape} and {self.scores.shape}"
            )
        for name in ("chips", "chip_to_image", "eye_points", "eye_spread", "crops", "align_ok", "roll_deg", "sharpness",
                     "embeddings", "embedding_norms", "points5"):
            if len(getattr(self, name)) not in (0, n):
                raise ValueError(f"{name} must have {n} entries, one per face, got {len(getattr(self, name))}")
        if len(self.points5) != n:
            object.__setattr__(self, "points5", no_points(n))

    def __len__(self) -> int:
        """The number of faces."""
        return len(self.scores)

    @classmethod
    def without_faces(cls, records: tuple[ImageRecord, ...]) -> FaceBatch:
        """A batch of images without any face."""
        return cls(records, np.zeros(len(records), np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    @classmethod
    def concatenate(cls, batches: Sequence[FaceBatch]) -> FaceBatch:
        """All images in one batch. `batches`: at least one, all after the same stage."""
        joined: dict[str, Any] = {}
        for f in fields(cls):
            # Without faces the shape may differ: (0, 0) embeddings, because their length is unknown.
            parts = [getattr(batch, f.name) for batch in batches]
            joined[f.name] = _joined([part for part in parts if len(part)] or parts[:1])
        return cls(**joined)

    def halves(self) -> list[FaceBatch]:
        """The same images, at least two, in two batches."""
        return self._cut([0, len(self.records) // 2])

    def part(self, start: int, end: int) -> FaceBatch:
        """The images from `start` on, before `end`, with their faces."""
        return self._cut([0, start, end])[1]

    def parts(self, max_faces: int) -> list[FaceBatch]:
        """The same images in order, in batches of at most max_faces faces; an image with more is a batch of its own."""
        starts, faces_in_part = [0] if self.records else [], 0
        for i, count in enumerate(self.face_counts):
            if i > starts[-1] and faces_in_part + count > max_faces:
                starts.append(i)
                faces_in_part = 0
            faces_in_part += int(count)
        return self._cut(starts) if len(starts) > 1 else [self] * len(starts)

    def _cut(self, starts: Sequence[int]) -> list[FaceBatch]:
        """The same images in several batches, of which these are the first images."""
        face_ends = np.concatenate([[0], np.cumsum(self.face_counts)])
        per_face = [f.name for f in fields(self) if f.name not in ("records", "face_counts")]
        filled = [name for name in per_face if len(getattr(self, name))]
        return [
            replace(
                self, records=self.records[start:end], face_counts=self.face_counts[start:end],
                **{name: getattr(self, name)[face_ends[start] : face_ends[end]] for name in filled},
            )
            for start, end in pairwise([*starts, len(self.records)])
        ]

    def chip_points_to_image(self, points: np.ndarray) -> np.ndarray:
        """Convert points (n, k, 2) from pixels of each face's chip to image pixels; float32."""
        return transform(self.chip_to_image, points.astype(np.float64)).astype(np.float32)

    def with_eyes(self, eye_points: np.ndarray, eye_spread: np.ndarray) -> FaceBatch:
        """This batch with eye points (n, 12, 2), image pixels, and their spread (n,)."""
        if eye_points.shape != (len(self), 12, 2):
            raise ValueError(f"eye_points must be ({len(self)}, 12, 2), got {eye_points.shape}")
        return replace(self, eye_points=eye_points, eye_spread=eye_spread)

    def with_crops(
        self, crops: np.ndarray, align_ok: np.ndarray, roll_deg: np.ndarray, sharpness: np.ndarray
    ) -> FaceBatch:
        """This batch with the aligned crops and without the chips, which no later stage needs."""
        return replace(
            self, chips=(), chip_to_image=self.chip_to_image[:0],
            crops=crops, align_ok=align_ok, roll_deg=roll_deg, sharpness=sharpness,
        )

    def with_embeddings(self, embeddings: np.ndarray, norms: np.ndarray) -> FaceBatch:
        """This batch with unit vectors (n, dim) and their former lengths, without the crops, which no stage needs."""
        return replace(self, crops=self.crops[:0], embeddings=embeddings, embedding_norms=norms)
