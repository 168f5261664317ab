"""Find the images to erase: by name, by a manifest, or by a similar face."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.command import say
from jobs.extract.stages import local_weights
from jobs.options import ArgumentError
from jobs.people.files import as_uri
from jobs.people.photos import PhotoFaces, PhotoReader, find_models, read_photo
from models.store import WeightCard
from pipeline.input.manifest import read_manifest
from pipeline.output import ledger
from pipeline.settings import RowSettings
from pipeline.storage import Storage
from pipeline.storage.uris import absolute, is_local, local_path, parse_input_uri

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
    models = find_models(weights_dir, made_with["models"])
    read_photos = PhotoReader(RowSettings.of_output(made_with["settings"]), models, weights_dir)
    faces = read_photo(arguments.like, read_photos)
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


def default_min_cosine(embedder: WeightCard) -> float:
    """The card's cosine at a false positive rate of 0.001. Raises ArgumentError if the card has none."""
    try:
        return embedder.thresholds[DEFAULT_FALSE_POSITIVE_RATE]
    except KeyError:
        raise ArgumentError(f"the embedder {embedder.name} has no threshold in its card; give --min-cosine") from None


def choose_face(photo: str, faces: PhotoFaces, number: int | None) -> np.ndarray:
    """The unit vector (dim,) float32 of face `number`, or of the only face. Raises ArgumentError."""
    if not faces.rows:
        raise ArgumentError(f"--like {photo}: no face was found in it. Use a photo that shows the face larger")
    if number is None and len(faces.rows) > 1:
        boxes = "\n".join(
            "  --face {face_index}: score {det_score:.2f}, x {x1:.0f} to {x2:.0f}, y {y1:.0f} to {y2:.0f}".format(**row)
            for row in faces.rows
        )
        raise ArgumentError(f"--like {photo}: {len(faces.rows)} faces were found in it. Choose one:\n{boxes}")
    if number is not None and not 0 <= number < len(faces.rows):
        raise ArgumentError(f"--face {number}: the faces of {photo} are 0 to {len(faces.rows) - 1}")
    vector: np.ndarray = faces.vectors[number or 0]
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
