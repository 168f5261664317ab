"""The figures that measure our models, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HIT, FALSE, NOT_COUNTED = 1, 0, -1
MAX_NME = 0.1       # a larger error of the eye points is a failure


def box_iou(boxes_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of every box (n, 4) with every other (m, 4): (n, m) float64."""
    boxes, others = boxes_xyxy.astype(np.float64), others_xyxy.astype(np.float64)
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    inter: np.ndarray = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    areas, other_areas = ((these[:, 2:] - these[:, :2]).prod(axis=1) for these in (boxes, others))
    iou: np.ndarray = inter / np.maximum(areas[:, None] + other_areas[None, :] - inter, 1e-12)
    return iou


def match_faces(
    boxes_xyxy: np.ndarray, truth_xyxy: np.ndarray, ignored_xyxy: np.ndarray, min_iou: float
) -> np.ndarray:
    """`HIT`, `FALSE` or `NOT_COUNTED` for every detection (n, 4) of one image, (n,) int8; the best score comes first.

    A detection is a hit if the face of truth (m, 4) that it overlaps most, of those still free, has an IoU of min_iou
    or more. That face is then taken. Any other detection is not counted if it has this IoU with an ignored box
    (k, 4), and false otherwise.
    """
    outcome = np.full(len(boxes_xyxy), FALSE, np.int8)
    iou = box_iou(boxes_xyxy, truth_xyxy)
    on_ignored = np.asarray((box_iou(boxes_xyxy, ignored_xyxy) >= min_iou).any(axis=1))
    for i in range(len(boxes_xyxy)):
        best = int(iou[i].argmax()) if iou.shape[1] else -1
        if best >= 0 and iou[i, best] >= min_iou:
            outcome[i] = HIT
            iou[:, best] = -1.0      # taken
        elif on_ignored[i]:
            outcome[i] = NOT_COUNTED
    return outcome


def precision_recall(scores: np.ndarray, outcome: np.ndarray, n_truth: int) -> tuple[np.ndarray, ...]:
    """Precision, recall and score at every counted detection of all images, by descending score.

    scores: (n,). outcome: (n,), see `match_faces`. n_truth: the number of faces.
    """
    counted = outcome != NOT_COUNTED
    order = np.argsort(-scores[counted], kind="stable")
    hits = np.cumsum(outcome[counted][order] == HIT)
    return hits / np.arange(1, len(hits) + 1), hits / max(n_truth, 1), scores[counted][order]


def average_precision(scores: np.ndarray, outcome: np.ndarray, n_truth: int) -> float:
    """Area under the precision-recall curve, with monotonic precision (Pascal VOC 2010); 0 without faces."""
    precision, recall, _ = precision_recall(scores, outcome, n_truth)
    monotonic = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * monotonic))


def best_f1(scores: np.ndarray, outcome: np.ndarray, n_truth: int) -> tuple[float, float]:
    """The score threshold (inclusive) with the highest F1, and that F1; (1, 0) without detections."""
    precision, recall, ordered = precision_recall(scores, outcome, n_truth)
    if not len(ordered):
        return 1.0, 0.0
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1.argmax())
    return float(ordered[best]), float(f1[best])


