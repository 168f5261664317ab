"""Faces drawn by code, in the layout of DATA: to try the trainings of eyes and embedder without anyone's photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.train.eyes import box_of_points
from jobs.train.faces import SOURCE_PX
from models.training import CROP_BOX_RATIO
from pipeline import geometry

CANVAS_PX = 224
HALF_FACE_PX = 56                     # half of a face's width on the canvas, before the view's scale
_SUBPIXEL_BITS = 4                    # OpenCV draws at sixteenths of a pixel

Projection = Callable[[np.ndarray], np.ndarray]
"""From points (n, 3) of a person to pixels (n, 2)."""


@dataclass(frozen=True, slots=True)
class Person:
    """What all drawings of one person share. Lengths are in halves of the face's width; colours RGB."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    shape: np.ndarray                 # (68, 3) x to the right, y down, z towards the viewer; 300-W's order
    brow_px: int
    hair_top: float
    glasses: bool


def draw_person(rng: np.random.Generator) -> Person:
    """A new person."""
    skin = np.array([255, 215, 185]) * rng.uniform(0.35, 1.0) + rng.uniform(-12, 12, 3)
    return Person(
        skin=skin.clip(20, 255), hair=rng.uniform(15, 190) * np.array([1, 0.8, 0.6]) * rng.uniform(0.7, 1.1, 3),
        iris=rng.uniform(30, 150, 3), lips=(skin * (0.95, 0.6, 0.6)).clip(10, 255) + rng.uniform(-10, 10, 3),
        shape=_shape(rng), brow_px=int(rng.integers(2, 7)), hair_top=rng.uniform(0.05, 0.35),
        glasses=rng.random() < 0.15,
    )


def _shape(rng: np.random.Generator) -> np.ndarray:
    """The 68 points of a face that looks at the viewer, mouth closed."""
    turn = np.linspace(-0.06, 1.06, 17) * np.pi
    jaw = np.stack([-np.cos(turn), rng.uniform(1.05, 1.4) * np.sin(turn), 0 * turn], 1)
    eye_x, eye_y, tilt = rng.uniform(0.4, 0.52), rng.uniform(-0.12, 0.02), rng.uniform(-0.05, 0.05)
    eye_half_wide, eye_half_high = rng.uniform(0.15, 0.22), rng.uniform(0.05, 0.1)
    eye = np.array([(-1, tilt), (-0.4, -1), (0.4, -1), (1, -tilt), (0.4, 1), (-0.4, 1)])
    left_eye = np.array([-eye_x, eye_y]) + eye * (eye_half_wide, eye_half_high)
    bow = np.linspace(-1, 1, 5)
    brow_y, brow_tilt = eye_y - rng.uniform(0.16, 0.3), rng.uniform(-0.08, 0.08)
    left_brow = np.stack([-eye_x + 0.26 * bow, brow_y + brow_tilt * bow + 0.06 * bow**2], 1)
    nose_y, nose_half = rng.uniform(0.32, 0.5), rng.uniform(0.13, 0.24)
    ridge = np.stack([np.zeros(4), np.linspace(eye_y, nose_y - 0.08, 4), np.linspace(0.25, 0.5, 4)], 1)
    base = np.stack([nose_half * bow, nose_y - 0.04 * bow**2, 0.35 - 0.1 * bow**2], 1)
    mouth_y, mouth_half, lip = nose_y + rng.uniform(0.22, 0.32), rng.uniform(0.28, 0.45), rng.uniform(0.05, 0.12)
    across, inner = np.linspace(-1, 1, 7), np.linspace(-0.8, 0.8, 5)
    outer = [*zip(across, across**2 - 1, strict=True), *zip(across[-2:0:-1], 1 - across[-2:0:-1] ** 2, strict=True)]
    line = [*((x, 0.0) for x in inner), *((x, 0.0) for x in inner[-2:0:-1])]
    mouth = np.array([0, mouth_y]) + np.array([*outer, *line]) * (mouth_half, lip)
    mirror = np.array([-1, 1])
    right_eye, right_brow = (left_eye * mirror)[[3, 2, 1, 0, 5, 4]], (left_brow * mirror)[::-1]
    flat = [_raised(part, 0.2) for part in (left_brow, right_brow)]
    eyes = [_raised(part, 0.15) for part in (left_eye, right_eye)]
    return np.concatenate([jaw, *flat, ridge, base, *eyes, _raised(mouth, 0.25)])


def _raised(points: np.ndarray, z: float) -> np.ndarray:
    return np.column_stack([points, np.full(len(points), z)])


