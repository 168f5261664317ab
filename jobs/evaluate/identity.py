"""`jobs.evaluate identification` and `verification`: do the cosines of vectors tell people apart?"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from jobs.evaluate.evaluation import Evaluation, Plot
from jobs.evaluate.runtime import is_reference, runtime_of, runtime_words
from models import metrics
from models.store import StoredModel, WeightCard, read_model

if TYPE_CHECKING:
    import pyarrow as pa

FPRS = (0.2, 0.1, 0.05, 0.01, 0.001)
VERIFICATION_FPRS = (0.1, 0.01, 0.001)
REFERENCE_TPR = {0.2: 0.725, 0.1: 0.588, 0.05: 0.465}      # of the project's origin, on other photos
LOWEST_FPR = 1e-4                                          # of the plot
NO_FACE_COSINE = -1.0

Pairs = tuple[np.ndarray, np.ndarray]
"""Cosines of pairs, and whether each is of one person, both (pairs,)."""


@dataclass(frozen=True)
class EmbeddedFaces:
    """What is compared: the vectors of faces by the source of their eyes, and who the faces are of.

    by_eyes: (n, dim) each, NaN for a face that was not found. people: (n,) labels. card: the embedder's, None if it is
    not needed. landmarks: (n, 5, 2) in pixels, NaN for the faces of an output.
    """

    by_eyes: dict[str, np.ndarray]
    people: np.ndarray
    distractors: int
    embedder: str
    keypointer: str
    card: WeightCard | None
    landmarks: np.ndarray


def identification(args: argparse.Namespace) -> Evaluation:
    """True positive rates over all pairs: of ready-cut crops, or of the middle faces of an extract output.

    Negatives are all pairs of different people, positives all pairs of one person. Distractors are people with one
    photo each: they only make negatives. Crops are aligned as in the pipeline, once by our eyes (`ours`) and once by
    the data's (`given`). An output's faces are taken as they are (`pipeline`); a pair with a photo without a face has
    the cosine −1. With --update-card the rates and thresholds of `ours` or `pipeline` go into the embedder's card.
    """
    refuse_special_card(args)
    faces = extracted_faces(args) if is_output(args.crops) else embedded_crops(args)
    pairs = all_pairs(faces, args)
    rates = {name: tpr_at_fpr(pairs[name], FPRS) for name in pairs}
    among = f", {faces.distractors} of them distractors" if faces.distractors else ""
    evaluation = Evaluation(
        f"Identification on {len(faces.people)} faces of {len(set(faces.people))} people{among}: "
        + ", ".join([faces.embedder, *special_settings(args)]),
        {"embedder": faces.embedder, "keypointer": faces.keypointer, "crops": len(faces.people),
         **{f"eyes_{name}": rounded_rates(by_fpr) for name, by_fpr in rates.items()},
         "distractors": faces.distractors, "flip": args.flip, "vector_dtype": args.dtype,
         "engine": args.engine, "network_dtype": args.precision,
         "reference_on_other_data": {f"{fpr:g}": tpr for fpr, tpr in REFERENCE_TPR.items()}},
        ("eyes", *(f"TPR at FPR {fpr:g}" for fpr in FPRS)),
        [*((name, *(f"{by_fpr[fpr][0]:.4f}" for fpr in FPRS)) for name, by_fpr in rates.items()),
         ("reference: ResNet101 of the project's origin, other data",
          *(f"{REFERENCE_TPR[fpr]:.3f}" if fpr in REFERENCE_TPR else "" for fpr in FPRS))],
        roc_plot({f"eyes: {name}": pairs[name] for name in pairs}),
    )
    if faces.card is not None and args.update_card:
        thresholds = {f"{fpr:g}": round(threshold, 5) for fpr, (_, threshold) in next(iter(rates.values())).items()}
        evaluation.record(args.weights, faces.card, "identification", args.command_line, thresholds)
    return evaluation


def refuse_special_card(args: argparse.Namespace) -> None:
    """Raises DataError for --update-card with other settings than the default."""
    if args.update_card and special_settings(args):
        raise DataError(f"--update-card records the default settings only, not: {', '.join(special_settings(args))}")


def all_pairs(faces: EmbeddedFaces, args: argparse.Namespace) -> dict[str, Pairs]:
    """The pairs of all faces by the source of their eyes."""
    return {name: face_pairs(vectors, faces.people, args.dtype) for name, vectors in faces.by_eyes.items()}


def extracted_faces(args: argparse.Namespace) -> EmbeddedFaces:
    """The middle faces of an extract output. Raises DataError, WeightsError."""
    if args.truth is None:
        raise DataError(f"{args.crops} is an output of extract: name the people (name, identity) with --truth")
    if args.flip or not is_reference(args):
        raise DataError(f"{args.crops} holds finished vectors: --flip, --engine and --precision need crops")
    table, distractors = read_people(args.truth, ["name", "identity"], args.no_distractors)
    vectors, embedder, keypointer = extracted_vectors(args.crops, table["name"].to_pylist())
    card = card_of(args.weights, "embedder", embedder) if args.update_card else None
    unknown = np.full((len(vectors), 5, 2), np.nan)
    return EmbeddedFaces({"pipeline": vectors}, people_of(table), distractors, embedder, keypointer, card, unknown)


def embedded_crops(args: argparse.Namespace) -> EmbeddedFaces:
    """Align and embed crops. Raises DataError, WeightsError."""
    model = read_model(args.weights, "embedder", args.embedder)
    table, distractors = read_people(args.crops, ["identity", "image", "landmarks"], args.no_distractors)
    by_eyes = embed_crops(model, table, args)
    return EmbeddedFaces(
        by_eyes, people_of(table), distractors, model.card.identity, args.keypointer, model.card,
        point_column(table, "landmarks", 5, args.crops),
    )


def people_of(table: pa.Table) -> np.ndarray:
    """A number for each row's identity, (n,)."""
    return np.unique(table["identity"].to_numpy(zero_copy_only=False), return_inverse=True)[1]


