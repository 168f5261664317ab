"""`jobs.evaluate identification` and `verification`: whether cosines tell people apart."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.evaluate.data import (
    DataError,
    card_of,
    decode_column,
    is_output,
    made_by,
    point_column,
    read_output,
    read_table,
)
from jobs.evaluate.report import Plot, Report
from models import metrics
from models.store import read_card, read_model

if TYPE_CHECKING:
    import pyarrow as pa

FPRS = (0.2, 0.1, 0.05, 0.01, 0.001)
VERIFICATION_FPRS = (0.1, 0.01, 0.001)
REFERENCE_TPR = {0.2: 0.725, 0.1: 0.588, 0.05: 0.465}      # of the project's origin, on photos of its own
LOWEST_FPR = 1e-4                                          # of the plot
NO_FACE_COSINE = -1.0


def identification(args: argparse.Namespace) -> Report:
    """True positive rates over all pairs: of ready-cut crops, or of the middle faces of an extract output.

    Negatives are all pairs of different people, positives all pairs of the same person; distractors, people with one
    photo each, only make negatives. Crops are aligned as in the pipeline, once by our eyes (`ours`) and once by given
    ones (`given`). An output's faces are taken as they are (`pipeline`); a pair with a photo without face has the
    cosine −1. With --update-card the rates and thresholds of `ours` or `pipeline` go into the embedder's card.
    """
    if args.update_card and special_settings(args):
        raise DataError(f"--update-card records the default settings only, not: {', '.join(special_settings(args))}")
    if is_output(args.crops):
        if args.truth is None:
            raise DataError(f"{args.crops} is an output of jobs.extract: name the people (name, identity) by --truth")
        if args.flip or args.precision != "float32":
            raise DataError(f"{args.crops} holds vectors, which --flip and --precision come too late for: give crops")
        table, distractors = read_people(args.truth, ["name", "identity"], args.no_distractors)
        vectors, embedder, keypointer = extracted_vectors(args.crops, table["name"].to_pylist())
        by_eyes = {"pipeline": vectors}
        card = card_of(args.weights, "embedder", embedder) if args.update_card else None
    else:
        table, distractors = read_people(args.crops, ["identity", "image", "landmarks"], args.no_distractors)
        by_eyes, keypointer = embed_crops(table, args), args.keypointer
        card = read_card(args.weights, "embedder", args.embedder)
        embedder = card.identity
    people = np.unique(table["identity"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    pairs = {name: face_pairs(vectors, people, args.dtype) for name, vectors in by_eyes.items()}
    rates = {name: tpr_at_fpr(pairs[name], FPRS) for name in pairs}
    settings = {
        "distractors": distractors, "flip": args.flip, "vector_dtype": args.dtype, "network_dtype": args.precision,
    }
    among = f", {distractors} of them distractors" if distractors else ""
    report = Report(
        f"Identification on {len(people)} faces of {len(set(people))} people{among}: "
        + ", ".join([embedder, *special_settings(args)]),
        {"embedder": embedder, "keypointer": keypointer, "crops": len(people),
         **{f"eyes_{name}": rounded_rates(by_fpr) for name, by_fpr in rates.items()}, **settings,
         "reference_on_other_data": {f"{fpr:g}": tpr for fpr, tpr in REFERENCE_TPR.items()}},
        ("eyes", *(f"TPR at FPR {fpr:g}" for fpr in FPRS)),
        [*((name, *(f"{by_fpr[fpr][0]:.4f}" for fpr in FPRS)) for name, by_fpr in rates.items()),
         ("reference: ResNet101 of the project's origin, other data",
          *(f"{REFERENCE_TPR[fpr]:.3f}" if fpr in REFERENCE_TPR else "" for fpr in FPRS))],
        roc_plot({f"eyes: {name}": pairs[name] for name in pairs}),
    )
    if card is not None and args.update_card:
        thresholds = {f"{fpr:g}": round(threshold, 5) for fpr, (_, threshold) in next(iter(rates.values())).items()}
        report.record(args.weights, card, "identification", args.command_line, thresholds)
    return report


def read_people(path: Path, columns: Sequence[str], no_distractors: bool) -> tuple[pa.Table, int]:
    """The table with its rows of `role` distractor or without them, and how many it has of those. Raises DataError."""
    import pyarrow.compute as pc

    table = read_table(path, columns, ["role"])
    if "role" not in table.column_names:
        if no_distractors:
            raise DataError(f"{path} has no column role that says who is a distractor: leave --no-distractors out")
        return table, 0
    is_distractor = pc.fill_null(pc.equal(table["role"].cast("string"), "distractor"), False)
    if not no_distractors:
        return table, pc.sum(is_distractor).as_py()
    if pc.all(is_distractor).as_py():
        raise DataError(f"{path} holds distractors alone: leave --no-distractors out")
    return table.filter(pc.invert(is_distractor)), 0


def special_settings(args: argparse.Namespace) -> list[str]:
    """What a title must say because it is not the default."""
    said = {"without distractors": args.no_distractors, "flip-averaged": args.flip,
            "float16 vectors": args.dtype == "float16", "bfloat16 network": args.precision == "bfloat16"}
    return [words for words, holds in said.items() if holds]


def embed_crops(table: pa.Table, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Unit vectors (n, dim) of the crops by whose eyes they are aligned, see `align_crops`."""
    import torch

    from models.device import torch_device
    from models.embedder import load_embedder

    model = read_model(args.weights, "embedder", args.embedder)
    embed = load_embedder(model, device=args.device, batch_size=args.batch_size)
    by_eyes = {}
    for name, crops in align_crops(table, args).items():
        with torch.autocast(torch_device(args.device).type, torch.bfloat16, enabled=args.precision == "bfloat16"):
            vectors = embed(crops)
            if args.flip:
                vectors = vectors + embed(np.ascontiguousarray(crops[:, :, ::-1]))
        by_eyes[name] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return by_eyes


