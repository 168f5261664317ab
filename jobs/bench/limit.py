"""What the machine can do at best with these photos and networks: each part alone. `jobs.bench all` runs it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jobs.bench.in_process import build_stages, default_config, no_seconds, photo_rows, run_stages
from jobs.bench.measurement import Measure, Measurement, serve
from jobs.extract.stages import MAX_DETECTIONS, min_side_of
from models.boxes import FaceRules
from models.engines.engine import OutOfDeviceMemory, Runtime, Shape, open_network
from models.keypointer import views_in
from models.store import DEFAULT_WEIGHTS_DIR, read_model
from pipeline.batch import Fetched, ImageRecord, Status, TodoRow
from pipeline.geometry import CROP_PX
from pipeline.input.fetch import Fetch
from pipeline.settings import RowSettings
from pipeline.stages.codec import DecodeError
from pipeline.stages.image import decode_image

LEAST = "limit: the least possible time"
SAMPLE = 120                    # photos that are decoded and read; more change the mean little
PART_S = 1.0                    # at least, of one part in a round
BATCHES = {"cpu": {"detector": (1, 4, 8, 16), "face": (8, 32, 128)},
           "cuda": {"detector": (16, 32, 64, 128), "face": (256, 1024)}}


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the work alone. run: does `items` of it. an_image: how many of them an image needs, on average."""

    name: str
    unit: str
    run: Callable[[], object]
    items: int
    an_image: float
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that one item of a part took: by the clock, and of all CPUs together."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What an image of these photos needs on average."""

    decoded: float
    second_looks: float
    faces: float


def time_part(part: Part, at_least_s: float = PART_S) -> Cost:
    """Run a part again and again for so long."""
    started, cpu_started, done = time.perf_counter(), time.process_time(), 0
    while not done or time.perf_counter() - started < at_least_s:
        part.run()
        done += part.items
    return Cost((time.perf_counter() - started) / done, (time.process_time() - cpu_started) / done)


def least_image_s(parts: Sequence[Part], costs: Mapping[str, Cost], device: str, cores: int) -> float:
    """The least seconds an image.

    On a CPU all parts share the cores. On a GPU machine networks, decoding and reading go on side by side, and the
    slowest counts; of the two decoders the faster one.
    """
    seconds = {part.name: costs[part.name].cpu_s * part.an_image / cores for part in parts}
    if device == "cpu":
        return sum(seconds.values())
    walls = {part.name: costs[part.name].wall_s * part.an_image for part in parts}
    decoders = [seconds["decode"], *(walls[name] for name in walls if name == "decode on the GPU")]
    networks = sum(wall for name, wall in walls.items() if name not in ("reading", "decode", "decode on the GPU"))
    return max(walls["reading"], min(decoders), networks)


def measurements(parts: Sequence[Part], costs: Mapping[str, Cost], device: str, cores: int) -> list[Measurement]:
    """A row for every part, and one for the least time.

    On a CPU a rate is that of all cores at the CPU seconds of an item, which other processes change little.
    """
    rows = []
    for part in parts:
        cost = costs[part.name]
        by_cpu = part.name == "decode" or (device == "cpu" and part.name != "reading")
        rate = cores / max(cost.cpu_s, 1e-9) if by_cpu else 1 / cost.wall_s
        notes = {"CPU ms each": 1000 * cost.cpu_s, "an image": part.an_image}
        rows.append(Measurement(
            f"limit: {part.name}", rate, part.unit, notes | ({"batch": part.batch} if part.batch else {})
        ))
    return [*rows, Measurement(LEAST, 1 / least_image_s(parts, costs, device, cores))]


def average_work(rows: Sequence[TodoRow], device: str) -> Work:
    """Run the stages over the photos once."""
    records: list[ImageRecord] = []
    faces = 0
    for batch in run_stages(build_stages(default_config(device)), list(rows), no_seconds()):
        records += batch.records
        faces += len(batch)
    decoded = [record for record in records if record.status in (Status.OK, Status.NO_FACE)]
    second = [each for each in decoded if each.status is Status.NO_FACE or each.detect_pass == 2]
    return Work(len(decoded) / len(rows), len(second) / len(rows), faces / len(rows))


