"""The second stage: find the faces of every image and cut out a chip around each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipeline import geometry
from pipeline.batch import NO_PIXELS, FaceBatch, ImageBatch, ImageRecord, Pixels, Status
from pipeline.stages.looks import Box, Detections, Looks, merge
from pipeline.stages.operations import OpenCv, Operations


class DetectModel(NamedTuple):
    """A detector.

    detect_faces: from canvases (b, side, side, 3) uint8 RGB to the faces of each, in canvas pixels.
    batch_size: canvases of a call, at most.
    """

    detect_faces: Callable[[Pixels], Sequence[Detections]]
    batch_size: int


@dataclass(frozen=True, slots=True)
class _Found:
    """The faces of one image, best score first. "Turned" is the decoded image, turned clockwise by rotation_deg."""

    boxes_turned: np.ndarray      # (n, 4) float32, pixels of the turned image
    boxes_xyxy: np.ndarray        # (n, 4) float32, original pixels
    scores: np.ndarray            # (n,) float32
    points: np.ndarray            # (n, 5, 2) float32, original pixels
    turned_to_image: np.ndarray   # (2, 3)
    detect_pass: int
    rotation_deg: int

    def best(self, max_faces: int | None) -> _Found:
        """The same with at most so many faces."""
        return replace(
            self, boxes_turned=self.boxes_turned[:max_faces], boxes_xyxy=self.boxes_xyxy[:max_faces],
            scores=self.scores[:max_faces], points=self.points[:max_faces],
        )

    def record(self, record: ImageRecord, n_found: int, tiles: int) -> ImageRecord:
        """The record of the image, with these faces of n_found in so many looks."""
        n_faces = len(self.scores)
        return replace(
            record, status=Status.OK if n_faces else Status.NO_FACE, detect_pass=self.detect_pass,
            rotation_deg=self.rotation_deg, n_faces=n_faces, faces_truncated=n_faces < n_found, tiles=tiles,
        )


class Detect:
    """Find faces at a fixed input size and cut out their chips.

    few: the model for further looks, which few images need: windows of long pictures, the second pass, turns. The kind
    of a look alone decides, so that it gets a batch of the same shape in every run.
    looks: where to look in an image. nms_iou: joins what several looks find. An image without a face gets a second pass
    at `second_pass_px`, for close-ups whose face is too large for the first.
    With `rotate_retry` it is then tried again, turned by 90, 270 and 180 degrees.

    min_face_px: a box whose shorter side is less is dropped; pixels of the original image.
    max_faces: faces kept per image, best scores first; None keeps all.
    operations: what works on the pixels, in the memory where the model takes its canvases.
    """

    def __init__(
        self,
        model: DetectModel,
        *,
        few: DetectModel,
        looks: Looks,
        nms_iou: float,
        second_pass_px: int | None,
        min_face_px: float,
        max_faces: int | None,
        rotate_retry: bool,
        operations: Operations | None = None,
    ) -> None:
        self._model, self._few = model, few
        self._windows = few if looks.find_px is None else model
        self._looks, self._input_px = looks, looks.input_px
        self._nms_iou = nms_iou
        self._second_pass_px = second_pass_px
        self._min_face_px = min_face_px
        self._max_faces = max_faces
        self._rotate_retry = rotate_retry
        self._operations = operations or OpenCv()

    def __call__(self, batch: ImageBatch) -> FaceBatch:
        batch = self._loaded(batch)
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
        return self._faces(batch, looks, found)

    def _loaded(self, batch: ImageBatch) -> ImageBatch:
        """The batch with the pixels where the operations work."""
        pixels = iter(self._operations.load([
            each for record, each in zip(batch.records, batch.pixels, strict=True) if record.status is Status.OK
        ]))
        return ImageBatch(batch.records, tuple(
            next(pixels) if record.status is Status.OK else NO_PIXELS for record in batch.records
        ))

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
        per_image: dict[int, list[Detections]] = {i: [] for i in looks}
        first = self._model if detect_pass == 1 and not rotation_deg else self._few
        whole = [(i, boxes[0]) for i, boxes in looks.items()]
        windows = [(i, box) for i, boxes in looks.items() for box in boxes[1:]]
        for model, chosen in ((first, whole), (self._windows, windows)):
            for (i, _), detections in zip(
                chosen, self._detected(model, batch, chosen, side_px, rotation_deg), strict=True
            ):
                per_image[i].append(detections)
        for i, of_looks in per_image.items():
            pixels = batch.pixels[i]
            merged = merge(pixels.shape[1::-1], looks[i], of_looks, self._nms_iou)
            faces = self._select(batch.records[i], pixels, merged, detect_pass, rotation_deg)
            if i not in found or len(faces.scores):
                found[i] = faces

    def _detected(
        self, model: DetectModel, batch: ImageBatch, looks: Sequence[tuple[int, Box]], side_px: int, rotation_deg: int
    ) -> Iterator[Detections]:
        """What the model finds in each look at an image, in pixels of the turned image."""
        for start in range(0, len(looks), model.batch_size):
            chunk = looks[start : start + model.batch_size]
            views = [
                self._operations.turned(batch.pixels[i][y1:y2, x1:x2], rotation_deg) for i, (x1, y1, x2, y2) in chunk
            ]
            canvases, canvas_to_look = self._operations.letterbox(views, side_px)
            look_to_turned = geometry.scale_shifts(np.ones(2), np.array([(x1, y1) for _, (x1, y1, _, _) in chunk]))
            matrices = geometry.compose(look_to_turned, canvas_to_look)
            for matrix, (boxes, scores, points) in zip(matrices, model.detect_faces(canvases), strict=True):
                points = geometry.transform(matrix, points).astype(np.float32)
                yield geometry.transform_boxes(matrix, boxes), scores, points

    def _select(
        self,
        record: ImageRecord,
        pixels: np.ndarray,
        detections: Detections,
        detect_pass: int,
        rotation_deg: int,
    ) -> _Found:
        """Clip the boxes to the image, drop the small ones, sort by descending score, then by y1 and x1."""
        boxes_turned, scores, points = detections
        height, width = pixels.shape[:2]
        pixels_to_image = geometry.scale_shift((record.width / width, record.height / height), (0.0, 0.0))
        turned_to_image = geometry.compose(pixels_to_image, geometry.quarter_turn(rotation_deg, width, height))
        turned_wh = (height, width) if rotation_deg in (90, 270) else (width, height)
        boxes_turned = np.clip(boxes_turned, 0, np.array(turned_wh * 2, np.float32))
        boxes = geometry.transform_boxes(turned_to_image, boxes_turned)
        shorter_px = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
        best_first = np.lexsort((boxes[:, 0], boxes[:, 1], -scores))
        kept = best_first[(shorter_px[best_first] >= self._min_face_px) & (shorter_px[best_first] > 0)]
        points = geometry.transform(turned_to_image, points[kept]).astype(np.float32)
        return _Found(boxes_turned[kept], boxes[kept], scores[kept], points, turned_to_image, detect_pass, rotation_deg)

    def _faces(
        self, batch: ImageBatch, looks: Mapping[int, Sequence[Box]], found: Mapping[int, _Found]
    ) -> FaceBatch:
        """The best `max_faces` faces of every image, with their chips."""
        records, each = list(batch.records), [found[i].best(self._max_faces) for i in found]
        for i, best in zip(found, each, strict=True):
            records[i] = best.record(records[i], len(found[i].scores), len(looks[i]))
        counts = np.zeros(len(records), np.int64)
        counts[list(found)] = [len(best.scores) for best in each]
        if not counts.sum():
            return FaceBatch.without_faces(tuple(records))
        chips, chip_to_turned = self._operations.cut_chips(
            [self._operations.turned(batch.pixels[i], best.rotation_deg) for i, best in zip(found, each, strict=True)],
            [best.boxes_turned for best in each],
        )
        turned_to_image = np.repeat(
            np.stack([best.turned_to_image for best in each]), [len(best.scores) for best in each], axis=0
        )
        return FaceBatch(
            records=tuple(records),
            face_counts=counts,
            boxes_xyxy=np.concatenate([best.boxes_xyxy for best in each]),
            scores=np.concatenate([best.scores for best in each]),
            points5=np.concatenate([best.points for best in each]),
            chips=chips,
            chip_to_image=geometry.compose(turned_to_image, chip_to_turned),
        )


def _whole_of(looks: Mapping[int, Sequence[Box]], found: Mapping[int, _Found]) -> dict[int, Sequence[Box]]:
    """The look at the whole, of each image in which no face was found yet."""
    return {i: looks[i][:1] for i, faces in found.items() if not len(faces.scores)}
