"""The second stage: find the faces of every image and cut out a chip around each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from pipeline import geometry
from pipeline.batch import FaceBatch, ImageBatch, ImageRecord, Status
from pipeline.geometry import CHIP_MAX_PX
from pipeline.stages.looks import Box, Looks, merge

DetectModel = Callable[[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]
"""From canvases (b, side, side, 3) uint8 RGB to one pair each: boxes (n, 4) float32, canvas pixels, and scores (n,)."""

LETTERBOX_GREY = 114   # the border around an image in YOLO's training
AREA_BELOW = 0.6       # scales below need averaging; above, interpolation gives the same AP in a fifth of the time


def letterbox(pixels: np.ndarray, side_px: int, canvas: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scale an image (h, w, 3) up or down and centre it in a grey square.

    Returns the canvas (side_px, side_px, 3) uint8, which may be given, and the 2×3 matrix from canvas pixels to image
    pixels. The square does not depend on the other images of the batch. That of ultralytics does, so there the same
    image gives different boxes in another batch.
    """
    height, width = pixels.shape[:2]
    scale = side_px / max(width, height)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (side_px - new_width) // 2, (side_px - new_height) // 2
    if canvas is None:
        canvas = np.empty((side_px, side_px, 3), np.uint8)
    canvas.fill(LETTERBOX_GREY)
    canvas[top : top + new_height, left : left + new_width] = cv2.resize(
        pixels, (new_width, new_height), interpolation=cv2.INTER_AREA if scale < AREA_BELOW else cv2.INTER_LINEAR
    )
    scale_xy = (width / new_width, height / new_height)
    return canvas, geometry.scale_shift(scale_xy, (-left * scale_xy[0], -top * scale_xy[1]))


