"""`jobs.bench stages`: the time of every stage, in one process without Ray."""

from __future__ import annotations

import time

from jobs.bench.in_process import build_stages, default_config, no_seconds, photo_rows, run_stages


def bench_stages(photos: str, device: str) -> None:
    """Print images and faces per second, and the time of every stage."""
    rows, stages, seconds = photo_rows(photos), build_stages(default_config(device)), no_seconds()
    list(run_stages(stages, rows[:8], no_seconds()))     # warm up
    images = faces = 0
    started = time.perf_counter()
    for batch in run_stages(stages, rows, seconds):
        images, faces = images + len(batch.records), faces + len(batch)
    total = time.perf_counter() - started
    print(f"{images} images, {faces} faces, {total:.1f} s: {images / total:.2f} images/s, {faces / total:.1f} faces/s")
    print("| stage | ms an image | share |\n|---|---|---|")
    for name, spent in seconds.items():
        print(f"| {name} | {1000 * spent / images:.1f} | {spent / sum(seconds.values()):.2f} |")
