"""The photos and the faces that a page shows, cut out of the photos again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.pages.pictures import (
    CutFace,
    FaceView,
    cut_face,
    draw_face,
    photo_jpeg,
    read_photos,
    thumbnail,
)
from jobs.report.alike import Alike, most_alike
from jobs.report.survey import Progress, Survey
from pipeline.people.outputs import Output, Row

VIEWED_FACES = 40        # of a photo, with pictures of their own; every face has its box


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much a page shows. photos: with their pictures, longest side photo_px. faces: in the gallery; 0: no gallery.

    parts: of the tables that are read, at most.
    """

    photos: int
    photo_px: int
    faces: int
    parts: int


@dataclass(frozen=True, slots=True)
class PhotoView:
    """One photo: its row of images/, and its picture; views: of its first faces. note: why it has no pictures."""

    record: Row
    jpeg: bytes = b""
    views: Sequence[FaceView] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class ShownFace:
    """A face on the page: its row, the number of its photo, and its thumbnail; b"" if the photo is gone."""

    row: Row
    photo: int
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows. records: the rows of all its photos. faces: of all photos, in their order.

    views: the pictures of some photos, by their number. alike: of the faces.
    """

    records: Sequence[Row]
    faces: Sequence[ShownFace]
    views: Mapping[int, PhotoView]
    alike: Alike


def collect(output: Output, found: Survey, sizes: Sizes, progress: Progress) -> Shown:
    """Read the photos that were chosen again, and cut out their faces."""
    viewed = {record["uri"] for record in found.photos[: sizes.photos]}
    records = sorted(found.photos, key=lambda record: (not record["n_faces"], record["uri"]))
    faces: list[ShownFace] = []
    vectors: list[np.ndarray] = []
    views: dict[int, PhotoView] = {}
    for number, (record, pixels) in enumerate(read_photos(records, output)):
        of_photo = found.faces.get(record["uri"], [])
        rows = [face.row for face in of_photo]
        cuts = [] if isinstance(pixels, str) else [cut_face(row, record, pixels, output) for row in rows]
        small = [thumbnail(cut.crop) for cut in cuts] or [b""] * len(rows)
        faces += (ShownFace(row, number, picture) for row, picture in zip(rows, small, strict=True))
        vectors += (face.vector for face in of_photo)
        if record["uri"] in viewed:
            views[number] = view_photo(record, rows, pixels, cuts, sizes.photo_px)
        progress(f"read {number + 1:,} of {len(records):,} photos")
    photo_of = np.array([face.photo for face in faces], np.int64)
    return Shown(records, faces, views, most_alike(np.array(vectors, np.float32), photo_of))


def view_photo(
    record: Row, rows: Sequence[Row], pixels: np.ndarray | str, cuts: Sequence[CutFace], photo_px: int
) -> PhotoView:
    """The pictures of a photo and of its first faces."""
    if isinstance(pixels, str):
        return PhotoView(record, note=pixels)
    views = [
        draw_face(row, cut.eyes_in_chip, cut.chip, cut.crop, cut.five_in_chip)
        for row, cut in zip(rows[:VIEWED_FACES], cuts[:VIEWED_FACES], strict=True)
    ]
    return PhotoView(record, photo_jpeg(pixels, photo_px), views)
