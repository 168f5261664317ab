"""The pictures of the pages: photos as JPEG, and each face as its chip and as its aligned crop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from jobs.extract.stages import min_side_of
from pipeline import geometry
from pipeline.batch import TodoRow
from pipeline.geometry import AlignmentTemplate
from pipeline.input.containers import Kind, is_container, kind_at, list_members
from pipeline.input.names import InputError
from pipeline.input.parquet_images import ParquetColumns
from pipeline.people.outputs import Row
from pipeline.schemas import LISTING
from pipeline.settings import RowSettings
from pipeline.stages.align import align_chip
from pipeline.stages.codec import DecodeError
from pipeline.stages.image import decode_image
from pipeline.stages.operations import cut_chip
from pipeline.storage.uris import StoreOptions

MAX_FACES_OF_A_PHOTO = 40         # with pictures of their own; every face has its box
PHOTO_PX = 1000                   # longest side


@dataclass(frozen=True, slots=True)
class FaceView:
    """One face: its row, its eye points as fractions of the chip's side (12, 2), and its chip and crop as JPEG."""

    row: Row
    eyes_in_chip: np.ndarray
    chip_jpeg: bytes
    crop_jpeg: bytes


@dataclass(frozen=True, slots=True)
class PhotoView:
    """One photo: its row of images/, the rows of its faces, and its pictures. note: why it has no pictures."""

    record: Row
    faces: Sequence[Row]
    photo_jpeg: bytes = b""
    face_views: Sequence[FaceView] = ()
    note: str = ""


def view_photo(
    record: Row, faces: Sequence[Row], content: bytes, settings: RowSettings, template: AlignmentTemplate
) -> PhotoView:
    """Decode a photo and cut out its faces, or say why that cannot be done now. settings, template: of its output."""
    try:
        decoded = decode_image(content, max_pixels=settings.max_pixels, min_side_px=min_side_of(settings))
    except DecodeError as error:
        return PhotoView(record, faces, note=f"The photo cannot be read now: {error.reason}")
    if (decoded.header.width, decoded.header.height) != (record["width"], record["height"]):
        return PhotoView(record, faces, note="The photo has changed since the run.")
    views = [view_face(face, record, decoded.pixels, template) for face in faces[:MAX_FACES_OF_A_PHOTO]]
    return PhotoView(record, faces, _jpeg(_shrunk(decoded.pixels, PHOTO_PX), 82), views)


def view_face(face: Row, record: Row, pixels: np.ndarray, template: AlignmentTemplate) -> FaceView:
    """Cut a face out of its photo's decoded pixels and align it, as the pipeline did."""
    height, width = pixels.shape[:2]
    rotation_deg = record["rotation_deg"] or 0
    pixels_to_image = geometry.scale_shift((record["width"] / width, record["height"] / height), (0.0, 0.0))
    turned_to_image = geometry.compose(pixels_to_image, geometry.quarter_turn(rotation_deg, width, height))
    box_xyxy = np.array([face["x1"], face["y1"], face["x2"], face["y2"]], np.float32)
    box_turned = geometry.transform_boxes(geometry.invert(turned_to_image), box_xyxy[None])[0]
    chip, chip_to_turned = cut_chip(np.rot90(pixels, -(rotation_deg // 90)), box_turned)
    chip_to_image = geometry.compose(turned_to_image, chip_to_turned)
    aligned = align_chip(chip, chip_to_image, box_xyxy, eye_points(face), template)
    eyes_in_chip = geometry.transform(geometry.invert(chip_to_image), eye_points(face).astype(np.float64)) / len(chip)
    return draw_face(face, eyes_in_chip, chip, aligned.crop)


def draw_face(face: Row, eyes_in_chip: np.ndarray, chip: np.ndarray, crop: np.ndarray) -> FaceView:
    """The pictures of a face from the pixels of its chip and its crop."""
    return FaceView(face, eyes_in_chip, _jpeg(_shrunk(chip, 2 * geometry.CROP_PX), 85), _jpeg(crop, 92))


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


def _shrunk(pixels: np.ndarray, longest_px: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return pixels
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality))
