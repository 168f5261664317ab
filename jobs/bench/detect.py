"""`jobs.bench detect-size`: the detect stage alone, on decoded photos."""

from __future__ import annotations

import time

from jobs.bench.in_process import build_stage, default_config, photo_rows
from jobs.extract.stages import StageConfig
from pipeline.batch import ImageBatch
from pipeline.settings import RowSettings


def bench_size(photos: str, device: str) -> None:
    """Print the time by input size. `jobs.evaluate detection` measures what each size finds."""
    decoded, images = decode(photos, default_config(device))
    print("| input, px | ms an image | against 640 | faces |\n|---|---|---|---|")
    first = None
    for side in (640, 800, 960):
        spent, faces = detect(decoded, default_config(device, RowSettings(detect_px=side)))
        first = first or spent
        print(f"| {side} | {1000 * spent / images:.1f} | {spent / first:.2f} | {faces} |")


def decode(photos: str, config: StageConfig) -> tuple[list[ImageBatch], int]:
    """The decoded photos of a folder, and how many they are."""
    rows = photo_rows(photos)
    return list(build_stage(config, "decode")(rows)), len(rows)


def detect(decoded: list[ImageBatch], config: StageConfig) -> tuple[float, int]:
    """Seconds for all photos after a warm-up, and the faces found."""
    stage = build_stage(config, "detect")
    stage(decoded[0])
    started = time.perf_counter()
    faces = sum(len(stage(batch)) for batch in decoded)
    return time.perf_counter() - started, faces
