"""Find the images to erase: by name, by a manifest, or by a similar face."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.command import say
from jobs.extract.stages import DEFAULT_BATCHES, Models, StageConfig, local_weights, stage_builders
from jobs.options import ArgumentError
from models.store import WeightCard, read_card
from pipeline.batch import GOOD, FaceBatch, ImageRecord, TodoRow
from pipeline.boundary import STAGES
from pipeline.errors import OutputError
from pipeline.input.manifest import read_manifest
from pipeline.output import ledger
from pipeline.settings import RowSettings
from pipeline.storage import Storage
from pipeline.storage.uris import absolute, is_local, local_path, local_uri, parse_input_uri

Finder = Callable[[Storage], pa.Table]

DEFAULT_FALSE_POSITIVE_RATE = "0.001"
_READ_THREADS = 4     # a part has up to 110 MB


def finder(arguments: argparse.Namespace, made_with: Mapping[str, Any]) -> Finder:
    """A function that finds the images in an output. It returns a table of uri and cosine, each uri once.

    made_with: the content of output.json. The photo of --like is read and embedded here, before the lease is taken,
    because that is slow and can be refused.
    """
    if arguments.like is not None:
        return similar_finder(arguments, made_with)
    uris = pa.array(map(as_uri, arguments.uri), pa.string()) if arguments.uri else read_uris(arguments.uris)
    table = pa.table({"uri": uris.unique()})
    table = table.append_column("cosine", pa.nulls(len(table), pa.float32()))
    return lambda storage: table


def similar_finder(arguments: argparse.Namespace, made_with: Mapping[str, Any]) -> Finder:
    """A function that finds the images with a face similar to that of --like."""
    weights_dir = local_weights(arguments.weights)
    models = Models(**{role: find_card(weights_dir, role, model) for role, model in made_with["models"].items()})
    faces = probe_faces(arguments.like, RowSettings.of_output(made_with["settings"]), weights_dir, models)
    vector = choose_face(arguments.like, faces, arguments.face)
    min_cosine = arguments.min_cosine
    if min_cosine is None:
        min_cosine = default_min_cosine(models.embedder)
    say(f"images with a face of cosine {min_cosine:.3f} or more")
    return lambda storage: images_like(storage, vector, min_cosine)


def read_uris(manifest: str) -> pa.ChunkedArray:
    """The uris of a manifest. Prints how many rows have none."""
    path, options = parse_input_uri(manifest)
    pieces = list(read_manifest(absolute(local_path(path)) if is_local(path) else path, options))
    if without_uri := sum(nameless for _, nameless in pieces):
        say(f"{without_uri:,} rows of {manifest} have no uri")
    return pa.chunked_array([chunk for table, _ in pieces for chunk in table["uri"].chunks], pa.string())


def as_uri(name: str) -> str:
    """An argument as the column uri has it: a relative path is made absolute. Raises ArgumentError."""
    if is_local(name):
        path = local_path(name)
        return local_uri(path if path.startswith("/") else absolute(path))
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{name!r} is not UTF-8, so no object has this name") from None
    return parse_input_uri(name)[0]


def find_card(weights_dir: Path, role: str, made_with: Mapping[str, Any]) -> WeightCard:
    """The card of the model that made an output. Its name may have changed. Raises OutputError."""
    names = sorted(path.stem.removeprefix(f"{role}-") for path in weights_dir.glob(f"{role}-*.json"))
    for name in names:
        card = read_card(weights_dir, role, name)
        if card.fingerprint() == made_with:
            return card
    raise OutputError(
        f"the output was made with another {role}, {made_with['architecture']['network']}@"
        f"{made_with['tensors_sha256'][:12]}, than those in {weights_dir} ({', '.join(names) or 'none'}). Vectors of "
        "two embedders cannot be compared. Name the folder of the right one with --weights"
    )


def default_min_cosine(embedder: WeightCard) -> float:
    """The card's cosine at a false positive rate of 0.001. Raises ArgumentError if the card has none."""
    try:
        return embedder.thresholds[DEFAULT_FALSE_POSITIVE_RATE]
    except KeyError:
        raise ArgumentError(f"the embedder {embedder.name} has no threshold in its card; give --min-cosine") from None


def probe_faces(photo: str, settings: RowSettings, weights_dir: Path, models: Models) -> FaceBatch:
    """The faces of a photo, made as those of the output. Raises ArgumentError if the photo cannot be read."""
    one_image = replace(DEFAULT_BATCHES["cpu"], detect=1, images=1)
    config = StageConfig(
        settings, models, batches=one_image, store_options=parse_input_uri(photo)[1], weights=str(weights_dir)
    )
    builders, threads = stage_builders(config), os.cpu_count() or 1
    (batch,) = builders["decode"](threads, 1)([TodoRow(as_uri(photo))])
    for name in STAGES[1:]:
        refuse_unread(photo, batch.records[0])
        batch = builders[name](threads, 1)(batch)
    refuse_unread(photo, batch.records[0])
    return cast(FaceBatch, batch)


def refuse_unread(photo: str, record: ImageRecord) -> None:
    """Raises ArgumentError if the photo could not be processed."""
    if record.status not in GOOD:
        raise ArgumentError(f"--like {photo}: {record.status}: {record.error}")


def choose_face(photo: str, faces: FaceBatch, number: int | None) -> np.ndarray:
    """The unit vector (dim,) float32 of face `number`, or of the only face. Raises ArgumentError."""
    if not len(faces):
        raise ArgumentError(f"--like {photo}: no face was found in it. Use a photo that shows the face larger")
    if number is None and len(faces) > 1:
        boxes = "\n".join(
            f"  --face {i}: score {score:.2f}, x {box[0]:.0f} to {box[2]:.0f}, y {box[1]:.0f} to {box[3]:.0f}"
            for i, (box, score) in enumerate(zip(faces.boxes_xyxy, faces.scores, strict=True))
        )
        raise ArgumentError(f"--like {photo}: {len(faces)} faces were found in it. Choose one:\n{boxes}")
    if number is not None and not 0 <= number < len(faces):
        raise ArgumentError(f"--face {number}: the faces of {photo} are 0 to {len(faces) - 1}")
    vector: np.ndarray = faces.embeddings[number or 0]
    return vector


def images_like(storage: Storage, vector: np.ndarray, min_cosine: float) -> pa.Table:
    """The images with a face of at least this cosine to the unit vector: uri, and the highest cosine."""

    def search(name: str) -> pa.Table:
        with storage.open(f"{ledger.FACES}/{name}.parquet") as file:
            faces = pq.read_table(file, columns=["uri", "embedding"])
        vectors = faces["embedding"].combine_chunks().flatten().to_numpy().reshape(len(faces), len(vector))
        cosines = pa.array(vectors.astype(np.float32) @ vector, pa.float32())
        return pa.table({"uri": faces["uri"], "cosine": cosines}).filter(pc.greater_equal(cosines, min_cosine))

    empty = pa.table({"uri": pa.array([], pa.string()), "cosine": pa.array([], pa.float32())})
    with ThreadPoolExecutor(_READ_THREADS) as threads:
        found = pa.concat_tables([empty, *threads.map(search, ledger.committed_parts(storage))])
    return found.group_by("uri").aggregate([("cosine", "max")]).rename_columns(["uri", "cosine"])