def align_crops(table: pa.Table, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Aligned faces (n, 112, 112, 3) by whose eyes they are aligned: `ours` (--keypointer) and `given` (landmarks).

    The template is the uncalibrated one, for the crops' boxes are not our detector's.
    """
    from models.eyes import load_keypointer
    from models.training import box_of_crop
    from pipeline.geometry import AlignmentTemplate, transform
    from pipeline.stages.align import align_chip
    from pipeline.stages.detect import cut_chip

    images = decode_column(table, args.crops)
    boxes = [box_of_crop(len(image)) for image in images]
    chips, to_image = zip(*(cut_chip(image, box) for image, box in zip(images, boxes, strict=True)), strict=True)
    model = read_model(args.weights, "keypointer", args.keypointer)
    keypointer = load_keypointer(model, device=args.device, batch_size=args.batch_size)
    landmarks = point_column(table, "landmarks", 5, args.crops)
    points = {
        "ours": transform(np.array(to_image), keypointer(chips).astype(np.float64)),
        "given": np.repeat(landmarks[:, :2], 6, axis=1),
    }
    return {
        name: np.stack([
            align_chip(*face, AlignmentTemplate()).crop for face in zip(chips, to_image, boxes, eyes_xy, strict=True)
        ])
        for name, eyes_xy in points.items()
    }


def extracted_vectors(output: Path, names: Sequence[str]) -> tuple[np.ndarray, str, str]:
    """Unit vectors (n, dim) of the named images' middle faces, NaN where there is none; embedder and keypointer.

    Raises DataError where no image has a face.
    """
    images = read_output(output, names, ["embedding", "embedder", "keypointer"])
    faces = [image.middle_face() for image in images]
    embedder = made_by(images, "embedder")
    nothing = np.full_like(next(face["embedding"] for face in faces if face), np.nan, np.float64)
    return np.array([face["embedding"] if face else nothing for face in faces]), embedder, made_by(images, "keypointer")


def face_pairs(vectors: np.ndarray, people: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs and whether both are of one person, see `metrics.pair_cosines`.

    dtype: what the vectors are rounded to first, as `jobs.extract --embedding-dtype` stores them.
    """
    cosines, same = metrics.pair_cosines(vectors.astype(dtype).astype(vectors.dtype), people)
    return np.nan_to_num(cosines, nan=NO_FACE_COSINE), same


def tpr_at_fpr(pairs: tuple[np.ndarray, np.ndarray], fprs: Sequence[float]) -> dict[float, tuple[float, float]]:
    """`metrics.tpr_at_fpr`; raises DataError without pairs of both kinds."""
    try:
        return metrics.tpr_at_fpr(*pairs, fprs)
    except ValueError as error:
        raise DataError(f"{error}: at least two photos of one person and one of another are needed") from None


def rounded_rates(rates: Mapping[float, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """The rates of `metrics.tpr_at_fpr` for a JSON file."""
    return {f"{fpr:g}": {"tpr": round(tpr, 5), "threshold": round(threshold, 5)}
            for fpr, (tpr, threshold) in rates.items()}


def roc_plot(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Plot:
    """The ROC curves of cosines and whether they are of one person, by label."""
    return Plot(
        "false positive rate (share of the pairs of two people)",
        "true positive rate (share of the pairs of one person)",
        {label: metrics.roc_curve(*both, LOWEST_FPR) for label, both in pairs.items()}, (LOWEST_FPR, 1), log_x=True,
    )


def verification(args: argparse.Namespace) -> Report:
    """Accuracy on pairs of photos of an extract output; the face nearest the middle counts, no face is cosine −1.

    With n pairs of different people the rate at an FPR below 1/n is that without any false positive.
    """
    pairs = read_table(args.pairs, ["a", "b", "same"])
    kinds = [str(value) for value in pairs["same"].to_pylist()]
    if wrong := sorted(set(kinds) - {"0", "1"}):
        raise DataError(f"{args.pairs}: same must be 0 or 1, got {wrong[0]!r}")
    same = np.array(kinds) == "1"
    names = sorted({*pairs["a"].to_pylist(), *pairs["b"].to_pylist()})
    vectors, embedder, _ = extracted_vectors(args.output, names)
    row = {name: i for i, name in enumerate(names)}
    first, second = ([row[name] for name in pairs[column].to_pylist()] for column in ("a", "b"))
    cosines = np.nan_to_num(np.einsum("nd,nd->n", vectors[first], vectors[second]), nan=NO_FACE_COSINE)
    try:
        mean, deviation, best, threshold = metrics.verification_accuracy(cosines, same, folds=10)
    except ValueError as error:
        raise DataError(f"{args.pairs}: {error}") from None
    rates = metrics.tpr_at_fpr(cosines, same, VERIFICATION_FPRS)
    without = int((cosines == NO_FACE_COSINE).sum())
    report = Report(
        f"Verification on {len(same)} pairs: {embedder}",
        {"pairs": len(same), "pairs_without_face": without, "accuracy": mean, "deviation": deviation,
         "best_accuracy": best, "best_threshold": threshold, "embedder": embedder, "tpr_at_fpr": rounded_rates(rates)},
        ("pairs", "without a face", "accuracy, ten folds", "at the best threshold", "threshold",
         *(f"TPR at FPR {fpr:g}" for fpr in VERIFICATION_FPRS)),
        [(str(len(same)), str(without), f"{mean:.2%} ± {deviation:.2%}", f"{best:.2%}", f"{threshold:.3f}",
          *(f"{rates[fpr][0]:.4f}" for fpr in VERIFICATION_FPRS))],
        roc_plot({f"{embedder}: {mean:.2%}": (cosines, same)}),
    )
    if args.update_card:
        report.record(
            args.weights, card_of(args.weights, "embedder", embedder), "verification", args.command_line
        )
    return report
