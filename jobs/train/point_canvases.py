"""Faces labelled with five points, and canvases full of them: what `jobs.train points` learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.evaluate.data import DataError, decode_image, point_column, read_table
from jobs.train.agree_eyes import held_out
from jobs.train.eyes import box_of_points
from jobs.train.label_eyes import HARD_SOURCES, SEEN_SCORE, kept_face, kept_matrix
from models.consensus import label_weights
from models.eye_layout import FACE_PX, MIRRORED_FIVE
from models.training import TrainingError, degrade, occlude, vary_colour
from pipeline import geometry

FIVE_OF_68 = (30, 48, 54)                  # nose tip and mouth corners of 300-W; its eyes are 36 to 47
PHOTO_TIMES, HARD_TIMES, HUMAN_TIMES = 2.5, 2.0, 3.0     # how often faces are drawn: of photos, hard, with people's
TURNED = 0.25                              # eyes closer than that, over the box's side, are of a turned face
LINE_APART = 0.15                          # eyes at least so far apart say how a face is turned
MAX_OFF = 0.12                             # box sides: further from the labels the teacher saw another face
TEACHER_BATCH = 32
GRIDS, GRID_SHARES = (2, 3, 4, 5, 6, 8, 12), (0.25, 0.25, 0.2, 0.1, 0.1, 0.05, 0.05)    # cells along a canvas
BOX_OF_CELL = (0.35, 0.62)                 # longer side of a face's box over its cell
ROLL_DEG, WIDE_ROLL, ANY_ROLL = 12.0, (0.2, 60.0), 0.05      # normal; share, to how many degrees; share, full circle
SHARP = 0.45                               # of a cell: faces whose stored box is shorter are not drawn into it
COVERED, SMALLEST = 0.1, 0.35

Teacher = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Kept faces to points (n, 5, 2), boxes and scores, as `eye_teachers.FivePoints` gives them."""


@dataclass(frozen=True)
class PointFaces:
    """Labelled faces: encoded images, boxes (n, 4) and points (n, 5, 2) in their pixels, and weights (n, 5).

    often: (n,) how often each is drawn. held_out: (n,) bool.
    """

    images: Sequence[bytes]
    boxes: np.ndarray
    points: np.ndarray
    weights: np.ndarray
    often: np.ndarray
    held_out: np.ndarray

    def take(self, rows: np.ndarray) -> PointFaces:
        """Some of the faces, rows (k,) int."""
        return PointFaces([self.images[i] for i in rows], *(
            getattr(self, name)[rows] for name in ("boxes", "points", "weights", "often", "held_out")
        ))

    def joined(self, other: PointFaces) -> PointFaces:
        """These faces and the others."""
        return PointFaces([*self.images, *other.images], *(
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("boxes", "points", "weights", "often", "held_out")
        ))


def agreed_faces(labels: Path, teacher: Teacher, cache: Path) -> PointFaces:
    """Faces whose eyes are what several networks agree on (`agree-eyes`), nose and mouth what the teacher says.

    cache: a file that keeps what the teacher said. Faces with people's points are left out: see `annotated_faces`.
    """
    table = read_table(labels, ["source", "image", "box", "points", "differences", "whole", "held_out"])
    table = table.filter([not whole for whole in table["whole"].to_pylist()])

    def column(name: str, *shape: int) -> np.ndarray:
        values: np.ndarray = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(table), *shape).astype(np.float64)

    images, boxes, differences = table["image"].to_pylist(), column("box", 4), column("differences", 2)
    eyes = column("points", 2, 6, 2).mean(2)
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.with_suffix(".part").open("wb") as file:
            np.save(file, taught_points(images, boxes, eyes, teacher))
        cache.with_suffix(".part").replace(cache)
    said = np.load(cache)                                                  # (n, 6, 2): five points; spread and score
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    off = np.linalg.norm(said[:, :2] - eyes, axis=2).max(1) / sides
    seen = (off < MAX_OFF) & (said[:, 5, 1] > SEEN_SCORE)
    others = np.repeat(label_weights(said[:, 5, :1]) * seen[:, None], 3, 1)
    weights = np.concatenate([label_weights(differences), others], 1)
    apart = np.linalg.norm(eyes[:, 1] - eyes[:, 0], axis=1) / sides
    source = np.array(table["source"].to_pylist())
    often = np.where(source == "wider", PHOTO_TIMES, 1.0) * np.where(apart < TURNED, HARD_TIMES, 1.0)
    often = often * np.where(np.isin(source, HARD_SOURCES), HARD_TIMES, 1.0)
    return PointFaces(images, boxes, np.concatenate([eyes, said[:, 2:5]], 1), weights, often,
                      table["held_out"].to_numpy(zero_copy_only=False))


def taught_points(images: Sequence[bytes], boxes: np.ndarray, eyes: np.ndarray, teacher: Teacher) -> np.ndarray:
    """What the teacher says of upright faces, (n, 6, 2), image pixels: five points, the mean of face and mirrored face.

    The last row is how far the two are apart, in longer box sides, and the teacher's score.
    """
    said = np.zeros((len(images), 6, 2))
    for start in range(0, len(images), TEACHER_BATCH):
        rows = range(start, min(start + TEACHER_BATCH, len(images)))
        matrices = np.stack([kept_matrix(boxes[i], _turn_deg(boxes[i], eyes[i])) for i in rows])
        faces = [kept_face(_pixels(images[i]), matrix) for i, matrix in zip(rows, matrices, strict=True)]
        straight, _, scores = teacher(faces)
        mirrored, _, other_scores = teacher([np.ascontiguousarray(face[:, ::-1]) for face in faces])
        mirrored = mirrored[:, MIRRORED_FIVE] * (-1, 1) + (FACE_PX, 0)
        back = geometry.invert(matrices)
        said[start : rows.stop, :5] = geometry.transform(back, (straight + mirrored) / 2)
        apart = np.linalg.norm(straight - mirrored, axis=2).mean(1) / (FACE_PX / 2)
        said[start : rows.stop, 5] = np.stack([apart, (scores + other_scores) / 2], 1)
    return said


