"""Faces with consensus labels: read, drawn as pairs of views for training, and held out to choose between runs by."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jobs.evaluate.data import decode_image, read_table
from jobs.train.label_eyes import HARD_SOURCES, kept_face, kept_matrix
from models.consensus import label_weights
from models.eye_layout import FACE_BOX_PX
from models.eye_views import VIEW_BOX_RATIO, Dice, ViewOptions, invert, make_pairs, move, view_matrices, warp
from models.training import TrainingError

HUMAN_SHARE = (0.15, 0.35)        # of a batch, faces with people's points: at first, at the end
PHOTO_TIMES = 2.5                 # faces of photos are drawn so often: most are turned, covered or small
HARD_TIMES = 2.0                  # the same for collections of turned and covered faces, and where teachers differ
DIFFERENT = (0.015, 0.08)         # longer box sides by which the teachers differ: somewhat; beyond, it is no label
TURNED = 0.25                     # eyes closer than that, over the box's side, are of a turned face
SURE = 0.03                       # held-out labels whose teachers differ by less are measured on


@dataclass(frozen=True)
class LabelledFaces:
    """Kept faces (n, 192, 192, 3) uint8 RGB, points (n, 12, 2) in their pixels, differences (n, 2) in box sides.

    human: (n,) bool, people's points. often: (n,) how often each is drawn among its kind. held_out: (n,) bool.
    """

    images: np.ndarray
    points: np.ndarray
    differences: np.ndarray
    human: np.ndarray
    often: np.ndarray
    held_out: np.ndarray


def read_labels(folder: Path, cache: Path) -> LabelledFaces:
    """The labelled faces of `agree-eyes`; pixels are decoded once, into cache. Raises DataError, TrainingError."""
    table = read_table(folder, ["source", "image", "box", "points", "differences", "whole", "held_out"])

    def column(name: str, *shape: int) -> np.ndarray:
        values: np.ndarray = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(table), *shape).astype(np.float64)

    boxes, points, differences = column("box", 4), column("points", 12, 2), column("differences", 2)
    matrices = np.stack([kept_matrix(box) for box in boxes])
    if not cache.exists():
        contents = table["image"]

        def keep(i: int) -> np.ndarray:
            pixels = decode_image(contents[i].as_py())
            if pixels is None:
                raise TrainingError(f"image {i} of {folder} cannot be read")
            return kept_face(pixels, matrices[i])

        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(f".{time.time_ns()}")
        with temporary.open("wb") as file, ThreadPoolExecutor() as pool:
            np.save(file, np.stack(list(pool.map(keep, range(len(table))))))
        temporary.replace(cache)
    kept_points = np.einsum("nij,nkj->nki", matrices[:, :, :2], points) + matrices[:, None, :, 2]
    source = np.array(table["source"].to_pylist())
    human = table["whole"].to_numpy(zero_copy_only=False)
    apart = np.linalg.norm(np.diff(kept_points.reshape(-1, 2, 6, 2).mean(2), axis=1)[:, 0], axis=1) / FACE_BOX_PX
    often = np.where(source == "wider", PHOTO_TIMES, 1.0)
    somewhat, wildly = (differences.mean(1) > limit for limit in DIFFERENT)
    often *= np.where(np.isin(source, HARD_SOURCES) | somewhat, HARD_TIMES, 1.0)
    often *= np.where(apart < TURNED, HARD_TIMES, 1.0)
    often[wildly] = 0.5
    return LabelledFaces(np.load(cache, mmap_mode="r"), kept_points, differences, human, often,
                         table["held_out"].to_numpy(zero_copy_only=False))


class Drawn:
    """Training pairs of labelled faces, all on one device."""

    def __init__(self, faces: LabelledFaces, device: torch.device, input_px: int, batch_size: int, seed: int) -> None:
        rows = np.flatnonzero(~faces.held_out)
        self._faces = torch.from_numpy(np.ascontiguousarray(faces.images[rows])).to(device).permute(0, 3, 1, 2)
        self._points, self._differences, self._weights, often, human = (
            torch.as_tensor(values, device=device) for values in (
                faces.points[rows].astype(np.float32), faces.differences[rows].astype(np.float32),
                label_weights(faces.differences[rows]).astype(np.float32), faces.often[rows], faces.human[rows],
            )
        )
        if not len(rows) or not (~human).any():
            raise TrainingError("there is no face to train on")
        self._often = torch.where(human, 0.0, often)
        self._human = torch.where(human, often, 0.0)
        self._any_human = bool(human.any())
        self._device, self._input_px, self._batch_size, self._seed = device, input_px, batch_size, seed
        self._options = ViewOptions()

    def batch(self, number: int, progress: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Inputs (2b, 3, px, px), and what `PairLoss` gets besides the output; a function of number and progress."""
        dice = Dice(self._seed * 1_000_003 + number, self._device)
        first, last = HUMAN_SHARE
        from_people = round(self._batch_size * (first + (last - first) * progress)) if self._any_human else 0
        rows = dice.choose(self._often, self._batch_size - from_people)
        if from_people:
            rows = torch.cat([rows, dice.choose(self._human, from_people)])
        rows = rows[torch.argsort(dice.uniform(0, 1, len(rows)))]
        pairs = make_pairs(self._faces[rows], self._points[rows], self._input_px, dice, self._options)
        weights, differences = (
            torch.where(pairs.mirrored[:, None], by_eye.flip(1), by_eye).repeat(2, 1)
            for by_eye in (self._weights[rows], self._differences[rows] / VIEW_BOX_RATIO)
        )
        return pairs.inputs, (pairs.points, shared_places(pairs.matrices, self._input_px), weights, differences)


