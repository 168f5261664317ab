"""Find the images to erase: by name, by a manifest, or by a similar face."""

from __future__ import annotations

import argparse
import codecs
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.command import say
from jobs.extract.stages import local_weights
from jobs.options import ArgumentError
from jobs.people.files import as_uri, place_of
from jobs.people.photos import PhotoFaces, PhotoReader, find_models, read_photo
from models.store import WeightCard
from pipeline.input.manifest import is_manifest, is_manifest_folder, read_manifest, read_manifest_folder
from pipeline.input.names import spellings
from pipeline.output import ledger
from pipeline.settings import RowSettings
from pipeline.stages.headers import sniff_format
from pipeline.storage import Storage
from pipeline.storage.uris import absolute, is_local, local_path, parse_input_uri

Finder = Callable[[Storage], pa.Table]

DEFAULT_FALSE_POSITIVE_RATE = "0.001"
_BEGINNING = 1 << 16  # bytes of a file that tell whether it is text
_READ_THREADS = 4     # a part has up to 110 MB


def finder(arguments: argparse.Namespace, made_with: Mapping[str, Any]) -> Finder:
    """A function that finds the images in an output. It returns a table of uri and cosine, each uri once.

    made_with: the content of output.json. The photo of --like is read and embedded here, before the lease is taken,
    because that is slow and can be refused.
    """
    if arguments.like is not None:
        return similar_finder(arguments, made_with)
    uris = pa.array(map(as_uri, arguments.uri), pa.string()) if arguments.uri else read_uris(arguments.uris)
    def find(storage: Storage) -> pa.Table:
        known = as_in_output(storage, uris.unique().to_pylist())
        return pa.table({"uri": pa.array(known, pa.string()), "cosine": pa.nulls(len(known), pa.float32())})

    return find


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
    path = absolute(local_path(path)) if is_local(path) else path
    if is_manifest_folder(path) and Path(path).is_dir():
        pieces = list(read_manifest_folder(path, options))
    else:
        refuse_no_list(manifest, path)
        pieces = list(read_manifest(path, options))
    if without_uri := sum(nameless for _, nameless in pieces):
        say(f"{without_uri:,} rows of {manifest} have no uri")
    return pa.chunked_array([chunk for table, _ in pieces for chunk in table["uri"].chunks], pa.string())


def as_in_output(storage: Storage, uris: Sequence[str]) -> list[str]:
    """The uris, each in the Unicode forms in which the output has it; as it is if it has none."""
    forms = {uri: spellings(uri) for uri in uris if not uri.isascii()}
    if not forms:
        return list(uris)
    some = pa.array({form for each in forms.values() for form in each}, pa.string())
    known = set(ledger.read_ledger(storage, ("uri",), only=some)["uri"].to_pylist())
    found = ([form for form in forms.get(uri, ()) if form in known] or [uri] for uri in uris)
    return list(dict.fromkeys(form for each in found for form in each))


def refuse_no_list(manifest: str, path: str) -> None:
    """Raises ArgumentError for a file without the name of a list that is no text: its bytes would be read as names."""
    if is_manifest(path):
        return
    storage, name = place_of(manifest)
    with suppress(OSError), storage.open(name) as file:       # reading the list meets the same
        beginning = file.read(_BEGINNING)
        is_text = b"\0" not in beginning or beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if sniff_format(beginning) or not is_text:
            raise ArgumentError(f"--uris {manifest} is no list of images; --uri names images, --like a photo")


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
