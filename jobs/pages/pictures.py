"""The pictures of the pages: photos as JPEG, and each face as its chip and as its aligned crop."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from jobs.extract.stages import min_side_of
from pipeline import geometry
from pipeline.batch import Status, TodoRow
from pipeline.geometry import AlignmentTemplate
from pipeline.input.containers import Kind, is_container, kind_at, list_members
from pipeline.input.fetch import Fetch
from pipeline.input.names import InputError
from pipeline.input.parquet_images import ParquetColumns
from pipeline.people.outputs import Output, Row
from pipeline.schemas import LISTING
from pipeline.stages.align import align_chip
from pipeline.stages.decode import Decode
from pipeline.stages.operations import cut_chip
from pipeline.storage.uris import StoreOptions

THUMBNAIL_PX = 64
_THUMBNAIL_QUALITY = 40           # 430 bytes a face; at 75 it has 600, and looks the same
_MAX_REQUESTS = 4
_BATCH_IMAGES, _BATCH_BYTES = 16, 64 << 20


@dataclass(frozen=True, slots=True)
class FaceView:
    """One face: its row, its eye points as fractions of the chip's side (12, 2), and its chip and crop as JPEG.

    five_in_chip: the detector's points as such fractions, (5, 2); None without.
    """

    row: Row
    eyes_in_chip: np.ndarray
    chip_jpeg: bytes
    crop_jpeg: bytes
    five_in_chip: np.ndarray | None = None


def read_photos(records: Sequence[Row], output: Output) -> Iterator[tuple[Row, np.ndarray | str]]:
    """Each photo of these rows of images/ with its pixels, decoded as its faces were found, or why it has none now.

    Photos are read ahead and decoded by threads. Memory holds two batches of at most 64 MB, or a larger photo.
    """
    settings, parquet = output.settings, ParquetColumns(**output.parquet) if output.parquet else None
    decode = Decode(
        Fetch(output.options, image_column=parquet.image if parquet else None, max_requests=_MAX_REQUESTS),
        max_pixels=settings.max_pixels, min_side_px=min_side_of(settings), threads=os.cpu_count() or 1,
        batch_images=_BATCH_IMAGES, batch_bytes=_BATCH_BYTES,
    )
    known = iter(records)
    with closing(decode(locate([record["uri"] for record in records], parquet, output.options))) as batches:
        for batch in batches:
            for now, pixels in zip(batch.records, batch.pixels, strict=True):
                record = next(known)
                if now.status is not Status.OK:
                    yield record, f"The photo cannot be read now: {now.error}"
                elif (now.width, now.height) != (record["width"], record["height"]):
                    yield record, "The photo has changed since the run."
                else:
                    yield record, pixels


def view_face(face: Row, record: Row, pixels: np.ndarray, output: Output) -> FaceView:
    """Cut a face out of its photo's decoded pixels and align it, as the pipeline did."""
    cut = cut_face(face, record, pixels, output)
    return draw_face(face, cut.eyes_in_chip, cut.chip, cut.crop, cut.five_in_chip)


class CutFace(NamedTuple):
    """A face's chip (s, s, 3), its eye points as fractions of s (12, 2), and its aligned crop (112, 112, 3).

    five_in_chip: the detector's points as such fractions, (5, 2); None without.
    """

    chip: np.ndarray
    eyes_in_chip: np.ndarray
    crop: np.ndarray
    five_in_chip: np.ndarray | None