def cut_chip(pixels: np.ndarray, box_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut out the square around a box, shrunk to at most 256 px; outside the image the edge pixels are repeated.

    The middle of the box must lie in the image. Returns the chip (s, s, 3) uint8 and the 2×3 matrix from chip pixels to
    image pixels.
    """
    left, top, side = geometry.chip_square(box_xyxy)
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    inside = pixels[y1:y2, x1:x2]
    if side <= CHIP_MAX_PX:
        chip = cv2.copyMakeBorder(
            inside, y1 - top, top + side - y2, x1 - left, left + side - x2, cv2.BORDER_REPLICATE
        )
        return chip, geometry.scale_shift((1.0, 1.0), (left, top))
    per_chip_px = side / CHIP_MAX_PX
    chip_to_image = geometry.scale_shift((per_chip_px, per_chip_px), (left, top))
    # Shrink first, repeat edges after: a close-up of 100 megapixels needs no second full copy.
    small_width = max(1, round((x2 - x1) / per_chip_px))
    small_height = max(1, round((y2 - y1) / per_chip_px))
    small = cv2.resize(inside, (small_width, small_height), interpolation=cv2.INTER_AREA)
    if small.shape[:2] == (CHIP_MAX_PX, CHIP_MAX_PX):
        return small, chip_to_image
    small_to_image = geometry.scale_shift(((x2 - x1) / small_width, (y2 - y1) / small_height), (x1, y1))
    small_to_chip = geometry.compose(geometry.invert(chip_to_image), small_to_image)
    chip = cv2.warpAffine(
        small, geometry.for_opencv(small_to_chip), (CHIP_MAX_PX, CHIP_MAX_PX),
        flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
    )
    return chip, chip_to_image


@dataclass(frozen=True, slots=True)
class _Found:
    """The faces of one image, best score first. "Turned" is the decoded image, turned clockwise by rotation_deg."""

    boxes_turned: np.ndarray      # (n, 4) float32, pixels of the turned image
    boxes_xyxy: np.ndarray        # (n, 4) float32, original pixels
    scores: np.ndarray            # (n,) float32
    turned_to_image: np.ndarray   # (2, 3)
    detect_pass: int
    rotation_deg: int


class Detect:
    """Find faces at a fixed input size and cut out their chips.

    looks: where to look in an image. nms_iou: joins what several looks find. An image without a face gets a second pass
    at `second_pass_px`, for close-ups whose face is too large for the first.
    With `rotate_retry` it is then tried again, turned by 90, 270 and 180 degrees.

    min_face_px: a box whose shorter side is less is dropped; pixels of the original image.
    max_faces: faces kept per image, best scores first; None keeps all.
    batch_size: canvases per call of the model.
    """

    def __init__(
        self,
        detect_faces: DetectModel,
        *,
        looks: Looks,
        nms_iou: float,
        second_pass_px: int | None,
        min_face_px: float,
        max_faces: int | None,
        rotate_retry: bool,
        batch_size: int,
    ) -> None:
        self._detect_faces = detect_faces
        self._looks, self._input_px = looks, looks.input_px
        self._nms_iou = nms_iou
        self._second_pass_px = second_pass_px
        self._min_face_px = min_face_px
        self._max_faces = max_faces
        self._rotate_retry = rotate_retry
        self._batch_size = batch_size

    def __call__(self, batch: ImageBatch) -> FaceBatch:
        found: dict[int, _Found] = {}
        looks = {
            i: self._looks.boxes((record.width or 0, record.height or 0), pixels.shape[1::-1])
            for i, (record, pixels) in enumerate(zip(batch.records, batch.pixels, strict=True))
            if record.status is Status.OK
        }
        self._run(found, batch, looks, self._input_px, detect_pass=1)
        if self._second_pass_px is not None:
            self._run(found, batch, _whole_of(looks, found), self._second_pass_px, detect_pass=2)
        if self._rotate_retry:
            for rotation_deg in (90, 270, 180):
                self._run(found, batch, _whole_of(looks, found), self._input_px, 1, rotation_deg)
        per_image = [
            self._cut(record, pixels, found[i], len(looks[i])) if i in found else FaceBatch.without_faces((record,))
            for i, (record, pixels) in enumerate(zip(batch.records, batch.pixels, strict=True))
        ]
        return FaceBatch.concatenate(per_image)

    def _run(
        self,
        found: dict[int, _Found],
        batch: ImageBatch,
        looks: Mapping[int, Sequence[Box]],
        side_px: int,
        detect_pass: int,
        rotation_deg: int = 0,
    ) -> None:
        """Run the detector on these looks at images and store what it finds; an empty result replaces no earlier one.

        looks: by the index of the image. With a turn they are the whole image, and not turned themselves.
        """
        each_look = [(i, box) for i, boxes in looks.items() for box in boxes]
        per_image: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {i: [] for i in looks}
        for start in range(0, len(each_look), self._batch_size):
            chunk = each_look[start : start + self._batch_size]
            canvases = np.empty((len(chunk), side_px, side_px, 3), np.uint8)
            matrices = []
            for canvas, (i, (x1, y1, x2, y2)) in zip(canvases, chunk, strict=True):
                _, canvas_to_look = letterbox(_turned(batch.pixels[i][y1:y2, x1:x2], rotation_deg), side_px, canvas)
                matrices.append(geometry.compose(geometry.scale_shift((1.0, 1.0), (x1, y1)), canvas_to_look))
            detections = self._detect_faces(canvases)
            for (i, _), canvas_to_turned, (boxes, scores) in zip(chunk, matrices, detections, strict=True):
                per_image[i].append((geometry.transform_boxes(canvas_to_turned, boxes), scores))
        for i, of_looks in per_image.items():
            pixels = batch.pixels[i]
            merged = merge(pixels.shape[1::-1], looks[i], of_looks, self._nms_iou)
            faces = self._select(batch.records[i], pixels, *merged, detect_pass, rotation_deg)
            if i not in found or len(faces.scores):
                found[i] = faces

    def _select(
        self,
        record: ImageRecord,
        pixels: np.ndarray,
        boxes_turned: np.ndarray,
        scores: np.ndarray,
        detect_pass: int,
        rotation_deg: int,
    ) -> _Found:
        """Clip the boxes to the image, drop the small ones, sort by descending score, then by y1 and x1."""
        height, width = pixels.shape[:2]
        pixels_to_image = geometry.scale_shift((record.width / width, record.height / height), (0.0, 0.0))
        turned_to_image = geometry.compose(pixels_to_image, geometry.quarter_turn(rotation_deg, width, height))
        turned_wh = (height, width) if rotation_deg in (90, 270) else (width, height)
        boxes_turned = np.clip(boxes_turned, 0, np.array(turned_wh * 2, np.float32))
        boxes = geometry.transform_boxes(turned_to_image, boxes_turned)
        shorter_px = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
        best_first = np.lexsort((boxes[:, 0], boxes[:, 1], -scores))
        kept = best_first[(shorter_px[best_first] >= self._min_face_px) & (shorter_px[best_first] > 0)]
        return _Found(boxes_turned[kept], boxes[kept], scores[kept], turned_to_image, detect_pass, rotation_deg)

    def _cut(self, record: ImageRecord, pixels: np.ndarray, found: _Found, tiles: int) -> FaceBatch:
        """The chips of one image's best `max_faces` faces."""
        boxes = found.boxes_xyxy[: self._max_faces]
        turned = _turned(pixels, found.rotation_deg)
        cut = [cut_chip(turned, box) for box in found.boxes_turned[: self._max_faces]]
        record = replace(
            record,
            status=Status.OK if len(boxes) else Status.NO_FACE,
            detect_pass=found.detect_pass,
            rotation_deg=found.rotation_deg,
            n_faces=len(boxes),
            faces_truncated=len(boxes) < len(found.boxes_xyxy),
            tiles=tiles,
        )
        return FaceBatch(
            records=(record,),
            face_counts=np.array([len(boxes)], np.int64),
            boxes_xyxy=boxes,
            scores=found.scores[: self._max_faces],
            chips=tuple(chip for chip, _ in cut),
            chip_to_image=np.array(
                [geometry.compose(found.turned_to_image, chip_to_turned) for _, chip_to_turned in cut], np.float64
            ).reshape(-1, 2, 3),
        )


def _whole_of(looks: Mapping[int, Sequence[Box]], found: Mapping[int, _Found]) -> dict[int, Sequence[Box]]:
    """The look at the whole, of each image in which no face was found yet."""
    return {i: looks[i][:1] for i, faces in found.items() if not len(faces.scores)}


def _turned(pixels: np.ndarray, rotation_deg: int) -> np.ndarray:
    """The image turned clockwise by a multiple of 90°."""
    return np.ascontiguousarray(np.rot90(pixels, -(rotation_deg // 90))) if rotation_deg else pixels
