"""`jobs.evaluate identification --by turn`: true positive rates of pairs by how far their faces are turned aside."""

from __future__ import annotations

import argparse

import numpy as np

from jobs.evaluate.data import DataError, is_output
from jobs.evaluate.evaluation import Evaluation
from jobs.evaluate.identity import (
    all_pairs,
    embedded_crops,
    refuse_special_card,
    roc_plot,
    rounded_rates,
    special_settings,
)
from models import metrics

# How far the more turned face of a pair is turned at least, see `turns`. A profile has about 0.5 and more.
KINDS = {"straight": 0.0, "half turned": 0.1, "turned": 0.25}
FPRS = (0.05, 0.01, 0.001)


def turns(landmarks: np.ndarray) -> np.ndarray:
    """How far faces are turned to the left or right, (n,): 0 for one that looks into the camera.

    landmarks: (n, 5, 2) eyes, nose, corners of the mouth, in pixels. The distance of the nose from the line between the
    middle of the eyes and that of the mouth, over the length of this line, which hardly depends on the turn.
    """
    eyes, mouth = landmarks[:, :2].mean(axis=1), landmarks[:, 3:].mean(axis=1)
    (down_x, down_y), (x, y) = (mouth - eyes).T, (landmarks[:, 2] - eyes).T
    found: np.ndarray = np.abs(x * down_y - y * down_x) / np.maximum(down_x**2 + down_y**2, 1e-6)
    return found


def kinds_of_pairs(turn: np.ndarray) -> np.ndarray:
    """The kind of each pair, a number in KINDS, in the order of `metrics.pair_cosines`. turn: (n,) of the faces."""
    kinds = np.digitize(turn, list(KINDS.values())) - 1
    first, second = np.triu_indices(len(turn), 1)
    found: np.ndarray = np.maximum(kinds[first], kinds[second])
    return found


def identification_by_turn(args: argparse.Namespace) -> Evaluation:
    """The rates of each kind of pairs of crops: pairs of one person, against the pairs of two people of that kind."""
    refuse_special_card(args)
    if is_output(args.crops):
        raise DataError(f"{args.crops} is an output of extract: --by turn needs crops, for their landmarks")
    faces = embedded_crops(args)
    kinds = kinds_of_pairs(turns(faces.landmarks))
    split = {
        (eyes, kind): (cosines[kinds == number], same[kinds == number])
        for eyes, (cosines, same) in all_pairs(faces, args).items() for number, kind in enumerate(KINDS)
    }
    rates = {key: metrics.tpr_at_fpr(*of, FPRS) for key, of in split.items() if 0 < of[1].sum() < len(of[1])}
    evaluation = Evaluation(
        f"Identification on {len(faces.people)} faces by how far they are turned: "
        + ", ".join([faces.embedder, *special_settings(args)]),
        {"embedder": faces.embedder, "keypointer": faces.keypointer, "turned_at_least": KINDS,
         **{f"eyes_{eyes}, {kind}": {"pairs": len(split[eyes, kind][1]), **rounded_rates(of)}
            for (eyes, kind), of in rates.items()}},
        ("eyes", "the more turned face", "pairs of one person", "of two", *(f"TPR at FPR {fpr:g}" for fpr in FPRS)),
        [(eyes, kind, f"{same.sum():,}", f"{(~same).sum():,}",
          *(f"{rates[eyes, kind][fpr][0]:.4f}" if (eyes, kind) in rates else "" for fpr in FPRS))
         for (eyes, kind), (_, same) in split.items()],
        roc_plot({f"eyes: {eyes}, {kind}": split[eyes, kind] for eyes, kind in rates}),
    )
    if faces.card is not None and args.update_card:
        evaluation.record(args.weights, faces.card, "identification_by_turn", args.command_line)
    return evaluation
