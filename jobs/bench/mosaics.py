"""`jobs.bench mosaics`: how many faces are found again when photos lie in one long or large picture, and the time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import cv2
import numpy as np

from jobs.bench.in_process import build_stage, default_config, photo_rows
from models.metrics import box_iou
from pipeline.batch import FaceBatch, ImageBatch, ImageRecord, Status
from pipeline.settings import RowSettings

HEIGHT_PX = 600                              # of each photo in a mosaic
SHAPES = ((1, 1), (4, 1), (8, 1), (16, 1), (4, 4))     # photos side by side, and rows of them
BANDS_PX = ((20, 40), (40, 80), (80, 10_000))          # heights of faces
SETTINGS = (RowSettings(long_pictures="whole"), RowSettings(), RowSettings(find_px=20))


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Photos in rows: the pixels, and the boxes (n, 4) of the faces that each photo has alone."""

    pixels: np.ndarray
    boxes: np.ndarray


def bench_mosaics(folder: str, count: int) -> None:
    """Print, for each shape of mosaic and each setting, the share of faces found again, and the time."""
    photos = list(islice(scaled_photos(folder), count))
    alone = [detect(photo, SETTINGS[0])[0].boxes_xyxy for photo in photos]
    bands = " | ".join(f"{low} px and more" if high > 1000 else f"{low} to {high} px" for low, high in BANDS_PX)
    print(f"| photos | --long-pictures | --find-px | {bands} | others, per 100 | looks | times the time |")
    print("|---" * (len(BANDS_PX) + 6) + "|")
    for shape in SHAPES:
        mosaics = list(arrange(photos, alone, *shape))
        if not mosaics:
            continue
        first_s = 0.0
        for settings in SETTINGS:
            line, seconds = measure(mosaics, settings)
            first_s = first_s or seconds
            print(f"| {shape[0]}×{shape[1]} | {settings.long_pictures} | {settings.find_px or 0} | {line} | "
                  f"{seconds / first_s:.1f} |")


def scaled_photos(folder: str) -> Iterator[np.ndarray]:
    """The photos of a folder, all of one height."""
    for batch in build_stage(default_config("cpu"), "decode")(photo_rows(folder)):
        for record, pixels in zip(batch.records, batch.pixels, strict=True):
            if record.status is Status.OK:
                width = max(1, round(pixels.shape[1] * HEIGHT_PX / pixels.shape[0]))
                yield cv2.resize(pixels, (width, HEIGHT_PX), interpolation=cv2.INTER_AREA)


def arrange(photos: Sequence[np.ndarray], alone: Sequence[np.ndarray], columns: int, rows: int) -> Iterator[Mosaic]:
    """Mosaics of so many photos each; photos that do not fill one are left out."""
    for start in range(0, len(photos) - columns * rows + 1, columns * rows):
        chosen = range(start, start + columns * rows)
        width = max(sum(photos[i].shape[1] for i in chosen[row * columns : (row + 1) * columns]) for row in range(rows))
        pixels, boxes = np.full((rows * HEIGHT_PX, width, 3), 128, np.uint8), []
        x = 0
        for number, i in enumerate(chosen):
            x = 0 if number % columns == 0 else x
            y = number // columns * HEIGHT_PX
            pixels[y : y + HEIGHT_PX, x : x + photos[i].shape[1]] = photos[i]
            boxes.append(alone[i] + np.array([x, y, x, y], np.float32))
            x += photos[i].shape[1]
        yield Mosaic(pixels, np.concatenate(boxes))


def measure(mosaics: Sequence[Mosaic], settings: RowSettings) -> tuple[str, float]:
    """The cells of a row, and the seconds of the detector in all."""
    known, again, others, looks, seconds = np.zeros(len(BANDS_PX)), np.zeros(len(BANDS_PX)), 0, 0, 0.0
    for mosaic in mosaics:
        found, spent_s = detect(mosaic.pixels, settings)
        seconds += spent_s
        looks += found.records[0].tiles or 0
        overlaps = box_iou(mosaic.boxes, found.boxes_xyxy)
        heights = mosaic.boxes[:, 3] - mosaic.boxes[:, 1]
        is_found = overlaps.max(axis=1, initial=0.0) > 0.5
        for band, (low, high) in enumerate(BANDS_PX):
            in_band = (heights >= low) & (heights < high)
            known[band] += in_band.sum()
            again[band] += (in_band & is_found).sum()
        others += int((overlaps.max(axis=0, initial=0.0) <= 0.5).sum())
    shares = " | ".join(f"{a:.0f} of {k:.0f} ({a / max(k, 1):.0%})" for a, k in zip(again, known, strict=True))
    return f"{shares} | {100 * others / max(known.sum(), 1):.0f} | {looks / len(mosaics):.0f}", seconds


def detect(pixels: np.ndarray, settings: RowSettings) -> tuple[FaceBatch, float]:
    """The faces of a picture, and the seconds of CPU that it took."""
    record = ImageRecord("mosaic", width=pixels.shape[1], height=pixels.shape[0])
    stage = _stage(settings)
    started = time.process_time()
    found: FaceBatch = stage(ImageBatch((record,), (pixels,)))
    return found, time.process_time() - started


@cache
def _stage(settings: RowSettings) -> Any:
    return build_stage(default_config("cpu", settings), "detect")
