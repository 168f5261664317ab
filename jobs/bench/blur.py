"""`jobs.bench blur`: jobs.blur, beside the least that its copies take: Pillow decodes and encodes the same files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq

from jobs.bench.people import command, measure
from jobs.bench.report import write_copies
from jobs.blur.table import FOLDER, TABLE, Outcome
from jobs.options import ArgumentError

SEED = 7
BLUR = command("jobs.blur.__main__")
PILLOW = "Pillow alone: decode, encode, one thread"
PLAIN = """
import sys
from pathlib import Path
from PIL import Image
Image.MAX_IMAGE_PIXELS = None
root, names, dest = sys.argv[1:]
for i, name in enumerate(Path(names).read_text().splitlines()):
    with Image.open(Path(root, name)) as image:
        same = {"quality": "keep"} if image.format == "JPEG" else {}
        image.save(Path(dest, str(i)), image.format, **same)
"""


def bench_blur(images: str | None, output: str | None, faces: int, photo_px: int, rounds: int) -> None:
    """Copy the images in new processes, and print rates and memory. None: copies of the photos of the demo.

    images: a local folder. photo_px: the longest side of such a copy. Raises ArgumentError.
    """
    if images and not (output and Path(images).is_dir()):
        raise ArgumentError("give a folder of images, and the OUTPUT that jobs.extract made of it")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (images and output):
            images, output = str(folder / "photos"), str(folder / "out")
            write_copies(Path(images), Path(output), faces, SEED, photo_px)
        print("| round | what | seconds | images/s | of Pillow's rate | peak memory, MiB |\n|---|---|---|---|---|---|")
        for i in range(rounds):
            for row in rows(images, output, folder / str(i)):
                print(f"| {i + 1} | {' | '.join(row)} |", flush=True)


def rows(images: str, output: str, dest: Path) -> Iterator[Sequence[str]]:
    """The rows of one round. dest: a new folder for the copies."""
    dest.mkdir()
    names = dest / "names.txt"
    given = images, output, str(dest / "copies"), "--no-second-look"
    seconds, mib, _ = measure(BLUR, *given)
    names.write_text("\n".join(copied := copied_names(dest / "copies")))
    (dest / "plain").mkdir()
    least, least_mib, _ = measure(PLAIN, images, str(names), str(dest / "plain"))
    looked, looked_mib, _ = measure(BLUR, images, output, str(dest / "looked"))
    for what, took, peak in (
        (PILLOW, least, least_mib), ("jobs.blur --no-second-look", seconds, mib), ("jobs.blur", looked, looked_mib),
    ):
        yield what, f"{took:.1f}", f"{len(copied) / took:.1f}", f"{least / took:.2f}", f"{peak:,.0f}"


def copied_names(copies: Path) -> list[str]:
    """The names of the images that were copied."""
    table = pq.read_table(copies / FOLDER / TABLE, columns=["name", "outcome"])
    return [row["name"] for row in table.to_pylist() if row["outcome"] == Outcome.COPIED]