def pair_cosines(vectors: np.ndarray, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs of unit vectors (n, dim), and whether a pair is of one person; (n·(n−1)/2,) each.

    people: (n,) labels; two vectors of one person have equal labels.
    """
    first, second = np.triu_indices(len(vectors), 1)
    return (vectors @ vectors.T)[first, second], people[first] == people[second]


def tpr_at_fpr(cosines: np.ndarray, same: np.ndarray, fprs: Sequence[float]) -> dict[float, tuple[float, float]]:
    """True positive rate and threshold at each false positive rate: `{fpr: (tpr, threshold)}`.

    The share `fpr` of the negatives lies above the threshold, and the share `tpr` of the positives.
    cosines: (pairs,); same: (pairs,) bool. Raises ValueError without positives or without negatives.
    """
    positives, negatives = cosines[same], np.sort(cosines[~same])
    if not len(positives) or not len(negatives):
        raise ValueError(f"need pairs of both kinds, got {len(positives)} same and {len(negatives)} different")
    rates = {}
    for fpr in fprs:
        threshold = float(negatives[len(negatives) - 1 - min(int(fpr * len(negatives)), len(negatives) - 1)])
        rates[fpr] = (float((positives > threshold).mean()), threshold)
    return rates


def roc_curve(cosines: np.ndarray, same: np.ndarray, min_fpr: float) -> tuple[np.ndarray, np.ndarray]:
    """False positive rates from min_fpr to 1, in equal ratios, and their true positive rates; 200 each.

    With fewer than 1 / min_fpr negative pairs the rates start at one pair. See `tpr_at_fpr`.
    """
    fprs = np.geomspace(max(min_fpr, 1 / max(int((~same).sum()), 1)), 1, 200)
    return fprs, np.array([tpr for tpr, _ in tpr_at_fpr(cosines, same, fprs.tolist()).values()])


def face_nme(predicted: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Mean error of each face's eye points, as a share of the distance between the outer eye corners; (n,).

    predicted, wanted: (n, 12, 2), n ≥ 1, else ValueError.
    """
    if predicted.shape != wanted.shape or wanted.shape[1:] != (12, 2) or not len(wanted):
        raise ValueError(f"need two arrays (n, 12, 2), n ≥ 1, got {predicted.shape} and {wanted.shape}")
    nme: np.ndarray = np.linalg.norm(predicted - wanted, axis=2).mean(1) / _outer_distance(wanted)
    return nme


def eye_errors(predicted: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Errors of eye points, as shares of the distance between the outer eye corners.

    predicted, wanted: (n, 12, 2), n ≥ 1. `nme`: mean over points and faces. `centres`: mean over both eye centres.
    `failures`: share of the faces with a mean above 10%.
    """
    by_face = face_nme(predicted, wanted)
    centres = (predicted - wanted).reshape(-1, 2, 6, 2).mean(2)
    return {
        "nme": float(by_face.mean()),
        "centres": float((np.linalg.norm(centres, axis=2).mean(1) / _outer_distance(wanted)).mean()),
        "failures": float((by_face > MAX_NME).mean()),
    }


def _outer_distance(points: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.linalg.norm(points[:, 0] - points[:, 9], axis=1)
    return distance


def cumulative_errors(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors from 0 to `MAX_NME`, and the share of the faces with at most that error; 201 each.

    errors: (n,), n ≥ 1, see `face_nme`; infinite for a face that was not found.
    """
    at = np.linspace(0, MAX_NME, 201)
    return at, np.searchsorted(np.sort(errors), at, side="right") / len(errors)


def cumulative_area(errors: np.ndarray) -> float:
    """The area under the cumulative curve of the errors (n,) up to `MAX_NME`; 1 if all errors are zero."""
    return float(np.clip(1 - errors / MAX_NME, 0, None).mean())


def verification_accuracy(cosines: np.ndarray, same: np.ndarray, folds: int) -> tuple[float, float, float, float]:
    """Mean accuracy over the folds, its standard deviation, the best accuracy at one threshold, and that threshold.

    LFW's protocol: a fold is measured at the best threshold of the other folds. A fold is made of consecutive pairs of
    each kind. cosines, same: (pairs,), with at least one pair of each kind per fold, else ValueError.
    """
    rank = np.where(same, np.cumsum(same) - 1, np.cumsum(~same) - 1)
    count = np.where(same, same.sum(), (~same).sum())
    if not len(same) or count.min() < folds or same.all() or not same.any():
        raise ValueError(f"need at least {folds} pairs of both kinds, got {same.sum()} same of {len(same)}")
    fold = rank * folds // count
    accuracies = []
    for i in range(folds):
        threshold, _ = _best_threshold(cosines[fold != i], same[fold != i])
        accuracies.append(float(((cosines > threshold) == same)[fold == i].mean()))
    threshold, best = _best_threshold(cosines, same)
    return float(np.mean(accuracies)), float(np.std(accuracies)), best, threshold


def _best_threshold(cosines: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """The threshold, half-way between two cosines, with the most correct pairs, and their share."""
    order = np.argsort(cosines)
    values, same = cosines[order], same[order]
    # A threshold after the first k pairs calls these k different and the rest same.
    right = np.concatenate([[0], np.cumsum(~same)]) + np.concatenate([np.cumsum(same[::-1])[::-1], [0]])
    between = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    k = int(right.argmax())
    return float(between[k]), float(right[k] / len(same))
