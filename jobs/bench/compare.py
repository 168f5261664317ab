"""`jobs.bench all`: the limit of the machine, the job, a notebook's loop and other libraries, in turns."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from jobs.bench import table
from jobs.bench.gpu_meter import nvml
from jobs.bench.in_process import photo_rows
from jobs.bench.job import JobRounds
from jobs.bench.loop import NAME as LOOP
from jobs.bench.measurement import Measurement
from jobs.bench.profile import profile_job
from jobs.bench.resident import LeftOut, Resident
from jobs.bench.start import Start
from jobs.bench.sweep import bench_sweeps
from jobs.bench.table import Results
from jobs.command import say
from jobs.demo import demo_photos
from pipeline.boundary import STAGES
from pipeline.errors import UserError
from pipeline.run.cluster import REPOSITORY
from pipeline.storage.uris import is_remote

DEFAULT_IMAGES, DEFAULT_SLOW_IMAGES = 120, 60      # when the photos are the two of ultralytics
ONE_POOL = "+".join(STAGES)
LAYOUTS = (ONE_POOL, "decode/" + "+".join(STAGES[1:]))
VARIANTS: Mapping[str, Sequence[str]] = MappingProxyType(
    {"cpu": (), "cuda": ("--jpeg-decoder nvjpeg", "--jpeg-decoder nvjpeg --compile")}
)
PEERS_PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"
PEER_NAMES = ("facenet-pytorch", "face_recognition")


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of the command.

    photos: folders; none are the two photos of ultralytics. images: names of each folder, repeated or cut off.
    slow_images: names that the loop and the peers get. layouts: of the job. variants: options of the job, each measured
    too; None are those of the device. facenet: weights of InceptionResnetV1.
    sweeps, profile: what is measured in place of the comparison.
    """

    photos: Sequence[str]
    images: int | None
    slow_images: int | None
    rounds: int
    device: str
    layouts: Sequence[str]
    variants: Sequence[str] | None
    peers_python: Path
    facenet: Path | None
    sweeps: Sequence[str]
    profile: bool
    out: Path


class Contender(Protocol):
    """Something that is measured in every round."""

    @property
    def name(self) -> str:
        """What it is called when it is left out."""

    def measure(self) -> list[Measurement]:
        """Run one round."""

    def close(self) -> None:
        """Free what it holds."""


def bench_all(choices: Choices) -> None:
    """Measure every folder, print the table, and write it as Markdown, JSON and a chart."""
    if choices.sweeps or choices.profile:
        bench_alone(choices)
        return
    folders = choices.photos or [str(demo_photos())]
    results = [bench_folder(choices, folder, start=number == 0) for number, folder in enumerate(folders)]
    about = machine(choices.device)
    text = "\n\n".join(f"{each.photos}\n\n{table.markdown(each)}" for each in results)
    text = f"{', '.join(f'{name} {value}' for name, value in about.items())}\n\n{text}"
    print(text)
    choices.out.mkdir(parents=True, exist_ok=True)
    (choices.out / "bench.md").write_text(text + "\n", encoding="utf-8")
    (choices.out / "bench.json").write_text(table.as_json(about, results), encoding="utf-8")
    table.draw(results, choices.out / "bench.png")
    print(f"\n{choices.out}: bench.md, bench.json, bench.png")


def bench_alone(choices: Choices) -> None:
    """The sweeps, and the profile, on the photos of the first folder."""
    folder = choices.photos[0] if choices.photos else str(demo_photos())
    files = photo_files(folder)
    with tempfile.TemporaryDirectory() as scratch:
        count = choices.images or (len(files) if choices.photos else DEFAULT_IMAGES)
        photos = named(Path(scratch) / "photos", files, count)
        if choices.sweeps:
            bench_sweeps(choices.sweeps, photos, choices.device, choices.out)
        if choices.profile:
            profile_job(photos, choices.device, choices.out)


