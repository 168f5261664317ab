"""`jobs.bench all --sweep`: how the cost of an image changes with one thing at a time."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
import pyarrow.parquet as pq

from jobs.bench.in_process import build_stages, default_config, no_seconds, photo_rows, run_stages
from jobs.bench.job import EXTRACT, run_job
from jobs.bench.memory import write_photos
from jobs.bench.table import number
from pipeline.boundary import STAGES
from pipeline.input.rows import listing_table

STUB_JOB = (sys.executable, "-m", "jobs.bench.stub_job")
ON_CORES = """
import os, sys
cores = sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]
os.sched_setaffinity(0, cores)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
WARM_UP = 8                    # photos
FACE_PX = 64                   # of the faces in a photo of the sweep over faces

Row = Mapping[str, float]
"""One line of a sweep's table: what was changed, and what it cost."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is changed, its values, and what measures one value on these photos and this device."""

    values: Sequence[float]
    measure: Callable[[float, Path, str], Row]


def bench_sweeps(names: Sequence[str], photos: Path, device: str, out: Path) -> None:
    """Print a table for every sweep, and write all of them as JSON."""
    found = {}
    for name in names:
        sweep = SWEEPS[name]
        found[name] = rows = [{name: value, **sweep.measure(value, photos, device)} for value in sweep.values]
        print("\n".join(table_lines(rows)), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "sweeps.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table of these rows, whose names are those of the first one."""
    yield f"| {' | '.join(rows[0])} |"
    yield "|" + "---|" * len(rows[0])
    for row in rows:
        yield f"| {' | '.join(number(row[name]) for name in rows[0])} |"


def by_images(images: float, photos: Path, device: str) -> Row:
    """The job with stages that do nothing, on a manifest of so many names."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.parquet"
        pq.write_table(listing_table({"uri": [f"/photos/{i:09}.jpg" for i in range(int(images))]}), manifest)
        done = run_job(manifest, [], command=STUB_JOB)
    return {"in all, s": done.seconds, "ms an image, all": 1000 * done.seconds / images,
            "ms an image, without the start": 1000 / done.rate}


def by_megapixels(megapixels: float, photos: Path, device: str) -> Row:
    """All stages on generated photos without a face."""
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), 16 if megapixels < 10 else WARM_UP, megapixels)
        return stage_costs(Path(folder), device)


def by_faces(faces: float, photos: Path, device: str) -> Row:
    """All stages on photos that repeat one face so many times."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(WARM_UP):
            cv2.imwrite(f"{folder}/{i}.jpg", crowd(int(faces), photos))
        return stage_costs(Path(folder), device)


def crowd(faces: int, photos: Path) -> np.ndarray:
    """A grey picture with the first face of the photos repeated in rows of twenty."""
    picture = np.full((20 * FACE_PX, 30 * FACE_PX, 3), 114, np.uint8)
    tile = face_tile(photos) if faces else picture[:0]
    for i in range(faces):
        top, left = (i // 20) * 2 * FACE_PX, (i % 20) * FACE_PX * 3 // 2
        picture[top : top + FACE_PX, left : left + FACE_PX] = tile
    return picture


def face_tile(photos: Path) -> np.ndarray:
    """The largest face of the first photos, BGR."""
    stages, rows = build_stages(default_config("cpu")), photo_rows(str(photos))[:WARM_UP]
    faces = [
        (box, batch.records[record].uri) for batch in run_stages(stages, rows, no_seconds())
        for record, box in zip(np.repeat(range(len(batch.records)), batch.face_counts), batch.boxes_xyxy, strict=True)
    ]
    if not faces:
        raise ValueError(f"there is no face in the first {WARM_UP} photos of {photos}")
    (x1, y1, x2, y2), uri = max(faces, key=lambda face: float(face[0][2] - face[0][0]))
    photo = cv2.imread(uri)
    if photo is None:
        raise ValueError(f"OpenCV cannot read {uri}")
    side = max(x2 - x1, y2 - y1) * 1.3
    left, top = max(0, round((x1 + x2 - side) / 2)), max(0, round((y1 + y2 - side) / 2))
    return np.asarray(cv2.resize(photo[top : round(top + side), left : round(left + side)], (FACE_PX, FACE_PX)))


def stage_costs(folder: Path, device: str) -> Row:
    """Faces and milliseconds an image of every stage, in this process, after a warm-up."""
    rows, stages, seconds = photo_rows(str(folder)), build_stages(default_config(device)), no_seconds()
    list(run_stages(stages, rows[:WARM_UP], no_seconds()))
    faces = sum(map(len, run_stages(stages, rows, seconds)))
    costs = {f"{name}, ms": 1000 * spent / len(rows) for name, spent in seconds.items()}
    return {"faces found": faces / len(rows), **costs, "all, ms": sum(costs.values())}


def by_cores(cores: float, photos: Path, device: str) -> Row:
    """The job on so many cores."""
    command = (sys.executable, "-c", ON_CORES, str(int(cores)), *EXTRACT[1:])
    return job_costs(photos, command, ["--num-cpus", str(int(cores)), "--device", device])


def by_actors(actors: float, photos: Path, device: str) -> Row:
    """The job with so many actors that share the cores."""
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // int(actors))
    return job_costs(photos, EXTRACT, [
        "--pools", f"{'+'.join(STAGES)}:{int(actors)}", "--num-cpus", str(max(cores, int(actors) + 1)),
        "--threads", str(threads), "--device", device,
    ])


def job_costs(photos: Path, command: Sequence[str], options: Sequence[str]) -> Row:
    """Images a second and memory of one run."""
    done = run_job(photos, options, command=command)
    return {"images/s": done.rate, "in all, s": done.seconds,
            "memory, GB": done.peaks["uss"] / 1e9}


SWEEPS: Mapping[str, Sweep] = MappingProxyType({
    "images": Sweep((100, 1000, 10_000, 100_000), by_images),
    "megapixels": Sweep((0.3, 1, 4, 12, 24, 50), by_megapixels),
    "faces": Sweep((0, 1, 5, 20, 50, 200), by_faces),
    "cores": Sweep((1, 2), by_cores),
    "actors": Sweep((1, 2, 3, 4), by_actors),
})
