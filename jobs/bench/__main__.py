"""Measure the main job, things to compare side by side in one run.

    python -m jobs.bench stages PHOTOS               seconds of every stage, images and faces a second
    python -m jobs.bench pools PHOTOS                the three layouts of pools against each other
    python -m jobs.bench detect-batch PHOTOS         batches of 1, 2, 4, 8 and 16 images in the detector
    python -m jobs.bench detect-size PHOTOS          the detector at inputs of 640, 800 and 960 px
    python -m jobs.bench embedders                   cost of embedding networks by depth and width, beside their cards
    python -m jobs.bench decode-scale FACES.parquet  what decoding JPEGs at 1/2 costs in recall and likeness
    python -m jobs.bench memory                      peak memory over one hundred photos of 24 megapixels
    python -m jobs.bench manifest --keys 10000000    jobs.manifest on a simulated S3: seconds and peak memory
    python -m jobs.bench plan                        10 million images listed, 9 million done: seconds to the first part
    python -m jobs.bench scale OUTPUT                what a billion images like those of OUTPUT come to
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.scale import bench_manifest, bench_plan, bench_scale
from jobs.extract.stages import StageConfig, alignment_template, local_weights, stage_builders
from models.store import read_card
from pipeline.batch import FaceBatch, ImageBatch, TodoRow
from pipeline.boundary import STAGES
from pipeline.settings import RowSettings
from pipeline.storage.uris import FROM_ENVIRONMENT

LAYOUTS = (
    "decode+detect+keypoint+align+embed",
    "decode/detect+keypoint+align+embed",
    "decode/detect/keypoint/align/embed",
)
RAY_SERVICES = ("gcs_server", "raylet", "log_monitor", "dashboard", "runtime_env", "agent.py", "monitor.py")


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark and print its table."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("stages", "pools", "detect-batch", "detect-size"):
        command = commands.add_parser(name)
        command.add_argument("photos", metavar="PHOTOS", help="a folder of photos")
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command = commands.add_parser("embedders")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument("--rounds", type=int, default=10, help="batches a network (default: %(default)s)")
    command = commands.add_parser("decode-scale")
    command.add_argument("faces", metavar="FACES.parquet", help="columns image (bytes) and identity")
    command = commands.add_parser("memory")
    command.add_argument("--photos", type=int, default=100)
    command.add_argument("--megapixels", type=float, default=24.0)
    command = commands.add_parser("manifest")
    command.add_argument("--keys", type=int, default=1_000_000)
    command.add_argument("--threads", type=int, default=16)
    command.add_argument("--latency-ms", type=float, default=100.0, help="of every answer (default: %(default)s)")
    command = commands.add_parser("plan")
    command.add_argument("--listed", type=int, default=10_000_000)
    command.add_argument("--done", type=int, default=9_000_000)
    command = commands.add_parser("scale")
    command.add_argument("output", metavar="OUTPUT", help="a finished output of jobs.extract, to reckon from")
    command.add_argument("--images", type=int, default=1_000_000_000)
    arguments = parser.parse_args(argv)
    print(f"{os.cpu_count()} CPUs, {_cpu_name()}")
    match arguments.command:
        case "stages":
            bench_stages(_photo_rows(arguments.photos), arguments.device)
        case "pools":
            bench_pools(arguments.photos, arguments.device)
        case "detect-batch":
            bench_detect_batch(_photo_rows(arguments.photos), arguments.device)
        case "detect-size":
            bench_detect_size(_photo_rows(arguments.photos), arguments.device)
        case "embedders":
            bench_embedders(arguments.device, arguments.rounds)
        case "decode-scale":
            bench_decode_scale(Path(arguments.faces))
        case "memory":
            bench_memory(arguments.photos, arguments.megapixels)
        case "manifest":
            bench_manifest(arguments.keys, arguments.threads, arguments.latency_ms / 1000)
        case "plan":
            bench_plan(arguments.listed, arguments.done)
        case "scale":
            bench_scale(arguments.output, arguments.images)
    return 0


def bench_stages(rows: list[TodoRow], device: str) -> None:
    """One process, one stage after the other: where the time goes."""
    stages = _build(_config(device))
    seconds = dict.fromkeys(STAGES, 0.0)
    images = faces = 0
    _run(stages, rows[:8], dict.fromkeys(STAGES, 0.0))     # warm up
    started = time.perf_counter()
    for batch in _run(stages, rows, seconds):
        images, faces = images + len(batch.records), faces + len(batch)
    total = time.perf_counter() - started
    print(f"{images} images, {faces} faces, {total:.1f} s: {images / total:.2f} images/s, {faces / total:.1f} faces/s")
    print("| stage | ms an image | share |\n|---|---|---|")
    for name, spent in seconds.items():
        print(f"| {name} | {1000 * spent / images:.1f} | {spent / sum(seconds.values()):.2f} |")


def bench_pools(photos: str, device: str) -> None:
    """The whole job in three layouts; rates leave the start of Ray and the models out."""
    print("| pools | images/s | against one pool |\n|---|---|---|")
    first = None
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "jobs.extract", photos, folder, "--pools", layout, "--device", device]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            rate = json.loads((Path(folder) / "run.json").read_text())["throughput"]["images_per_s_after_start"]
        first = first or rate
        print(f"| {layout} | {rate:.2f} | {rate / first:.2f} |")


def bench_detect_batch(rows: list[TodoRow], device: str) -> None:
    """The detect stage alone on decoded photos."""
    print("| batch | images/s | against 1 |\n|---|---|---|")
    decoded = list(_build(_config(device))["decode"](rows))
    first = None
    for size in (1, 2, 4, 8, 16):
        detect = stage_builders(replace(_config(device), detect_batch=size))["detect"](os.cpu_count())
        detect(decoded[0])
        started = time.perf_counter()
        for batch in decoded:
            detect(batch)
        rate = len(rows) / (time.perf_counter() - started)
        first = first or rate
        print(f"| {size} | {rate:.2f} | {rate / first:.2f} |")


def bench_detect_size(rows: list[TodoRow], device: str) -> None:
    """The detect stage alone on decoded photos, by input size; `jobs.evaluate detection` tells what each finds."""
    print("| input, px | ms an image | against 640 | faces |\n|---|---|---|---|")
    decoded = list(_build(_config(device))["decode"](rows))
    first = None
    for side in (640, 800, 960):
        settings = RowSettings(detect_px=side)
        detect = stage_builders(replace(_config(device), settings=settings))["detect"](os.cpu_count())
        detect(decoded[0])
        started = time.perf_counter()
        faces = sum(len(detect(batch)) for batch in decoded)
        spent = 1000 * (time.perf_counter() - started) / len(rows)
        first = first or spent
        print(f"| {side} | {spent:.1f} | {spent / first:.2f} | {faces} |")


EMBEDDERS = (
    {"network": "edgenext_x_small"},
    {"network": "resnet18", "width": 32},
    {"network": "resnet34", "width": 32},
    {"network": "resnet18", "width": 64},
    {"network": "resnet50", "width": 64},
    {"network": "resnet101", "width": 64},
)


def bench_embedders(device: str, rounds: int) -> None:
    """Milliseconds a face of every network, batches of 64 in turn; a shipped one as its card says, with its rates."""
    import torch

    from models.device import torch_device
    from models.embedder import Embedder, build_embedder

    faces = np.random.default_rng(0).integers(0, 256, (64, 112, 112, 3), np.uint8)
    shipped = [read_card(local_weights(None), "embedder", name) for name in ("edgenext", "resnet")]
    cards = [next((card for card in shipped if card.architecture == known), None) for known in EMBEDDERS]
    networks = [build_embedder(architecture) for architecture in EMBEDDERS]
    both_ways = [bool(card and card.preprocessing.get("flip_average")) for card in cards]
    embedders = [
        Embedder(network, device=torch_device(device), batch_size=len(faces), flip_average=flip_average)
        for network, flip_average in zip(networks, both_ways, strict=True)
    ]
    seconds: list[list[float]] = [[] for _ in embedders]
    for measured in [False] + [True] * rounds:              # the first warms up
        for embed, spent in zip(embedders, seconds, strict=True):
            started = time.perf_counter()
            embed(faces)
            if measured:
                spent.append(time.perf_counter() - started)
    print(f"batches of {len(faces)} on {device}, {torch.get_num_threads()} threads")
    print("| network | width | parameters, millions | passes | ms a face | against the first "
          "| TPR at FPR 0.05, 0.001 |")
    print("|---|---|---|---|---|---|---|")
    first = float(np.median(seconds[0]))
    for architecture, card, network, flip, spent in zip(EMBEDDERS, cards, networks, both_ways, seconds, strict=True):
        rates = card.metrics.get("identification", {}).get("eyes_ours") if card else None
        likeness = ", ".join(f"{rates[fpr]['tpr']:.3f}" for fpr in ("0.05", "0.001")) if rates else "not trained here"
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        print(f"| {architecture['network']} | {architecture.get('width', '')} | {millions:.1f} | {1 + flip} | "
              f"{1000 * np.median(spent) / len(faces):.2f} | {np.median(spent) / first:.2f} | {likeness} |")


def bench_decode_scale(faces: Path) -> None:
    """Faces of 93 px in mosaics of the size at which decoding at 1/2 leaves least: twice what must be left."""
    import pyarrow.parquet as pq

    from models.metrics import pair_cosines, tpr_at_fpr

    table = pq.read_table(faces, columns=["image", "identity"])
    cells = math.ceil(2 * RowSettings().decode_min_side_px / CELL_PX)
    print(f"photos of {cells * CELL_PX:,} px")
    with tempfile.TemporaryDirectory() as folder:
        rows, people = _mosaics(table["image"].to_pylist(), table["identity"].to_pylist(), Path(folder), cells)
        print("| decoding | scale | faces found | TPR at FPR 0.01 | at 0.001 |\n|---|---|---|---|---|")
        for scale in ("full", "auto"):
            config = replace(_config("cpu"), settings=RowSettings(decode_scale=scale))
            vectors, found, scales = [], [], set()
            for batch in _run(_build(config), rows, dict.fromkeys(STAGES, 0.0)):
                scales |= {record.decode_scale for record in batch.records}
                start = 0
                for record, count in zip(batch.records, batch.face_counts, strict=True):
                    for index in range(start, start + int(count)):
                        person = people.get((record.uri, *_cell(batch.boxes_xyxy[index])))
                        if person is not None:
                            found.append(person)
                            vectors.append(batch.embeddings[index])
                    start += int(count)
            cosines, same = pair_cosines(np.array(vectors), np.array(found))
            rates = tpr_at_fpr(cosines, same, (0.01, 0.001))
            print(f"| {scale} | {', '.join(f'{s:g}' for s in sorted(scales))} | {len(found) / len(people):.4f} | "
                  f"{rates[0.01][0]:.4f} | {rates[0.001][0]:.4f} |")


CELL_PX = 144


def _mosaics(
    images: list[bytes], people: list[str], folder: Path, cells: int
) -> tuple[list[TodoRow], dict[tuple[str, int, int], str]]:
    """JPEGs of cells × cells faces; the rows to read and who is in which cell."""
    import cv2

    rows, who = [], {}
    per_mosaic = cells * cells
    for start in range(0, len(images), per_mosaic):
        path = folder / f"{start}.jpg"
        canvas = np.full((cells * CELL_PX, cells * CELL_PX, 3), 114, np.uint8)
        for i, (content, person) in enumerate(
            zip(images[start : start + per_mosaic], people[start : start + per_mosaic], strict=True)
        ):
            row, column = divmod(i, cells)
            face = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            canvas[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX] = cv2.resize(
                face, (CELL_PX, CELL_PX)
            )
            who[str(path), column, row] = person
        cv2.imwrite(str(path), canvas, [cv2.IMWRITE_JPEG_QUALITY, 92])
        rows.append(TodoRow(str(path)))
    return rows, who


def _cell(box_xyxy: np.ndarray) -> tuple[int, int]:
    x1, y1, x2, y2 = box_xyxy
    return int((x1 + x2) / 2 // CELL_PX), int((y1 + y2) / 2 // CELL_PX)


def bench_memory(photos: int, megapixels: float) -> None:
    """The whole job on photos made here; memory of all its processes but Ray's own services, sampled twice a second."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photos"
        source.mkdir()
        _write_photos(source, photos, megapixels)
        command = [sys.executable, "-m", "jobs.extract", str(source), str(Path(folder) / "out")]
        job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        peaks = {"rss": 0, "pss": 0}
        while job.poll() is None:
            for kind, amount in _memory_of_job(job.pid).items():
                peaks[kind] = max(peaks[kind], amount)
            time.sleep(0.5)
        run = json.loads((Path(folder) / "out" / "run.json").read_text())
    print(f"exit code {job.returncode}, {run['this_run']['images']} images of {megapixels:g} megapixels, "
          f"{run['throughput']['images_per_s']} images/s")
    print(f"peak of all processes but Ray's services: {peaks['pss'] / 2**30:.2f} GiB (shared pages counted once), "
          f"{peaks['rss'] / 2**30:.2f} GiB (counted in every process)")


