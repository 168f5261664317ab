"""`jobs.bench engines`: the stages by engine and precision, in turns over the same photos; how far the faces differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jobs.bench.in_process import build_stages, default_config, no_seconds, photo_rows, run_stages
from jobs.extract.stages import read_models
from jobs.options import DEFAULT_MODELS
from models.engines.openvino_engine import computes_in_bfloat16
from models.metrics import box_iou
from models.store import WeightCard
from pipeline.batch import FaceBatch, TodoRow
from pipeline.settings import RowSettings

CHUNK_IMAGES = 16
COMPARED_PX = 40            # shorter box side of the faces that are compared
AGREES_IOU, AGREES_COSINE, AGREES_POINTS = 0.97, 0.98, 0.03      # the last over the longer box side


@dataclass
class Variant:
    """One engine in one precision, its stages, and what it has done so far."""

    engine: str
    precision: str
    device: str = "cpu"
    jpeg_decoder: str = "libjpeg"
    weights: str | None = None
    seconds: dict[str, float] = field(default_factory=no_seconds)
    faces: list[FaceBatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = default_config(self.device, RowSettings(jpeg_decoder=self.jpeg_decoder), self.weights)
        self.stages = build_stages(replace(config, engine=self.engine, precision=self.precision))

    def __str__(self) -> str:
        return " ".join(getattr(self, name) for name in ("engine", "precision", "device", "jpeg_decoder"))

    def run(self, rows: Sequence[TodoRow], *, warm_up: bool = False) -> None:
        """Run all stages over some photos."""
        batches = list(run_stages(self.stages, list(rows), no_seconds() if warm_up else self.seconds))
        if not warm_up:
            self.faces += batches


def variants_of(device: str, weights: str | None) -> list[Variant]:
    """The reference, torch in float32 on the CPU, and what the device can do with these weights."""
    reference = Variant("torch", "float32", weights=weights)
    if device == "cuda":
        kinds = ("float32", "libjpeg"), ("float16", "libjpeg"), ("float16", "nvjpeg")
        return [reference, *(Variant("torch", precision, "cuda", decoder, weights) for precision, decoder in kinds)]
    precisions = cpu_precisions(read_models(weights, DEFAULT_MODELS).detector)
    return [reference, *(Variant("openvino", precision, weights=weights) for precision in precisions)]


def cpu_precisions(detector: WeightCard) -> list[str]:
    """What OpenVINO can compute in on this CPU, with this detector."""
    bfloat16 = ["bfloat16"] if computes_in_bfloat16() else []
    return ["float32", *bfloat16, *(["int8"] if "int8" in detector.exports else [])]


def bench_engines(photos: str, device: str, weights: str | None = None) -> None:
    """Print images per second and the ratio to torch in float32, and the agreement of the faces with it.

    weights: a folder; None is this repository's. int8 is measured where the detector has that export.
    """
    rows, variants = photo_rows(photos), variants_of(device, weights)
    for variant in variants:
        variant.run(rows[:CHUNK_IMAGES], warm_up=True)
    for start in range(0, len(rows), CHUNK_IMAGES):
        for variant in variants:      # in turns, so that a change of the machine's speed affects all
            variant.run(rows[start : start + CHUNK_IMAGES])
    reference = variants[0]
    print(f"{len(rows)} images, {sum(map(len, reference.faces))} faces")
    print("| engine | images/s | ratio | ms an image: " + ", ".join(reference.seconds)
          + f" | faces of {COMPARED_PX} px: found, IoU p5, cosine p5, points p95, agreeing |\n|---|---|---|---|---|")
    for variant in variants:
        total = sum(variant.seconds.values())
        stages = ", ".join(f"{1000 * spent / len(rows):.1f}" for spent in variant.seconds.values())
        print(f"| {variant} | {len(rows) / total:.2f} | "
              f"{sum(reference.seconds.values()) / total:.2f} | {stages} | {agreement(variant, reference)} |")


def agreement(variant: Variant, reference: Variant) -> str:
    """How the faces of the reference are found again: share found, IoU and cosine at the fifth percentile, distance of
    the detector's points at the 95th, share that has at least `AGREES_IOU` and `AGREES_COSINE` and at most
    `AGREES_POINTS`.
    """
    pairs = np.array([
        pair for found, wanted in zip(variant.faces, reference.faces, strict=True) for pair in face_pairs(found, wanted)
    ])
    if not len(pairs):
        return "no faces"
    agreeing = (pairs[:, 0] >= AGREES_IOU) & (pairs[:, 1] >= AGREES_COSINE) & (pairs[:, 2] <= AGREES_POINTS)
    iou, cosine, _ = np.percentile(pairs, 5, axis=0)
    apart = np.percentile(pairs[:, 2], 95)
    return f"{(pairs[:, 0] > 0.5).mean():.3f}, {iou:.3f}, {cosine:.3f}, {apart:.3f}, {agreeing.mean():.3f}"


def face_pairs(found: FaceBatch, wanted: FaceBatch) -> list[tuple[float, float, float]]:
    """IoU, cosine and distance of the points of every compared face of `wanted` with the face of the same image that
    overlaps it most. The distance is the mean of the detector's five points over the longer box side, 0 without points.
    """
    pairs = []
    images_found, images = (np.repeat(np.arange(len(batch.records)), batch.face_counts) for batch in (found, wanted))
    for i, (image, box) in enumerate(zip(images, wanted.boxes_xyxy, strict=True)):
        if min(box[2:] - box[:2]) < COMPARED_PX:
            continue
        candidates = np.flatnonzero(images_found == image)
        if not len(candidates):
            pairs.append((0.0, 0.0, 1.0))
            continue
        ious = box_iou(found.boxes_xyxy[candidates], box[None])[:, 0]
        best = candidates[ious.argmax()]
        apart = np.linalg.norm(found.points5[best] - wanted.points5[i], axis=1).mean() / max(box[2:] - box[:2])
        cosine = float(found.embeddings[best] @ wanted.embeddings[i])
        pairs.append((float(ious.max()), cosine, float(np.nan_to_num(apart))))
    return pairs
