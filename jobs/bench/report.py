"""`jobs.bench report`: the page of an output with many faces: time to make it, its size, and its first paint."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from jobs.bench.browser import measure_paint
from jobs.bench.people import PART_IMAGES, command, measure, person_vectors
from jobs.demo import demo_photos
from jobs.extract.stages import read_models
from jobs.options import DEFAULT_MODELS
from jobs.people.photos import PhotoReader
from models.store import DEFAULT_WEIGHTS_DIR, EMBEDDING_DIM
from pipeline.batch import FaceBatch, ImageRecord
from pipeline.output import claim, ledger
from pipeline.output.sink import ModelNames, faces_table, images_table
from pipeline.people.likeness import unit
from pipeline.settings import RowSettings, fingerprinted
from pipeline.storage import open_storage

PHOTO_PX = 640          # longest side of a copy
NOISE = 16              # of 255; so that no two pictures are packed alike
SPREAD = 0.9            # see `jobs.bench people`


class Found(NamedTuple):
    """A photo of the demo at the size of its copies, and its faces in pixels of it."""

    pixels: np.ndarray
    boxes_xyxy: np.ndarray
    eye_points: np.ndarray
    scores: np.ndarray


def bench_report(faces: int, seed: int, folder: Path | None, rounds: int) -> None:
    """Write photos and their output, make the page in new processes, open it, and print time, memory and size.

    folder: keeps photos and output, and has them from before; None: a temporary one.
    """
    with ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        output, page = folder / "out", folder / "report.html"
        if not (output / claim.OUTPUT_JSON).exists():
            write_copies(folder / "photos", output, faces, seed)
        print("| round | seconds to make | peak memory, MiB | page, MB | first paint, s | all there, s |")
        print("|---|---|---|---|---|---|")
        for i in range(rounds):
            seconds, mib, _ = measure(command("jobs.report.__main__"), str(output), str(page), "--faces", str(faces))
            paint = measure_paint(page)
            made = f"{seconds:.0f} | {mib:,.0f} | {page.stat().st_size / 1e6:.1f}"
            print(f"| {i + 1} | {made} | {paint.first_s:.2f} | {paint.loaded_s:.1f} |", flush=True)


def write_copies(photos: Path, output: Path, faces: int, seed: int, photo_px: int = PHOTO_PX) -> None:
    """Write darker, lighter and noisy copies of the demo's photos, and the output with their faces.

    The faces are those of the detector on the two photos; the vectors are of people chosen at random. The same numbers
    and seed give the same rows. photo_px: longest side of a copy.
    """
    photos.mkdir(parents=True, exist_ok=True)
    storage = open_storage(str(output))
    models = read_models(None, DEFAULT_MODELS)
    cards = models.by_role
    claim.claim(storage, fingerprinted(RowSettings(), {role: card.fingerprint() for role, card in cards.items()}))
    names = ModelNames(**{role: card.identity for role, card in cards.items()})
    found = list(find_faces(PhotoReader(RowSettings(), models, DEFAULT_WEIGHTS_DIR), photo_px))
    centres = person_vectors(max(1, faces // 10), seed)
    random = np.random.default_rng(seed)
    number = 0
    while faces > 0:
        chosen: list[tuple[str, Found]] = []
        while faces > 0 and len(chosen) < PART_IMAGES:
            of = found[number % len(found)]
            name = photos / f"{number:06}.jpg"
            name.write_bytes(copy_of(of.pixels, random))
            chosen.append((str(name), of))
            faces, number = faces - len(of.scores), number + 1
        batch = batch_of(chosen, centres, random)
        part = ledger.part_name("part", "synthetic", [uri for uri, _ in chosen])
        tables = faces_table(batch, names, EMBEDDING_DIM, "float32"), images_table(batch, "synthetic")
        ledger.write_pair(storage, part, *tables, check=lambda: None)


def find_faces(read_photos: PhotoReader, photo_px: int) -> Iterator[Found]:
    """The photos of the demo that show faces, at the size of their copies, and their faces."""
    photos = sorted(demo_photos().glob("*.jpg"))
    for photo, faces in zip(photos, read_photos([str(photo) for photo in photos]), strict=True):
        pixels = simplejpeg.decode_jpeg(photo.read_bytes())
        scale = photo_px / max(pixels.shape)
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        boxes = [[row[name] for name in ("x1", "y1", "x2", "y2")] for row in faces.rows]
        yield Found(
            small, scale * np.array(boxes, np.float32).reshape(-1, 4),
            scale * np.array([row["eye_points"] for row in faces.rows], np.float32).reshape(-1, 12, 2),
            np.array([row["det_score"] for row in faces.rows], np.float32),
        )


def copy_of(pixels: np.ndarray, random: np.random.Generator) -> bytes:
    """A copy with other light and new noise, as a JPEG."""
    lit = cv2.convertScaleAbs(pixels, alpha=random.uniform(0.6, 1.2))
    noise = random.integers(0, NOISE, pixels.shape, np.uint8)
    return bytes(simplejpeg.encode_jpeg(cv2.add(lit, noise), 85))


def batch_of(photos: Sequence[tuple[str, Found]], centres: np.ndarray, random: np.random.Generator) -> FaceBatch:
    """The rows of these photos."""
    counts = np.array([len(of.scores) for _, of in photos], np.int64)
    n = int(counts.sum())
    noise = unit(random.standard_normal((n, EMBEDDING_DIM), np.float32))
    records = tuple(
        ImageRecord(
            uri, width=of.pixels.shape[1], height=of.pixels.shape[0], format="jpeg", n_faces=len(of.scores),
            sha256=hashlib.sha256(Path(uri).read_bytes()).hexdigest(),
        )
        for uri, of in photos
    )
    return FaceBatch(
        records, counts, np.concatenate([of.boxes_xyxy for _, of in photos]),
        np.concatenate([of.scores for _, of in photos]),
        eye_points=np.concatenate([of.eye_points for _, of in photos]), eye_spread=np.zeros(n, np.float32),
        align_ok=np.ones(n, bool), roll_deg=np.zeros(n, np.float32),
        sharpness=random.uniform(10, 2000, n).astype(np.float32),
        embeddings=unit(centres[random.integers(0, len(centres), n)] + SPREAD * noise),
        embedding_norms=random.uniform(1, 3, n).astype(np.float32),
    )
