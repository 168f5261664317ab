"""`jobs.evaluate stability`: how far eyes and vectors move when the detector's boxes are off by a little.

Boxes of the same face differ from photo to photo by 1 to 2% of their longer side, and so do the detector's points. What
does not hold under that says nothing about the face.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.evaluate.data import DataError, decode_image
from jobs.evaluate.evaluation import Evaluation, Plot
from jobs.evaluate.runtime import runtime_of
from models.store import read_model
from pipeline.geometry import AlignmentTemplate, eye_centres, longer_sides, transform, transform_boxes
from pipeline.stages.align import align_chip
from pipeline.stages.operations import cut_chip, letterbox

JITTERS = (0.005, 0.01, 0.02)         # standard deviations, shares of the longer side
DRAWS = 5                             # of the jitter for every face: the first percentile of one draw varies by 0.03
SPREAD_SHARE_LEFT_OUT = 0.05          # of the faces, those with the largest spread
SIZES = ((40, 80), (80, 160), (160, float("inf")))     # longer sides in pixels
LOWEST_COSINE = 0.5                   # of the plot
COLUMNS = (
    "box jitter, share of the longer side", "p1", "p5", "median", "eyes move (share of the side)",
    "p1 without the 5% of largest spread", "p1, p5 where align_ok",
)
EyeModel = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]]
"""Chips to eye points (n, 12, 2) and spreads (n, 2), both in chip pixels."""


@dataclass(frozen=True)
class Looks:
    """What came of n faces with one set of boxes: eye centres (n, 2, 2) in pixels, unit vectors (n, dim), spreads (n,).

    A spread is the larger of both eyes', in longer box sides; NaN where the network does not say it.
    align_ok: (n,) bool, see `pipeline.stages.align.alignment`.
    """

    eyes: np.ndarray
    vectors: np.ndarray
    spreads: np.ndarray
    align_ok: np.ndarray

    def repeated(self, times: int) -> Looks:
        """All faces, several times."""
        each = (self.eyes, self.vectors, self.spreads, self.align_ok)
        return Looks(*(np.concatenate([of] * times) for of in each))


def stability(args: argparse.Namespace) -> Evaluation:
    """Cosines of every face with itself under jittered boxes, and how far its eyes move."""
    from jobs.extract.stages import alignment_template
    from models.embedder import load_embedder
    from models.keypointer import load_keypointer

    photos, boxes, points5 = find_faces(args)
    eye_model = read_model(args.weights, "keypointer", args.keypointer)
    embed_model = read_model(args.weights, "embedder", args.embedder)
    template = alignment_template(embed_model.card)
    keypointer = load_keypointer(eye_model, runtime_of(args), batch_size=args.batch_size)
    embed = load_embedder(embed_model, runtime_of(args), batch_size=args.batch_size)
    sides = longer_sides(np.concatenate(boxes))

    def look(jitter: float) -> Looks:
        moved = jittered(boxes, boxes, jitter, rng)
        moved5 = jittered(points5, boxes, jitter, rng) if args.jitter_points else points5
        return look_at(photos, boxes, moved, moved5, keypointer.with_spreads, embed, template)

    rng = np.random.default_rng(args.seed)
    unmoved = look(0.0)
    by_jitter = {
        jitter: np.concatenate([moved_by(unmoved, look(jitter), sides) for _ in range(DRAWS)], axis=1)
        for jitter in JITTERS
    }
    figures = {
        f"{jitter:.1%}": jitter_figures(cosines, moves, unmoved.repeated(DRAWS), np.tile(sides, DRAWS))
        for jitter, (cosines, moves) in by_jitter.items()
    }
    evaluation = Evaluation(
        f"Stability of {len(sides)} faces of {args.min_face_px} px and more: {eye_model.card.identity}, "
        f"{embed_model.card.identity}, boxes {'and points ' if args.jitter_points else ''}of {args.detector}",
        {"keypointer": eye_model.card.identity, "embedder": embed_model.card.identity, "detector": args.detector,
         "faces": len(sides), "seed": args.seed, "draws": DRAWS, "jitter_points": args.jitter_points,
         "jitter": figures},
        COLUMNS, [(name, *_cells(of)) for name, of in figures.items()],
        Plot("cosine with the face of the unmoved box", "share of the faces with at most that cosine",
             {f"{jitter:.1%}": _curve(cosines) for jitter, (cosines, _) in by_jitter.items()}, (LOWEST_COSINE, 1)),
    )
    if args.update_card:
        name = "stability_with_points" if args.jitter_points else "stability"
        evaluation.record(args.weights, eye_model.card, name, args.command_line)
    return evaluation


def _cells(of: Mapping[str, Any]) -> Sequence[str]:
    """The figures of a jitter, in the order of COLUMNS."""
    sure = f"{of['p1_sure']:.3f}" if "p1_sure" in of else ""
    aligned = "{p1:.3f}, {p5:.3f} ({share:.1%})".format(**of["align_ok"]) if "align_ok" in of else ""
    return (*(f"{of[key]:.3f}" for key in ("p1", "p5", "median")), f"{of['eyes_move']:.2%}", sure, aligned)


def find_faces(args: argparse.Namespace) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """The photos of the folder that have faces, and their boxes (n, 4) of at least --min-face-px with the detector's
    points (n, 5, 2), NaN if it finds none. Raises DataError.
    """
    from models.detector import load_detector

    detect = load_detector(
        read_model(args.weights, "detector", args.detector), runtime_of(args), batch_sizes={args.input_px: 1},
        min_score=args.min_score, nms_iou=0.5, max_detections=1000,
    )
    photos, boxes, points5 = [], [], []
    for path in sorted(args.photos.iterdir()) if args.photos.is_dir() else []:
        pixels = decode_image(path.read_bytes()) if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") else None
        if pixels is None:
            continue
        canvas, to_image = letterbox(pixels, args.input_px)
        on_canvas, _, five = detect(canvas[None])[0]
        height, width = pixels.shape[:2]
        found = np.clip(transform_boxes(to_image, on_canvas), 0, np.array([width, height] * 2, np.float32))
        large = longer_sides(found) >= args.min_face_px
        if large.any():
            photos.append(pixels)
            boxes.append(found[large])
            points5.append(transform(to_image, five[large].astype(np.float64)))
    if not photos:
        raise DataError(f"{args.photos} holds no photo with a face of {args.min_face_px} px")
    return photos, boxes, points5


def jittered(
    coordinates: Sequence[np.ndarray], boxes: Sequence[np.ndarray], jitter: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Coordinates of faces (n, …) by photo, each moved on its own: normal, `jitter` of the longer side of its box."""
    return [
        (of + (rng.normal(0, jitter, of.shape).T * longer_sides(box)).T).astype(of.dtype)
        for of, box in zip(coordinates, boxes, strict=True)
    ]