def bench_folder(choices: Choices, folder: str, *, start: bool) -> Results:
    """All rounds over the photos of one folder. start: measure starts too, which no other photos change."""
    files = photo_files(folder)
    demo = not choices.photos
    count = choices.images or (DEFAULT_IMAGES if demo else len(files))
    slow_count = min(count, choices.slow_images or (DEFAULT_SLOW_IMAGES if demo else count))
    results = Results(f"{count:,} names of {len(files):,} photos in {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        photos = named(Path(scratch) / "photos", files, count)
        slow = named(Path(scratch) / "slow", files, slow_count)
        two = named(Path(scratch) / "two", files, 2) if start else None
        with opened(choices, photos, slow, two, results) as contenders:
            for number in range(choices.rounds):
                say(f"round {number + 1} of {choices.rounds}")
                run_round(number, contenders, results)
    return results


def run_round(number: int, contenders: list[Contender], results: Results) -> None:
    """Measure everyone once, in every second round in the other order. Who ends is left out from then on."""
    for contender in contenders[:: -1 if number % 2 else 1]:
        try:
            results.add(number, contender.measure())
        except LeftOut as error:
            results.left_out[contender.name] = str(error)
            contenders.remove(contender)


@contextmanager
def opened(
    choices: Choices, photos: Path, slow: Path, two: Path | None, results: Results
) -> Iterator[list[Contender]]:
    """Everyone who can run here; the others are left out with a line. two: photos for the start, if it is measured."""
    found = jobs_and_starts(choices, photos, two)
    for name, command in resident_commands(choices, photos, slow).items():
        try:
            found.append(Resident(name, command))
        except FileNotFoundError:
            results.left_out[name] = f"there is no {command[0]}, which `make bench-peers` makes"
        except LeftOut as error:
            results.left_out[name] = str(error)
    try:
        yield found
    finally:
        for each in found:
            each.close()


def jobs_and_starts(choices: Choices, photos: Path, two: Path | None) -> list[Contender]:
    """The job in its layouts, with the options of every variant, and the start of each variant."""
    variants = VARIANTS[choices.device] if choices.variants is None else choices.variants
    jobs: list[Contender] = []
    starts: list[Contender] = []
    for variant in ("", *variants):
        options = ["--device", choices.device, *shlex.split(variant)]
        jobs += [
            JobRounds(", ".join(filter(None, (f"job: {layout_name(layout)}", variant))), photos,
                      ["--pools", layout, *options], nvml())
            for layout in choices.layouts
        ]
        if two is not None:
            starts.append(Start(two, options, variant))
    return jobs + starts


def resident_commands(choices: Choices, photos: Path, slow: Path) -> dict[str, list[str]]:
    """The processes that load once: the limit, the loop and the peers."""
    ours, device = [sys.executable, "-m"], choices.device
    commands = {
        "limit": [*ours, "jobs.bench.limit", str(photos), device],
        LOOP: [*ours, "jobs.bench.loop", str(slow), device],
    }
    for name in PEER_NAMES:
        weights = [str(choices.facenet)] if choices.facenet and name == "facenet-pytorch" else []
        commands[f"peer: {name}"] = [
            str(choices.peers_python), "-m", "jobs.bench.peer", name, str(slow), device, *weights
        ]
    return commands


def layout_name(layout: str) -> str:
    """A layout of pools in words, if it has some."""
    return "one pool" if layout == ONE_POOL else layout


def photo_files(folder: str) -> list[Path]:
    """The photos of a local folder. Raises UserError without any."""
    if is_remote(folder):
        raise UserError(f"{folder} is not a local folder: the loop and the other libraries read files")
    return sorted(Path(row.uri) for row in photo_rows(folder))


def named(folder: Path, files: Sequence[Path], count: int) -> Path:
    """A folder with so many names for these files, links to them in turn."""
    folder.mkdir()
    for i in range(count):
        file = files[i % len(files)]
        (folder / f"{i:07}{file.suffix}").symlink_to(file.absolute())
    return folder


def machine(device: str) -> dict[str, Any]:
    """What was measured on."""
    from jobs.bench.__main__ import cpu_name

    found: dict[str, Any] = {"CPU": cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()}
    if device == "cuda":
        import torch

        found["GPU"] = torch.cuda.get_device_name()
    return found