def _write_photos(folder: Path, count: int, megapixels: float) -> None:
    """JPEGs 4:3 of smooth noise, which compress like photos."""
    import cv2

    random = np.random.default_rng(0)
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(height * 4 / 3)
    coarse = random.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:04}.jpg"), np.roll(picture, 37 * i, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 90])


def _memory_of_job(pid: int) -> dict[str, int]:
    """Bytes of a process and all below it, Ray's services left out."""
    import psutil

    total = {"rss": 0, "pss": 0}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for process in processes:
        try:
            command = " ".join(process.cmdline()[:3])
            if any(service in command for service in RAY_SERVICES):
                continue
            memory = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total["rss"] += memory.rss
        total["pss"] += memory.pss
    return total


def _photo_rows(folder: str) -> list[TodoRow]:
    from pipeline.input.listing import list_inputs
    from pipeline.input.rules import Rules

    rows: list[TodoRow] = []
    list_inputs([folder], lambda table: rows.extend(TodoRow(**row) for row in table.to_pylist()), Rules())
    return rows


def _config(device: str) -> StageConfig:
    models = {"detector": "yolov8n", "keypointer": "resnet18", "embedder": "edgenext"}
    cards = {role: read_card(local_weights(None), role, name) for role, name in models.items()}
    gpu = device == "cuda"
    return StageConfig(
        settings=RowSettings(), store_options=FROM_ENVIRONMENT, image_column=None, weights=None, **cards,
        template=alignment_template(cards["embedder"]), device=device,
        detect_batch=32 if gpu else 4, face_batch=256 if gpu else 32, batch_images=64, batch_bytes=256 << 20,
    )


def _build(config: StageConfig) -> dict[str, Any]:
    return {name: build(os.cpu_count()) for name, build in stage_builders(config).items()}


def _run(stages: dict[str, Any], rows: list[TodoRow], seconds: dict[str, float]) -> Iterable[FaceBatch]:
    """All stages in this process; adds what each took to `seconds`."""
    batches = iter(stages["decode"](rows))
    while True:
        started = time.perf_counter()
        batch: ImageBatch | FaceBatch | None = next(batches, None)
        seconds["decode"] += time.perf_counter() - started
        if batch is None:
            return
        for name in STAGES[1:]:
            started = time.perf_counter()
            batch = stages[name](batch)
            seconds[name] += time.perf_counter() - started
        yield batch


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


if __name__ == "__main__":
    sys.exit(main())
