"""Make consensus labels of what the teachers of `jobs.train label-eyes` said: Parquet files to train on.

    python -m jobs.train agree-eyes --looks checkpoints/eyes-looks --out checkpoints/eyes-labels

Each row is a face: `source, image, box` (of our detector), `points` (12), `differences` (of the teachers by eye, in
longer box sides), `whole` (people's points) and `held_out`: a slice that is not trained on and chooses between runs.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.command import run_command
from jobs.evaluate.data import DataError
from jobs.options import command_parser, share
from jobs.train.options import weight
from models.consensus import agree, centres, from_face, offset, to_face

TEACHERS = ("pfld", "mesh", "ours", "five", "landmarks")     # columns of label-eyes
HELD_OUT = 0.05           # of the faces
FILE_BYTES = 17_000_000   # of images in a file, so that single files can travel
MAX_DIFFERENCE = 0.25     # of longer box sides, mean of both eyes: beyond it nobody knows where the face is


def held_out(content: bytes) -> bool:
    """Whether a face is kept apart, by its image alone."""
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") / 2**32 < HELD_OUT


def consensus_table(looks: pa.Table, votes: Mapping[str, float] | None = None, toward_98: float = 0.0) -> pa.Table:
    """The labels of the faces of `jobs.train label-eyes`; faces on which the teachers differ wildly are left out.

    votes: see `models.consensus.agree`. toward_98: share of the way that eye centres move, people's too, from where
    300-W's points have them to where PFLD has them, which learnt from WFLW's 98 points.
    """
    count = len(looks)

    def column(name: str, *shape: int) -> np.ndarray:
        values: np.ndarray = looks[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(count, *shape).astype(np.float64)

    box = column("box", 4)
    middle, side = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).max(1)
    turn = looks["turn"].to_numpy().astype(np.float64)
    frame = (middle, side, turn)
    given = to_face(column("given", 12, 2), *frame)
    twelve = {name: to_face(column(name, 2, 12, 2).mean(1), *frame) for name in ("pfld", "mesh", "ours")}
    five = to_face(column("five", 2, 5, 2).mean(1)[:, :2], *frame)
    landmarks = to_face(column("landmarks", 2, 2), *frame)
    shift = toward_98 * offset(centres(twelve["pfld"]), centres(given))
    for name, points in twelve.items():
        moved = offset(given, points)
        print(f"{name}: moved by {np.abs(moved).mean():.2%} of the box on average, eye centres by "
              f"{moved[:, 1].mean():+.2%} (down)", flush=True)
        twelve[name] = points + moved
    five = five + offset(centres(given), five)
    first = agree(twelve, {"five": five}, given)
    landmarks = landmarks + offset(centres(first.points), landmarks)
    eyes = {"five": five, "landmarks": landmarks}
    unaided = agree(twelve, eyes, np.full_like(given, np.nan), votes)
    known = np.isfinite(given).all((1, 2))
    if known.any():
        off = np.linalg.norm(centres(unaided.points) - centres(given), axis=2)[known]
        print(f"{known.sum()} faces with people's points: the consensus is off by {np.median(off):.2%} (median) and "
              f"{off.mean():.2%} (mean), the teachers differ by {unaided.differences[known].mean():.2%}", flush=True)
    labels = agree(twelve, eyes, given, votes)
    kept = np.flatnonzero((labels.differences.mean(1) < MAX_DIFFERENCE) & np.isfinite(labels.points).all((1, 2)))
    points = from_face(labels.points + np.repeat(shift, 6, axis=0), *frame)
    images = looks["image"].to_pylist()
    return pa.table({
        "source": looks["source"].take(kept),
        "image": pa.array([images[i] for i in kept], pa.binary()),
        "box": pa.FixedSizeListArray.from_arrays(box[kept].astype(np.float32).ravel(), 4),
        "points": pa.FixedSizeListArray.from_arrays(points[kept].astype(np.float32).ravel(), 24),
        "differences": pa.FixedSizeListArray.from_arrays(labels.differences[kept].astype(np.float32).ravel(), 2),
        "whole": known[kept],
        "held_out": np.array([held_out(images[i]) for i in kept], bool),
    })


def write_labels(labels: pa.Table, out: Path, seed: int = 7) -> list[Path]:
    """The rows in random order, in files of about `FILE_BYTES`; all of them or none."""
    out.mkdir(parents=True, exist_ok=True)
    labels = labels.take(np.random.default_rng(seed).permutation(len(labels)))
    sizes = np.cumsum([len(content.as_py()) for content in labels["image"]])
    ends = [*np.searchsorted(sizes, np.arange(FILE_BYTES, sizes[-1], FILE_BYTES)), len(labels)]
    for old in out.glob("labels-*.parquet"):
        old.unlink()
    written = []
    for number, (first, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        path = out / f"labels-{number:02d}.parquet"
        pq.write_table(labels.slice(first, end - first), path, compression="zstd")
        written.append(path)
    return written


def votes_argument(text: str) -> dict[str, float]:
    """`pfld=2,ours=1` as a mapping; one of the teachers must mark points."""
    votes = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in TEACHERS:
            raise argparse.ArgumentTypeError(f"{name!r} is no teacher; known: {', '.join(TEACHERS)}")
        votes[name] = weight(value)
    if not any(votes.get(name, 0) > 0 for name in ("pfld", "mesh", "ours")):
        raise argparse.ArgumentTypeError("pfld, mesh or ours must have a vote: the others mark no points")
    return votes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = command_parser("train agree-eyes", str(__doc__))
    parser.add_argument("--looks", type=Path, required=True, metavar="DIR", help="output folder of label-eyes")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/eyes-labels"), metavar="DIR",
                        help="folder of the labels (default: %(default)s)")
    parser.add_argument("--votes", type=votes_argument, metavar="NAME=N,…", help=(
        f"weighted means of these teachers instead of the median of all: {', '.join(TEACHERS)}"))
    parser.add_argument("--toward-98", type=share, default=0.0, metavar="SHARE", help=(
        "share of the way that eye centres move from where 300-W's points have them to where WFLW's have them, as PFLD "
        "has learnt it (default: %(default)s)"))
    args = parser.parse_args(argv)
    return run_command("train agree-eyes", partial(make_labels, args), again="The same command starts again.")


def make_labels(args: argparse.Namespace) -> None:
    """Read what label-eyes wrote, and write the labels. Raises DataError."""
    parts = sorted(args.looks.glob("[!.]*.parquet"))
    if not parts:
        raise DataError(f"{args.looks} holds no *.parquet: run jobs.train label-eyes first")
    labels = consensus_table(pa.concat_tables([pq.read_table(part) for part in parts]), args.votes, args.toward_98)
    files = write_labels(labels, args.out)
    print(f"{len(labels)} faces, {labels['held_out'].to_numpy().sum()} of them held out, in {len(files)} files")