def file_parts(rows: Sequence[TodoRow], device: str, cores: int) -> list[Part]:
    """Reading and decoding."""
    fetch = Fetch()
    contents = [each.content for each in fetch(rows) if isinstance(each, Fetched)]
    threads = ThreadPoolExecutor(cores)
    parts = [
        Part("reading", "images/s", lambda: list(fetch(rows)), len(rows), 1.0),
        Part("decode", "images/s", lambda: list(threads.map(decode, contents)), len(contents), 1.0),
    ]
    if device == "cuda":
        with contextlib.suppress(ImportError, RuntimeError):
            parts.append(gpu_decode_part(contents))
    return parts


def decode(content: bytes) -> None:
    """Decode an image as the job does; broken ones as far as it goes."""
    settings = RowSettings()
    with contextlib.suppress(DecodeError):
        decode_image(content, max_pixels=settings.max_pixels, min_side_px=min_side_of(settings))


def gpu_decode_part(contents: Sequence[bytes]) -> Part:
    """JPEGs decoded by nvJPEG. Raises ImportError or RuntimeError where it cannot."""
    from models.device import torch_device
    from models.device_jpegs import torchcodec_decoder

    decode, device, files = torchcodec_decoder(), torch_device("cuda"), list(contents)

    def run() -> None:
        decode(files, device)      # waits until all are decoded

    run()
    return Part("decode on the GPU", "images/s", run, len(files), 1.0)


def network_parts(work: Work, device: str, cores: int) -> list[Part]:
    """Every network at its best batch, and the detector's second look."""
    settings, batches = RowSettings(), BATCHES[device]
    models, runtime = default_config(device).models, Runtime(device, cores, compile=device == "cuda")
    keypoint_px = int(models.keypointer.architecture["input_px"])
    passes = 2.0 if models.embedder.preprocessing.get("flip_average") else 1.0
    views = len(views_in(models.keypointer))
    wanted = [
        ("detector", "detector", "images/s", settings.detect_px, batches["detector"], work.decoded),
        ("second look", "detector", "images/s", settings.second_pass_px or 0, batches["detector"], work.second_looks),
        ("keypointer", "keypointer", "faces/s", keypoint_px, batches["face"], work.faces * views),
        ("embedder", "embedder", "faces/s", CROP_PX, batches["face"], work.faces * passes),
    ]
    return [
        best_part(name, models.by_role[role].name, role, unit, side_px, sizes, an_image, runtime)
        for name, role, unit, side_px, sizes, an_image in wanted if an_image and side_px
    ]


def best_part(
    name: str, model: str, role: str, unit: str, side_px: int, sizes: Sequence[int], an_image: float, runtime: Runtime
) -> Part:
    """The network with the batch that costs least for an item. Only that one is compiled, if networks are."""
    stored, tried = read_model(DEFAULT_WEIGHTS_DIR, role, model), []

    def part_of(size: int, runtime: Runtime) -> Part:
        shape = (size, side_px, side_px, 3)
        run = call(open_network(stored, runtime, [shape]), role, shape, runtime.device)
        run()
        return Part(name, unit, run, size, an_image, size)

    for size in sizes:
        try:
            part = part_of(size, replace(runtime, compile=False))
        except OutOfDeviceMemory:
            break
        cost = time_part(part, PART_S / 2)
        tried.append((cost.wall_s if runtime.device == "cuda" else cost.cpu_s, part))
    best = min(tried, key=lambda each: each[0])[1]
    return part_of(best.items, runtime) if runtime.compile else best


def call(network: Any, role: str, shape: Shape, device: str) -> Callable[[], object]:
    """A call of the network. On a GPU the pixels lie there, and a detector gives back faces only, as in the job."""
    pixels: Any = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if device == "cpu":
        return lambda: network(pixels)
    import torch

    from models.device import torch_device

    there, settings = torch.from_numpy(pixels).to(torch_device(device)), RowSettings()
    rules = FaceRules(settings.min_score, settings.nms_iou, MAX_DETECTIONS)
    return (lambda: network.faces(there, rules)) if role == "detector" else (lambda: network(there))


def prepare(folder: str, device: str) -> Measure:
    """Load everything and find the best batches."""
    rows, cores = photo_rows(folder), len(os.sched_getaffinity(0))
    rows = rows[:: -(-len(rows) // SAMPLE)]
    parts = file_parts(rows, device, cores) + network_parts(average_work(rows, device), device, cores)
    return lambda: measurements(parts, {part.name: time_part(part) for part in parts}, device, cores)


if __name__ == "__main__":
    photos, chosen_device = sys.argv[1:]
    serve(lambda: prepare(photos, chosen_device))
