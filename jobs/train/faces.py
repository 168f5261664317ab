"""The faces that embedders learn from: found, decoded, aligned, augmented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.evaluate.data import decode_image, point_column, read_batches, read_table
from models.training import CROP_BOX_RATIO, TrainingError, box_of_crop, degrade, occlude, vary_colour
from pipeline import geometry
from pipeline.geometry import CROP_PX, AlignmentTemplate

SOURCE_PX = 144
LEAST_FOUND_PX = 36                   # of the longer side of a face's box; smaller faces show too little
FACES_AT_ONCE = 512                   # in memory while faces are found
FOUND = pa.schema([("image", pa.binary()), ("landmarks", pa.list_(pa.list_(pa.float64())))])
FIVE_POINT_TEMPLATE = np.array(       # the usual ArcFace template (Deng et al., 2019), pixels of the 112×112 crop
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
EYE_JITTER, BOX_JITTER = 0.015, 0.06  # standard deviations over the side of the box
WILD_EYES = 0.2                       # share of the faces with three times the error of the eyes: profiles, glasses


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The 112×112 crop of an image by a 2×3 matrix (our pixel convention), as the align stage makes it."""
    return cv2.warpAffine(image, geometry.for_opencv(matrix), (CROP_PX, CROP_PX), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)


def five_point_matrix(landmarks: np.ndarray) -> np.ndarray:
    """The least-squares similarity, 2×3, from five landmarks (5, 2) to the template (Umeyama, 1991, no mirror)."""
    source, target = landmarks - landmarks.mean(0), FIVE_POINT_TEMPLATE - FIVE_POINT_TEMPLATE.mean(0)
    # In complex numbers a similarity is z ↦ a z + b, and a = Σ conj(source) target / Σ |source|²
    z, w = source @ (1, 1j), target @ (1, 1j)
    a = np.vdot(z, w) / max(np.vdot(z, z).real, 1e-9)
    linear = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return np.column_stack([linear, FIVE_POINT_TEMPLATE.mean(0) - linear @ landmarks.mean(0)])