def draw_face(person: Person, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A drawing of the person, (224, 224, 3) uint8 RGB, and its 68 points in pixels; pose and light are drawn."""
    shape = person.shape.copy()
    shape[[61, 62, 63, 65, 66, 67, 55, 56, 57, 58, 59], 1] += np.repeat([0, rng.uniform(0, 0.14)], [3, 8])
    project = _view(rng)
    points = project(shape)
    image = np.full((CANVAS_PX, CANVAS_PX, 3), rng.uniform(30, 225, 3), np.uint8)
    _draw_head(image, person, points, project)
    _draw_features(image, person, points)
    light = rng.uniform(0.6, 1.2) * (1 + np.linspace(-1, 1, CANVAS_PX, dtype=np.float32) * rng.uniform(-0.25, 0.25))
    noise = rng.uniform(1, 8) * rng.standard_normal(image.shape, np.float32)
    noisy = image * light[None, :, None] + noise
    return noisy.clip(0, 255).astype(np.uint8), points


def _view(rng: np.random.Generator) -> Projection:
    """A pose: turned to a side, up or down, tilted, scaled and shifted."""
    yaw, pitch, roll = rng.normal(0, 0.25), rng.normal(0, 0.12), rng.normal(0, 0.12)
    side = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0]])
    nod = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, 0, 1]])
    tilt = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    matrix = HALF_FACE_PX * rng.uniform(0.85, 1.1) * tilt @ side @ nod
    middle = CANVAS_PX / 2 + rng.normal(0, 4, 2) - (0, 0.1 * CANVAS_PX)
    return lambda points: points @ matrix.T + middle


def _draw_head(image: np.ndarray, person: Person, points: np.ndarray, project: Projection) -> None:
    """Hair, neck and skin."""
    around = np.linspace(0, 2 * np.pi, 60)
    for width, top, colour in ((1.18, 1.15 + person.hair_top, person.hair), (1.0, 0.95, person.skin)):
        above = np.column_stack([width * np.cos(around), -top * np.abs(np.sin(around)), 0 * around])
        _fill(image, project(above[:31]), colour)
    neck = np.array([(-0.45, 0.7, -0.2), (0.45, 0.7, -0.2), (0.5, 3, -0.2), (-0.5, 3, -0.2)])
    _fill(image, project(neck), 0.8 * person.skin)
    _fill(image, points[:17], person.skin)


def _draw_features(image: np.ndarray, person: Person, points: np.ndarray) -> None:
    """Brows, eyes, nose and mouth."""
    for brow in (points[17:22], points[22:27]):
        _line(image, brow, 0.6 * person.hair, person.brow_px)
    for eye in (points[36:42], points[42:48]):
        _fill(image, eye, np.array([240, 240, 240]))
        centre, radius = eye.mean(0), 0.55 * np.linalg.norm(eye[1] - eye[5]) + 1
        for size, colour in ((radius, person.iris), (0.45 * radius, np.zeros(3))):
            cv2.circle(image, _fixed(centre), round(size * 2**_SUBPIXEL_BITS), colour.tolist(), -1, cv2.LINE_AA,
                       _SUBPIXEL_BITS)
        _line(image, eye[:4], 0.3 * person.skin, 2)
        if person.glasses:
            cv2.circle(image, _fixed(centre), round(16 * 2**_SUBPIXEL_BITS), (25, 25, 25), 2, cv2.LINE_AA,
                       _SUBPIXEL_BITS)
    _line(image, points[27:31], 0.85 * person.skin, 3)
    _line(image, points[31:36], 0.6 * person.skin, 2)
    _fill(image, points[48:60], person.lips)
    _fill(image, points[60:68], 0.3 * person.lips)
    _line(image, points[60:65], 0.4 * person.lips, 2)


def _fixed(points: np.ndarray) -> Any:
    """Points in OpenCV's fixed-point pixels, whose centres are whole numbers."""
    return np.rint((points - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)


def _fill(image: np.ndarray, polygon: np.ndarray, colour: np.ndarray) -> None:
    cv2.fillPoly(image, [_fixed(polygon)], colour.tolist(), cv2.LINE_AA, _SUBPIXEL_BITS)


def _line(image: np.ndarray, points: np.ndarray, colour: np.ndarray, px: int) -> None:
    cv2.polylines(image, [_fixed(points)], False, colour.tolist(), px, cv2.LINE_AA, _SUBPIXEL_BITS)


def write_drawn_data(folder: Path, *, people: int = 60, images: int = 12, seed: int = 7) -> None:
    """Write `identities/` and `eyes/` as models/README.md describes DATA; a fifth of the people is for validation."""
    rng = np.random.default_rng(seed)
    drawn = []
    for number in range(people):
        person = draw_person(rng)
        drawn.append([(f"person {number}", *draw_face(person, rng)) for _ in range(images)])
    for part, faces in (("val", drawn[: people // 5]), ("train", drawn[people // 5 :])):
        rows = [face for of_person in faces for face in of_person]
        names = {"identities": "train-0" if part == "train" else part, "eyes": part}
        for kind, table in (("identities", _identities(rows)), ("eyes", _eyes(rows))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(dict(table)), folder / kind / f"{names[kind]}.parquet")


def _eyes(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Mapping[str, list[Any]]:
    return {"image": [_encoded(image) for _, image, _ in rows], "points": [points.tolist() for *_, points in rows]}


def _identities(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Mapping[str, list[Any]]:
    """Crops of 144 px about the faces' boxes, with five landmarks."""
    table: dict[str, list[Any]] = {"identity": [], "image": [], "landmarks": []}
    for name, image, points in rows:
        x1, y1, x2, y2 = box_of_points(points)
        scale = SOURCE_PX / (CROP_BOX_RATIO * max(x2 - x1, y2 - y1))
        shift = SOURCE_PX / 2 - scale * (x1 + x2) / 2, SOURCE_PX / 2 - scale * (y1 + y2) / 2
        matrix = geometry.scale_shift((scale, scale), shift)
        crop = cv2.warpAffine(image, geometry.for_opencv(matrix), (SOURCE_PX, SOURCE_PX), flags=cv2.INTER_AREA,
                              borderMode=cv2.BORDER_REPLICATE)
        five = np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])
        table["identity"].append(name)
        table["image"].append(_encoded(crop))
        table["landmarks"].append(geometry.transform(matrix, five).tolist())
    return table


def _encoded(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