def cut_face(face: Row, record: Row, pixels: np.ndarray, output: Output) -> CutFace:
    """The pixels that the networks saw of a face."""
    height, width = pixels.shape[:2]
    rotation_deg = record["rotation_deg"] or 0
    pixels_to_image = geometry.scale_shift((record["width"] / width, record["height"] / height), (0.0, 0.0))
    turned_to_image = geometry.compose(pixels_to_image, geometry.quarter_turn(rotation_deg, width, height))
    box_xyxy = np.array([face["x1"], face["y1"], face["x2"], face["y2"]], np.float32)
    box_turned = geometry.transform_boxes(geometry.invert(turned_to_image), box_xyxy[None])[0]
    chip, chip_to_turned = cut_chip(np.rot90(pixels, -(rotation_deg // 90)), box_turned)
    chip_to_image = geometry.compose(turned_to_image, chip_to_turned)
    five = five_points(face)
    others = (face.get("eye_spread"), five) if output.settings.align_by == "both" else (None, None)
    aligned = align_chip(chip, chip_to_image, box_xyxy, eye_points(face), template_of(output), *others)
    in_chip = partial(geometry.transform, geometry.invert(chip_to_image))
    return CutFace(
        chip, in_chip(eye_points(face).astype(np.float64)) / len(chip), aligned.crop,
        None if five is None else in_chip(five.astype(np.float64)) / len(chip),
    )


def thumbnail(crop: np.ndarray) -> bytes:
    """An aligned face as a small WebP, some 400 bytes."""
    small = cv2.cvtColor(_shrunk(crop, THUMBNAIL_PX), cv2.COLOR_RGB2BGR)
    encoded: np.ndarray = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, _THUMBNAIL_QUALITY])[1]
    return encoded.tobytes()


def template_of(output: Output) -> AlignmentTemplate:
    """How the faces of an output were aligned."""
    values = output.models["embedder"]["preprocessing"]["alignment"]
    return AlignmentTemplate(values["box_side_px"], tuple(values["eyes_in_box_xy"]))


def draw_face(
    face: Row, eyes_in_chip: np.ndarray, chip: np.ndarray, crop: np.ndarray, five_in_chip: np.ndarray | None = None
) -> FaceView:
    """The pictures of a face from the pixels of its chip and its crop."""
    return FaceView(face, eyes_in_chip, _jpeg(_shrunk(chip, 2 * geometry.CROP_PX), 85), _jpeg(crop, 92),
                    five_in_chip)


def locate(uris: Sequence[str], parquet: ParquetColumns | None, options: StoreOptions) -> list[TodoRow]:
    """Where the images are. Members of tars and rows of Parquet files are looked up in their container's index."""
    found: dict[str, TodoRow] = {}
    containers = {container for uri in uris if (container := container_of(uri, parquet, options))}
    for container in sorted(containers):
        row = dict.fromkeys(LISTING.names) | {"uri": container}
        members = list_members(row, options, parquet, skips=lambda _: None)
        found |= {row["uri"]: TodoRow(**row) for row in members.rows.to_pylist()}
    return [found.get(uri, TodoRow(uri)) for uri in uris]


def container_of(uri: str, parquet: ParquetColumns | None, options: StoreOptions) -> str | None:
    """The container of a member, from the member's uri; None for the uri of a file."""
    places = [match.start() for match in re.finditer("#", uri)]
    if named := [uri[:place] for place in places if is_container(uri[:place], parquet)]:
        return named[0]
    for container in (uri[:place] for place in places):
        with suppress(InputError):
            if kind_at(container, options) in (Kind.TAR, Kind.COMPRESSED_TAR, Kind.ZIP):
                return container
    return None


def eye_points(face: Row) -> np.ndarray:
    """(12, 2) float32, image pixels; NaN where the row has none."""
    points = face["eye_points"]
    return np.full((12, 2), np.nan, np.float32) if points is None else np.array(points, np.float32).reshape(12, 2)


def five_points(face: Row) -> np.ndarray | None:
    """The detector's points (5, 2) float32, image pixels; None where the row has none."""
    points = face.get("points5")
    return None if points is None else np.array(points, np.float32).reshape(5, 2)


def photo_jpeg(pixels: np.ndarray, longest_px: int) -> bytes:
    """A photo as a JPEG, its longer side at most this."""
    return _jpeg(_shrunk(pixels, longest_px), 82)


def _shrunk(pixels: np.ndarray, longest_px: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return pixels
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality))