def jittered_matrix(landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The align stage's matrix for one crop of DATA, with the errors of a detector and a keypointer."""
    box = box_of_crop(SOURCE_PX)
    side = box[2] - box[0]
    centre = box.reshape(2, 2).mean(0) + rng.normal(0, BOX_JITTER * side / 2, 2)
    half = side / 2 * np.exp(rng.normal(0, BOX_JITTER))
    eye_jitter = EYE_JITTER * (3 if rng.random() < WILD_EYES else 1)
    eyes = landmarks[:2] + rng.normal(0, eye_jitter * side, (2, 2))
    return geometry.align_matrix(np.concatenate([centre - half, centre + half]), eyes[0], eyes[1], AlignmentTemplate())


def student_crop(
    image: np.ndarray, landmarks: np.ndarray, mirror: bool, augment: str, rng: np.random.Generator
) -> np.ndarray:
    """One training face: aligned as in the pipeline, perhaps mirrored, recoloured.

    augment: "colour", or "full" to degrade it too and to cover one face in ten.
    """
    crop = warp(image, jittered_matrix(landmarks, rng))
    if mirror:
        crop = np.ascontiguousarray(crop[:, ::-1])
    crop = vary_colour(crop, rng)
    if augment == "colour":
        return crop
    crop = degrade(crop, rng, smallest=0.2)
    return occlude(crop, rng, largest=0.5) if rng.random() < 0.1 else crop


def find_faces(photos: Sequence[Path], finder: Path, found: Path) -> None:
    """Write the faces in photos to a Parquet file: `image` (a crop like those of DATA, WebP) and `landmarks`.

    photos: Parquet files with an `image` column; images that cannot be read are left out. finder: YuNet in ONNX; its
    faces of `LEAST_FOUND_PX` and more with a score of 0.8 or more are taken. Raises TrainingError for another file,
    and when no face is found.
    """
    try:
        yunet = cv2.FaceDetectorYN.create(str(finder), "", (320, 320), score_threshold=0.8)
    except cv2.error as error:
        raise TrainingError(f"{finder} is no YuNet in ONNX: {error.err}") from None
    faces = _cut_faces(photos, yunet)
    with pq.ParquetWriter(found, FOUND) as writer:
        written = 0
        while rows := list(islice(faces, FACES_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(rows, schema=FOUND))
            written += len(rows)
    if not written:
        raise TrainingError(f"{finder} finds no face in DATA's eyes/ and detection/: leave --finder out")


def _cut_faces(photos: Sequence[Path], yunet: Any) -> Iterator[dict[str, object]]:
    for photo in _photos(photos):
        yunet.setInputSize((photo.shape[1], photo.shape[0]))
        faces = cast("np.ndarray | None", yunet.detect(photo)[1])
        for face in faces if faces is not None else ():
            if max(face[2:4]) >= LEAST_FOUND_PX:
                image, landmarks = _cut_face(photo, face)
                yield {"image": image, "landmarks": landmarks}


def _photos(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """The images of Parquet files that can be read, BGR as YuNet and imencode take them."""
    for path in files:
        for batch in read_batches(path, ["image"]):
            for value in batch["image"].to_pylist():
                photo = decode_image(value)
                if photo is not None:
                    yield np.ascontiguousarray(photo[:, :, ::-1])


def _cut_face(photo: np.ndarray, face: np.ndarray) -> tuple[bytes, list[list[float]]]:
    """The crop of one of YuNet's faces (x, y, width, height, five points, score), WebP, and its landmarks."""
    side = CROP_BOX_RATIO * max(face[2:4])
    scale = SOURCE_PX / side
    corner = face[:2] + face[2:4] / 2 - side / 2
    matrix = geometry.scale_shift((scale, scale), (-scale * corner[0], -scale * corner[1]))
    crop = cv2.warpAffine(photo, geometry.for_opencv(matrix), (SOURCE_PX, SOURCE_PX), flags=cv2.INTER_AREA,
                          borderMode=cv2.BORDER_REPLICATE)
    image = cv2.imencode(".webp", crop, [cv2.IMWRITE_WEBP_QUALITY, 95])[1].tobytes()
    return image, geometry.transform(matrix, face[4:14].reshape(5, 2)).tolist()


def blend(faces: np.ndarray, others: np.ndarray, share: float) -> np.ndarray:
    """(1 − share) × faces + share × others, both (n, h, w, 3) uint8."""
    return cv2.addWeighted(
        faces.reshape(len(faces), -1), 1 - share, others.reshape(len(faces), -1), share, 0
    ).reshape(faces.shape)


@dataclass(frozen=True, eq=False)
class Crops:
    """Some of the crops of a Parquet file. rows: their numbers, ascending. named: whether it has their identities."""

    path: Path
    rows: np.ndarray
    named: bool

    def names(self) -> list[str | None]:
        """Who they are; None where unknown."""
        if not self.named:
            return [None] * len(self.rows)
        names: list[str | None] = read_table(self.path, ["identity"])["identity"].take(pa.array(self.rows)).to_pylist()
        return names

    def landmarks(self) -> np.ndarray:
        """Their landmarks, (n, 5, 2). Raises DataError."""
        points = [point_column(table, "landmarks", 5, self.path) for table in self._tables("landmarks")]
        return np.concatenate([np.zeros((0, 5, 2)), *points])

    def images(self) -> Iterator[list[bytes | None]]:
        """Their encoded pixels, some at a time."""
        for table in self._tables("image"):
            yield table["image"].to_pylist()

    def _tables(self, column: str) -> Iterator[pa.Table]:
        first = 0
        for batch in read_batches(self.path, [column]):
            inside = self.rows[slice(*np.searchsorted(self.rows, [first, first + len(batch)]))]
            yield pa.table(batch.take(pa.array(inside - first)))
            first += len(batch)


class Faces:
    """Crops of DATA, decoded once into one file.

    images: (n, 144, 144, 3) uint8 RGB; landmarks: (n, 5, 2); people: (n,) int64 label, −1 where unknown. Images that
    cannot be read, and faces with a landmark outside their crop, are left out; a line counts them.
    """

    def __init__(self, crops: Sequence[Crops], cache: Path) -> None:
        landmarks = np.concatenate([each.landmarks() for each in crops])
        names = [name for each in crops for name in each.names()]
        self._pixels, readable = _decode_once(crops, cache)
        inside = ((landmarks >= 0) & (landmarks <= SOURCE_PX)).all((1, 2))
        if not (readable & inside).all():
            print(f"left out of {len(names)} faces: {(~readable).sum()} that are no image of {SOURCE_PX} px, "
                  f"{(readable & ~inside).sum()} with landmarks outside", flush=True)
        self._rows = np.flatnonzero(readable & inside)
        self.landmarks = landmarks[self._rows]
        self.names = [names[row] for row in self._rows]
        label = {name: i for i, name in enumerate(sorted({n for n in self.names if n is not None}))}
        self.people = np.array([-1 if name is None else label[name] for name in self.names], np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, i: int) -> np.ndarray:
        """The i-th crop, (144, 144, 3) uint8 RGB."""
        pixels: np.ndarray = self._pixels[self._rows[i]]
        return pixels


def _decode_once(crops: Sequence[Crops], cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of all images (n, 144, 144, 3) from the cache file, and which could be read (n,) bool.

    Raises TrainingError when the cache is of another number of images.
    """
    shape = (sum(len(each.rows) for each in crops), SOURCE_PX, SOURCE_PX, 3)
    if not cache.exists():
        temporary = cache.with_suffix(".part")
        pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)

        def decode(i: int, image: bytes | None) -> bool:
            crop = decode_image(image)
            if crop is None or crop.shape != shape[1:]:
                return False
            pixels[i] = crop
            return True

        readable: list[bool] = []
        with ThreadPoolExecutor(2) as pool:     # map takes all that it is given at once
            for images in (images for each in crops for images in each.images()):
                readable += pool.map(decode, range(len(readable), shape[0]), images)
        np.save(cache.with_suffix(".readable.npy"), np.array(readable, bool))
        pixels.flush()
        temporary.replace(cache)
    stored: np.ndarray = np.load(cache, mmap_mode="r")
    if stored.shape != shape:
        raise TrainingError(f"{cache} is of shape {stored.shape}, DATA of {shape}: delete it")
    return stored, np.load(cache.with_suffix(".readable.npy"))


def epoch_order(people: np.ndarray, balanced: bool, rng: np.random.Generator) -> np.ndarray:
    """The rows of one epoch, (n,): every face once, or, if balanced, n draws with the same chance for every person.

    people: (n,) label, −1 where unknown; each unknown face counts as one person.
    """
    if not balanced:
        return rng.permutation(len(people))
    counts = np.bincount(people[people >= 0], minlength=1)
    chance = np.where(people >= 0, 1 / np.maximum(counts[people], 1), 1.0)
    return rng.choice(len(people), len(people), p=chance / chance.sum())