def look_at(
    photos: Sequence[np.ndarray], boxes: Sequence[np.ndarray], moved: Sequence[np.ndarray],
    points5: Sequence[np.ndarray], keypointer: EyeModel, embed: Callable[[np.ndarray], np.ndarray],
    template: AlignmentTemplate,
) -> Looks:
    """Eyes and vectors of all faces, cut out and aligned by the moved boxes; spreads by the sides of the others."""
    cut = [(*cut_chip(photo, box), box) for photo, of in zip(photos, moved, strict=True) for box in of]
    sides = longer_sides(np.concatenate(boxes))
    to_image = np.array([matrix for _, matrix, _ in cut])
    chip_points, chip_spreads = keypointer([chip for chip, _, _ in cut])
    points = transform(to_image, chip_points.astype(np.float64))
    spreads = chip_spreads.max(1) * to_image[:, 0, 0] / sides
    aligned = [
        align_chip(chip, matrix, box, eyes, template, spread, five)
        for (chip, matrix, box), eyes, spread, five in zip(cut, points, spreads, np.concatenate(points5), strict=True)
    ]
    vectors = embed(np.stack([face.crop for face in aligned]))
    return Looks(
        np.stack(eye_centres(points), 1), vectors / np.linalg.norm(vectors, axis=1, keepdims=True), spreads,
        np.array([face.align_ok for face in aligned]),
    )


def moved_by(unmoved: Looks, moved: Looks, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (n,) between both, and how far the eyes are apart on average, (n,) in longer box sides."""
    cosines = (unmoved.vectors * moved.vectors).sum(1)
    return cosines, np.linalg.norm(unmoved.eyes - moved.eyes, axis=2).mean(1) / sides


def jitter_figures(cosines: np.ndarray, moves: np.ndarray, unmoved: Looks, sides: np.ndarray) -> dict[str, Any]:
    """The figures of one jitter over n faces; `p1_sure` leaves out the largest spreads, where they are known."""
    spreads, ok = unmoved.spreads, unmoved.align_ok
    figures: dict[str, Any] = _percentiles(cosines) | {"eyes_move": round(float(np.median(moves)), 5)}
    if ok.any():
        figures["align_ok"] = {"share": round(float(ok.mean()), 5)} | _percentiles(cosines[ok])
    if np.isfinite(spreads).all():
        sure = np.argsort(spreads, kind="stable")[: round(len(spreads) * (1 - SPREAD_SHARE_LEFT_OUT))]
        figures["p1_sure"] = _percentiles(cosines[sure])["p1"]
    figures["by_size"] = {
        f"{low}-{high}" if np.isfinite(high) else f"{low}-": {"looks": int(rows.sum())} | _percentiles(cosines[rows])
        for low, high in SIZES if (rows := (sides >= low) & (sides < high)).any()
    }
    return figures


def _percentiles(cosines: np.ndarray) -> dict[str, float]:
    return {name: round(float(np.percentile(cosines, q)), 5) for name, q in (("p1", 1), ("p5", 5), ("median", 50))}


def _curve(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.linspace(LOWEST_COSINE, 1, 201)
    return at, np.searchsorted(np.sort(cosines), at, side="right") / len(cosines)