def _turn_deg(box: np.ndarray, eyes: np.ndarray) -> float:
    line = eyes[1] - eyes[0]
    side = (box[2:] - box[:2]).max()
    return float(np.degrees(np.arctan2(line[1], line[0]))) if np.linalg.norm(line) > LINE_APART * side else 0.0


def annotated_faces(path: Path) -> PointFaces:
    """The faces of eyes/train.parquet, with people's points. Raises DataError."""
    table = read_table(path, ["image", "points"])
    all68 = point_column(table, "points", 68, path)
    good = np.flatnonzero(np.isfinite(all68).all((1, 2)) & (np.ptp(all68, axis=1) > 0).all(1))
    if not len(good):
        raise DataError(f"{path} has no face with 68 points")
    all68, images = all68[good], table["image"].take(good).to_pylist()
    points = np.concatenate([
        all68[:, 36:42].mean(1, keepdims=True), all68[:, 42:48].mean(1, keepdims=True), all68[:, FIVE_OF_68]
    ], 1)
    n = len(good)
    return PointFaces(images, np.stack([box_of_points(each) for each in all68]), points, np.ones((n, 5)),
                      np.full(n, HUMAN_TIMES), np.array([held_out(image) for image in images], bool))


class Canvases:
    """Square canvases, each a grid of faces at one size, rolled, mirrored, covered and degraded at random.

    Raises TrainingError without a face.
    """

    def __init__(self, faces: PointFaces, side_px: int, seed: int) -> None:
        if not len(faces.images):
            raise TrainingError("there is no face to train on, or none is held out to choose by")
        self._faces, self._side_px, self._seed = faces, side_px, seed
        self._stored_px = (faces.boxes[:, 2:] - faces.boxes[:, :2]).max(1)

    def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A canvas (S, S, 3) uint8 RGB, and the boxes (f, 4), points (f, 5, 2) and weights (f, 5) of its faces.

        A function of the number.
        """
        rng = np.random.default_rng((self._seed, number))
        cells = int(rng.choice(GRIDS, p=GRID_SHARES))
        side = self._side_px // cells
        canvas = np.full((self._side_px, self._side_px, 3), geometry.LETTERBOX_GREY, np.uint8)
        boxes, points, weights = [], [], []
        often = self._faces.often * (self._stored_px >= min(SHARP * side, self._stored_px.max()))
        rows = rng.choice(len(often), cells * cells, p=often / often.sum())
        for place, row in enumerate(rows):
            pixels, box, five, weight = self._face(int(row), side, rng)
            left, top = place % cells * side, place // cells * side
            canvas[top : top + side, left : left + side] = pixels
            boxes.append(box + np.array([left, top, left, top]))
            points.append(five + np.array([left, top]))
            weights.append(weight)
        return canvas, np.stack(boxes), np.stack(points), np.stack(weights)

    def _face(
        self, row: int, side: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A face in a cell: pixels (side, side, 3), its box, its points and their weights."""
        faces = self._faces
        pixels, box = _pixels(faces.images[row]), faces.boxes[row]
        points, weights = faces.points[row], faces.weights[row]
        if rng.random() < 0.5:
            width = pixels.shape[1]
            pixels = np.ascontiguousarray(pixels[:, ::-1])
            box = np.array([width - box[2], box[1], width - box[0], box[3]])
            points, weights = points[MIRRORED_FIVE] * (-1, 1) + (width, 0), weights[MIRRORED_FIVE]
        box_px = min(rng.uniform(*BOX_OF_CELL) * side, self._stored_px[row])       # enlarged faces are blurred
        matrix = _placed(box, _roll_deg(rng), box_px, side, rng)
        cell = degrade(vary_colour(kept_face(pixels, matrix, side), rng), rng, SMALLEST)
        if rng.random() < COVERED:
            cell = occlude(cell, rng, 0.5)
        middle = geometry.transform(matrix, ((box[:2] + box[2:]) / 2)[None])[0]
        half = (box[2:] - box[:2]) / 2 * np.hypot(*matrix[0, :2])
        return cell, np.concatenate([middle - half, middle + half]), geometry.transform(matrix, points), weights


def _roll_deg(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < WIDE_ROLL[0]:
        return float(rng.uniform(-WIDE_ROLL[1], WIDE_ROLL[1]))
    return float(rng.uniform(-180, 180) if kind > 1 - ANY_ROLL else rng.normal() * ROLL_DEG)


def _placed(box: np.ndarray, roll_deg: float, box_px: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """The 2×3 similarity that rolls a face clockwise and puts its box, box_px long, about the middle of a cell."""
    scale = box_px / (box[2:] - box[:2]).max()
    cos, sin = scale * np.cos(np.radians(roll_deg)), scale * np.sin(np.radians(roll_deg))
    linear = np.array([[cos, -sin], [sin, cos]])
    middle = side / 2 + rng.uniform(-0.15, 0.15, 2) * side
    return np.column_stack([linear, middle - linear @ ((box[:2] + box[2:]) / 2)])


def _pixels(image: bytes) -> np.ndarray:
    pixels = decode_image(image)
    if pixels is None:
        raise TrainingError("an image of the labels cannot be read")
    return np.ascontiguousarray(pixels)
