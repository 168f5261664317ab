"""Find the faces of photos in this process, without Ray, with the stages of jobs.extract."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.extract.stages import DEFAULT_BATCHES, Models, StageConfig, stage_builders
from jobs.options import ArgumentError
from jobs.pages.pictures import FaceView, draw_face, eye_points, locate
from jobs.people.cards import find_card
from jobs.people.files import as_uri
from models.store import EMBEDDING_DIM
from pipeline import geometry
from pipeline.batch import GOOD, FaceBatch, ImageBatch, ImageRecord
from pipeline.boundary import STAGES
from pipeline.output.sink import ModelNames, faces_table
from pipeline.settings import RowSettings
from pipeline.stages.pillow import prepare_pillow
from pipeline.storage.uris import StoreOptions, parse_input_uri


@dataclass(frozen=True, slots=True)
class PhotoFaces:
    """The faces of one photo, best score first.

    rows: as faces/ has them, without the embedding. vectors: (n, dim) float32. views: pictures, if they were asked for.
    """

    record: ImageRecord
    rows: Sequence[Mapping[str, Any]]
    vectors: np.ndarray
    views: Sequence[FaceView]


class PhotoReader:
    """Finds the faces of photos as the rows of an output with these settings and models are made.

    The networks are loaded when photos are read first, side by side, while the photos are decoded. pictures: draw the
    faces too.
    """

    def __init__(self, settings: RowSettings, models: Models, weights: Path, *, pictures: bool = False) -> None:
        prepare_pillow()
        self._config = StageConfig(
            settings, models, batches=replace(DEFAULT_BATCHES["cpu"], images=1), weights=str(weights)
        )
        self._pictures = pictures
        self._stages: dict[str, Future[Any]] = {}

    def __call__(self, photos: Sequence[str]) -> list[PhotoFaces]:
        """One result for every photo, in their order. The status of a record tells whether it could be read."""
        if not photos:
            return []
        with self._loading():
            return self._read(photos)

    def faces_of(self, image: ImageBatch) -> PhotoFaces:
        """The faces of one decoded image."""
        with self._loading():
            return self._faces(image)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Load the networks that are not loaded yet, while the body of the `with` block runs."""
        with ThreadPoolExecutor(len(STAGES)) as threads:
            for name in STAGES[1:]:
                if name not in self._stages:
                    self._stages[name] = threads.submit(stage_builders(self._config)[name], os.cpu_count() or 1, 1)
            yield

    def _read(self, photos: Sequence[str]) -> list[PhotoFaces]:
        by_options: dict[StoreOptions, list[int]] = {}
        for i, photo in enumerate(photos):
            by_options.setdefault(parse_input_uri(photo)[1], []).append(i)
        found: dict[int, PhotoFaces] = {}
        for options, numbers in by_options.items():
            rows = locate([as_uri(photos[i]) for i in numbers], None, options)
            threads = os.cpu_count() or 1
            decode = stage_builders(replace(self._config, store_options=options))["decode"](threads, 1)
            images = (single for batch in decode(rows) for single in batch.singles())
            for i, image in zip(numbers, images, strict=True):
                found[i] = self._faces(image)
        return [found[i] for i in range(len(photos))]

    def _faces(self, image: ImageBatch) -> PhotoFaces:
        found: FaceBatch | None = self._stage("detect")(image) if image.records[0].status in GOOD else None
        if not found:
            record = image.records[0] if found is None else found.records[0]
            return PhotoFaces(record, [], np.zeros((0, EMBEDDING_DIM), np.float32), [])
        chips = self._stage("keypoint")(found)
        crops = self._stage("align")(chips)
        faces: FaceBatch = self._stage("embed")(crops)
        names = ModelNames(**{role: card.identity for role, card in self._config.models.by_role.items()})
        rows = faces_table(faces, names, EMBEDDING_DIM, "float32").drop_columns(["embedding"]).to_pylist()
        views = list(_draw(rows, chips, crops)) if self._pictures else []
        return PhotoFaces(faces.records[0], rows, faces.embeddings, views)

    def _stage(self, name: str) -> Any:
        return self._stages[name].result()


def _draw(rows: Sequence[Mapping[str, Any]], chips: FaceBatch, crops: FaceBatch) -> Iterator[FaceView]:
    for row, chip, chip_to_image, crop in zip(rows, chips.chips, chips.chip_to_image, crops.crops, strict=True):
        eyes = geometry.transform(geometry.invert(chip_to_image), eye_points(row).astype(np.float64)) / len(chip)
        yield draw_face(row, eyes, chip, crop)


def read_photo(photo: str, read_photos: PhotoReader) -> PhotoFaces:
    """The faces of one photo. Raises ArgumentError if it cannot be read."""
    (found,) = read_photos([photo])
    refuse_unread(photo, found.record)
    return found


def refuse_unread(photo: str, record: ImageRecord) -> None:
    """Raises ArgumentError if the photo could not be read."""
    if record.status not in GOOD:
        no_row = "; no beginning of it is an output, so it is no row" if re.fullmatch(".+#.+#[0-9]+", photo) else ""
        raise ArgumentError(f"the photo {photo} cannot be read: {record.status}: {record.error}{no_row}")


def find_models(weights_dir: Path, made_with: Mapping[str, Mapping[str, Any]]) -> Models:
    """The cards of the models that made an output. Raises OutputError."""
    return Models(**{role: find_card(weights_dir, role, model) for role, model in made_with.items()})