def shared_places(matrices: Tensor, input_px: int) -> Tensor:
    """From fractions of each view to fractions of the first view of its pair, (2n, 2, 3)."""
    first = matrices.chunk(2)[0].repeat(2, 1, 1)
    back = invert(matrices)
    linear = first[:, :, :2] @ back[:, :, :2]
    shift = first[:, :, :2] @ back[:, :, 2:] + first[:, :, 2:]
    return torch.cat([linear, shift / input_px], 2)


class HeldOut:
    """Held-out faces as the pipeline would cut them, with jittered boxes, and turned; and what a network does there."""

    def __init__(self, faces: LabelledFaces, device: torch.device, input_px: int, seed: int) -> None:
        rows = np.flatnonzero(faces.held_out)
        if not len(rows):
            raise TrainingError("no face is held out: there must be some to choose by")
        self._human = torch.as_tensor(faces.human[rows], device=device)
        self._hard = torch.as_tensor((faces.often[rows] > 1) & ~faces.human[rows], device=device)
        differences = torch.as_tensor(faces.differences[rows], device=device)
        self._sure = (differences < SURE).all(1)
        kept = torch.from_numpy(np.ascontiguousarray(faces.images[rows])).to(device).permute(0, 3, 1, 2)
        points = torch.as_tensor(faces.points[rows], dtype=torch.float32, device=device)
        dice = Dice(seed, device)
        count = len(rows)
        zero, not_mirrored = torch.zeros(count, device=device), torch.zeros(count, dtype=torch.bool, device=device)
        turn = dice.uniform(-90, 90, count)
        seen = ((zero, 0.0, 0.0), (zero, 0.01, 0.01), (turn, 0.02, 0.03))      # as is, jittered by 1%, turned
        self._views = []
        for roll, shift, scale in seen:
            matrices = view_matrices(roll, dice.normal(count, 2) * shift, dice.normal(count) * scale, not_mirrored,
                                     input_px)
            views = [warp(kept[i : i + 256].float(), matrices[i : i + 256], input_px) for i in range(0, count, 256)]
            self._views.append((torch.cat(views).round().to(torch.uint8), matrices))
        self._points, self._input_px = points, input_px

    @torch.inference_mode()
    def measure(self, network: nn.Module) -> dict[str, float]:
        """Errors of eye centres in longer box sides, `hard…` on faces drawn more often; NME by people's points.

        moved, moved_p99: how far eyes go when the box is jittered by 1%. turned: the mean error where the face is
        turned by up to 90°. spread_ratio: mean error over mean spread. merit: what chooses between runs, lower is
        better: errors on hard and turned faces, and half of how far the eyes move.
        """
        was_training = network.training
        network.eval()
        found = []
        for views, matrices in self._views:
            inputs = [(views[i : i + 256].float() - 127.5) / 127.5 for i in range(0, len(views), 256)]
            output = torch.cat([network(part.contiguous(memory_format=torch.channels_last)) for part in inputs]).float()
            found.append((move(invert(matrices), output[:, :12] * self._input_px), output[:, 12]))
        network.train(was_training)
        eyes = [points.reshape(-1, 2, 6, 2).mean(2) for points, _ in found]
        wanted = self._points.reshape(-1, 2, 6, 2).mean(2)
        off = (eyes[0] - wanted).norm(dim=2) / FACE_BOX_PX
        turned = (eyes[2] - wanted).norm(dim=2) / FACE_BOX_PX
        moved = ((eyes[1] - eyes[0]).norm(dim=2) / FACE_BOX_PX).mean(1)
        spread = found[0][1] * VIEW_BOX_RATIO
        sure, hard = self._sure & ~self._human, self._sure & self._hard
        outer = (self._points[:, 0] - self._points[:, 9]).norm(dim=1)
        nme = (found[0][0] - self._points).norm(dim=2).mean(1) / outer
        figures = {
            "mean": off[sure].mean(), "hard": off[hard].mean(),
            "hard_above_5": (off[hard].mean(1) > 0.05).float().mean(),
            "turned": turned[sure].mean(), "moved": moved.mean(), "moved_p99": moved.quantile(0.99),
            "nme": nme[self._human].mean(), "spread_ratio": off[sure].mean() / spread[sure].mean(),
        }
        figures["merit"] = figures["hard"] + figures["turned"] + figures["moved"] / 2
        return {name: round(float(value), 5) for name, value in figures.items()}