def read_people(path: Path, columns: Sequence[str], no_distractors: bool) -> tuple[pa.Table, int]:
    """The table, and how many of its rows are distractors; no_distractors removes them. Raises DataError."""
    import pyarrow.compute as pc

    table = read_table(path, columns, ["role"])
    if "role" not in table.column_names:
        if no_distractors:
            raise DataError(f"{path} has no column role, which marks distractors: leave --no-distractors out")
        return table, 0
    is_distractor = pc.fill_null(pc.equal(table["role"].cast("string"), "distractor"), False)
    if not no_distractors:
        return table, pc.sum(is_distractor).as_py()
    if pc.all(is_distractor).as_py():
        raise DataError(f"{path} holds distractors alone: leave --no-distractors out")
    return table.filter(pc.invert(is_distractor)), 0


def special_settings(args: argparse.Namespace) -> list[str]:
    """The settings that are not the default, in words."""
    words = {"without distractors": args.no_distractors, "flip-averaged": args.flip,
            "float16 vectors": args.dtype == "float16", runtime_words(args): not is_reference(args)}
    return [text for text, holds in words.items() if holds]


def embed_crops(model: StoredModel, table: pa.Table, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Unit vectors (n, dim) of the crops by the source of their eyes, see `align_crops`."""
    from models.embedder import load_embedder

    embed = load_embedder(model, runtime_of(args), batch_size=args.batch_size)
    by_eyes = {}
    for name, crops in align_crops(table, args).items():
        vectors = embed(crops)
        if args.flip:
            vectors = vectors + embed(crops[:, :, ::-1])
        by_eyes[name] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return by_eyes


def align_crops(table: pa.Table, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Aligned faces (n, 112, 112, 3) by the source of their eyes: `ours` (--keypointer) and `given` (landmarks).

    The template is the uncalibrated one, because the crops' boxes are not our detector's.
    """
    from models.keypointer import load_keypointer
    from models.training import box_of_crop
    from pipeline.geometry import AlignmentTemplate, transform
    from pipeline.stages.align import align_chip
    from pipeline.stages.operations import cut_chip

    images = decode_column(table, args.crops)
    boxes = [box_of_crop(len(image)) for image in images]
    chips, to_image = zip(*(cut_chip(image, box) for image, box in zip(images, boxes, strict=True)), strict=True)
    model = read_model(args.weights, "keypointer", args.keypointer)
    keypointer = load_keypointer(model, runtime_of(args), batch_size=args.batch_size)
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
    """Unit vectors (n, dim) of the named images' middle faces, NaN without a face; embedder and keypointer.

    Raises DataError when no image has a face.
    """
    images = read_output(output, names, ["embedding", "embedder", "keypointer"])
    faces = [image.middle_face() for image in images]
    embedder = made_by(images, "embedder")
    nothing = np.full_like(next(face["embedding"] for face in faces if face), np.nan, np.float64)
    return np.array([face["embedding"] if face else nothing for face in faces]), embedder, made_by(images, "keypointer")


def face_pairs(vectors: np.ndarray, people: np.ndarray, dtype: str) -> Pairs:
    """Cosines of all pairs, and whether a pair is of one person, see `metrics.pair_cosines`.

    dtype: the vectors are rounded to it first, as `jobs.extract --embedding-dtype` does.
    """
    cosines, same = metrics.pair_cosines(vectors.astype(dtype).astype(vectors.dtype), people)
    return np.nan_to_num(cosines, nan=NO_FACE_COSINE), same


def tpr_at_fpr(pairs: Pairs, fprs: Sequence[float]) -> dict[float, tuple[float, float]]:
    """`metrics.tpr_at_fpr`; raises DataError without pairs of both kinds."""
    try:
        return metrics.tpr_at_fpr(*pairs, fprs)
    except ValueError as error:
        raise DataError(f"{error}: at least two photos of one person and one of another are needed") from None


def rounded_rates(rates: Mapping[float, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """The rates of `metrics.tpr_at_fpr` for a JSON file."""
    return {f"{fpr:g}": {"tpr": round(tpr, 5), "threshold": round(threshold, 5)}
            for fpr, (tpr, threshold) in rates.items()}


def roc_plot(pairs: Mapping[str, Pairs]) -> Plot:
    """ROC curves. pairs: from label to the cosines, and whether a pair is of one person."""
    return Plot(
        "false positive rate (share of the pairs of two people)",
        "true positive rate (share of the pairs of one person)",
        {label: metrics.roc_curve(*both, LOWEST_FPR) for label, both in pairs.items()}, (LOWEST_FPR, 1), log_x=True,
    )


def verification(args: argparse.Namespace) -> Evaluation:
    """Accuracy on pairs of photos of an extract output.

    The face nearest the middle counts; a pair with a photo without a face has the cosine −1. With n pairs of different
    people, a rate at an FPR below 1/n is the rate without any false positive.
    """
    cosines, same, embedder = verified_pairs(args.output, args.pairs)
    try:
        mean, deviation, best, threshold = metrics.verification_accuracy(cosines, same, folds=10)
    except ValueError as error:
        raise DataError(f"{args.pairs}: {error}") from None
    rates = metrics.tpr_at_fpr(cosines, same, VERIFICATION_FPRS)
    without = int((cosines == NO_FACE_COSINE).sum())
    evaluation = Evaluation(
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
        card = card_of(args.weights, "embedder", embedder)
        evaluation.record(args.weights, card, "verification", args.command_line)
    return evaluation


def verified_pairs(output: Path, file: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Cosines of the pairs in a file (pairs,), whether each is of one person, and the embedder. Raises DataError."""
    pairs = read_table(file, ["a", "b", "same"])
    kinds = [str(value) for value in pairs["same"].to_pylist()]
    if wrong := sorted(set(kinds) - {"0", "1"}):
        raise DataError(f"{file}: same must be 0 or 1, got {wrong[0]!r}")
    names = sorted({*pairs["a"].to_pylist(), *pairs["b"].to_pylist()})
    vectors, embedder, _ = extracted_vectors(output, names)
    row = {name: i for i, name in enumerate(names)}
    first, second = ([row[name] for name in pairs[column].to_pylist()] for column in ("a", "b"))
    cosines = np.nan_to_num(np.einsum("nd,nd->n", vectors[first], vectors[second]), nan=NO_FACE_COSINE)
    return cosines, np.array(kinds) == "1", embedder
