from __future__ import annotations

import numpy as np
import pytest

from models.metrics import (
    FALSE,
    HIT,
    NOT_COUNTED,
    average_precision,
    best_f1,
    box_iou,
    cumulative_area,
    cumulative_errors,
    eye_errors,
    face_nme,
    match_faces,
    pair_cosines,
    precision_recall,
    roc_curve,
    tpr_at_fpr,
    verification_accuracy,
)


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    made = np.array(rows, np.float32).reshape(-1, 4)
    made.flags.writeable = False
    return made


SQUARE = (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("ours", "others", "iou"),
    [
        (boxes(), boxes(), np.zeros((0, 0))),
        (boxes(SQUARE), boxes(), np.zeros((1, 0))),
        (boxes(SQUARE), boxes(SQUARE, (5, 0, 15, 10), (10, 0, 20, 10)), [[1, 1 / 3, 0]]),
        (boxes((3, 3, 3, 3)), boxes((3, 3, 3, 3)), [[0]]),
    ],
    ids=["none", "no others", "same, half, touching", "without area"],
)
def test_box_iou(ours, others, iou) -> None:
    assert np.allclose(box_iou(ours, others), iou)
    assert box_iou(ours, others).shape == (len(ours), len(others))


@pytest.mark.parametrize(
    ("found", "truth", "ignored", "outcome"),
    [
        (boxes(), boxes(SQUARE), boxes(), []),
        (boxes(SQUARE), boxes(), boxes(), [FALSE]),
        (boxes(SQUARE), boxes(SQUARE), boxes(), [HIT]),
        # the second detection of a face is false, even if it fits better
        (boxes((0, 0, 10, 8), SQUARE), boxes(SQUARE), boxes(), [HIT, FALSE]),
        # the best free face: IoU 1 with the second, 2/3 with the first
        (boxes((2, 0, 12, 10), SQUARE), boxes(SQUARE, (2, 0, 12, 10)), boxes(), [HIT, HIT]),
        (boxes(SQUARE, (20, 20, 30, 30), (20, 21, 30, 30)), boxes(SQUARE), boxes((20, 20, 30, 30)),
         [HIT, NOT_COUNTED, NOT_COUNTED]),
        # a face in an ignored box counts; a detection with IoU 0.4 is false
        (boxes(SQUARE, (0, 0, 10, 4)), boxes(SQUARE), boxes(SQUARE), [HIT, FALSE]),
    ],
    ids=["no find", "no face", "hit", "twice", "best face", "ignored", "face before ignored"],
)
def test_match_faces(found, truth, ignored, outcome) -> None:
    assert match_faces(found, truth, ignored, 0.5).tolist() == outcome


SCORES = np.array([0.7, 0.9, 0.8, 0.6])
OUTCOME = np.array([HIT, HIT, FALSE, NOT_COUNTED])     # by score: hit, false, hit, not counted


def test_precision_and_recall_by_descending_score() -> None:
    precision, recall, ordered = precision_recall(SCORES, OUTCOME, 4)
    assert precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert recall.tolist() == pytest.approx([1 / 4, 1 / 4, 2 / 4])
    assert ordered.tolist() == [0.9, 0.8, 0.7]


@pytest.mark.parametrize(
    ("scores", "outcome", "n_truth", "ap"),
    [
        ([], [], 3, 0.0),
        ([], [], 0, 0.0),
        ([0.9], [HIT], 1, 1.0),
        ([0.9], [FALSE], 1, 0.0),
        # monotonic precision: 1 up to recall 1/4, then 2/3 up to 2/4
        (SCORES, OUTCOME, 4, 1 / 4 + 2 / 3 / 4),
        # a false detection before the hits: precision 1/2, 2/3; monotonic 2/3, 2/3
        ([0.9, 0.8, 0.7], [FALSE, HIT, HIT], 2, 2 / 3),
    ],
)
def test_average_precision(scores, outcome, n_truth: int, ap: float) -> None:
    assert average_precision(np.array(scores), np.array(outcome, np.int8), n_truth) == pytest.approx(ap)


@pytest.mark.parametrize(
    ("scores", "outcome", "n_truth", "threshold", "f1"),
    [
        ([], [], 3, 1.0, 0.0),
        ([0.9], [HIT], 1, 0.9, 1.0),
        # F1 at 0.9: 2·1·¼/(5/4) = 0.4; at 0.7: 2·⅔·½/(7/6) = 4/7
        (SCORES, OUTCOME, 4, 0.7, 4 / 7),
        ([0.9, 0.8, 0.7], [HIT, FALSE, FALSE], 1, 0.9, 1.0),
    ],
)
def test_best_f1(scores, outcome, n_truth: int, threshold: float, f1: float) -> None:
    assert best_f1(np.array(scores), np.array(outcome, np.int8), n_truth) == pytest.approx((threshold, f1))


@pytest.mark.parametrize(
    ("vectors", "people", "cosines", "same"),
    [
        (np.zeros((0, 2)), [], [], []),
        (np.array([[1.0, 0.0]]), ["a"], [], []),
        (np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), ["a", "b", "a"], [0.0, 0.6, 0.8], [False, True, False]),
    ],
)
def test_pair_cosines(vectors, people, cosines, same) -> None:
    found, found_same = pair_cosines(vectors, np.array(people))
    assert found.tolist() == pytest.approx(cosines)
    assert found_same.tolist() == same


def test_tpr_at_fpr() -> None:
    cosines = np.array([0.9, 0.1, 0.5, 0.2, 0.3, 0.7, 0.35, 0.0])
    same = np.array([True, False, True, False, False, False, True, False])
    # different people: 0 0.1 0.2 0.3 0.7; a fifth is above 0.3, two fifths are above 0.2, none is above 0.7
    rates = tpr_at_fpr(cosines, same, (0.0, 0.2, 0.4))
    assert rates == {0.0: (pytest.approx(1 / 3), 0.7), 0.2: (1.0, 0.3), 0.4: (1.0, 0.2)}
    with pytest.raises(ValueError, match="0 same and 2 different"):
        tpr_at_fpr(np.array([0.1, 0.2]), np.array([False, False]), (0.1,))


def test_roc_curve() -> None:
    negatives = np.arange(10) / 10                   # n − 1 of ten are above the n-th highest
    cosines, same = np.concatenate([negatives, [0.85, 0.45]]), np.arange(12) >= 10
    fprs, tprs = roc_curve(cosines, same, 1e-4)
    assert (len(fprs), fprs[0], fprs[-1]) == (200, 0.1, 1.0)      # starts at one of the ten pairs
    assert tprs[0] == 0.5                            # one above 0.85: the threshold is 0.8
    assert tprs[fprs < 0.49].max() == 0.5            # five are above 0.45: the second positive counts from 0.5
    assert tprs[fprs > 0.51].tolist() == [1.0] * int((fprs > 0.51).sum())
    assert roc_curve(cosines, same, 0.2)[0][0] == pytest.approx(0.2)


def eyes(outer_px: float, *, shift: tuple[float, float] = (0.0, 0.0), first_only: bool = False) -> np.ndarray:
    """Twelve points on a line; the outer corners are outer_px apart. shift moves all points, or only the first."""
    points = np.stack([np.linspace(0, 1, 12), np.zeros(12)], 1)
    points[[9, 11]] = points[[11, 9]]                # point 9 is the outer corner of the eye on the right
    points = points * outer_px
    points[: 1 if first_only else 12] += shift
    points.flags.writeable = False
    return points


@pytest.mark.parametrize(
    ("predicted", "wanted", "expected"),
    [
        ([eyes(50)], [eyes(50)], (0, 0, 0)),
        ([eyes(50, shift=(3, 4))], [eyes(50)], (0.1, 0.1, 0)),            # 5 of 50; not above 10%
        ([eyes(50, shift=(6, 8))], [eyes(50)], (0.2, 0.2, 1)),
        # one of twelve points is off by 6 of 50, so the centre of its eye is off by 1 of 50
        ([eyes(50, shift=(0, 6), first_only=True)], [eyes(50)], (0.01, 0.01, 0)),
        ([eyes(50), eyes(100, shift=(0, 30))], [eyes(50), eyes(100)], (0.15, 0.15, 0.5)),
    ],
)
def test_eye_errors(predicted, wanted, expected) -> None:
    errors = eye_errors(np.stack(predicted), np.stack(wanted))
    assert (errors["nme"], errors["centres"], errors["failures"]) == pytest.approx(expected)


def test_face_nme() -> None:
    predicted = np.stack([eyes(50), eyes(100, shift=(0, 30))])
    assert face_nme(predicted, np.stack([eyes(50), eyes(100)])).tolist() == pytest.approx([0, 0.3])


@pytest.mark.parametrize(
    ("errors", "at_half", "at_end", "area"),
    [
        ([np.inf], 0, 0, 0),
        ([0.0], 1, 1, 1),
        ([0.05], 1, 1, 0.5),                          # half of the limit
        ([0.1], 0, 1, 0),
        ([0.02, 0.06, np.inf, 0.3], 0.25, 0.5, (0.8 + 0.4) / 4),
    ],
)
def test_the_cumulative_curve_of_errors(errors, at_half: float, at_end: float, area: float) -> None:
    at, share = cumulative_errors(np.array(errors))
    assert (at[0], at[100], at[-1]) == pytest.approx((0, 0.05, 0.1))
    assert (share[100], share[-1]) == (at_half, at_end)
    assert cumulative_area(np.array(errors)) == pytest.approx(area)


@pytest.mark.parametrize("shape", [(0, 12, 2), (1, 68, 2)])
def test_eye_errors_need_faces_of_twelve_points(shape) -> None:
    with pytest.raises(ValueError, match="n ≥ 1"):
        eye_errors(np.zeros(shape), np.zeros(shape))


@pytest.mark.parametrize(
    ("cosines", "same", "folds", "expected"),
    [
        # no error: the threshold is half-way between 0.2 and 0.8
        ([0.8, 0.9, 0.1, 0.2], [1, 1, 0, 0], 2, (1.0, 0.0, 1.0, 0.5)),
        # Folds (0.9 same, 0.1 different) and (0.3 same, 0.4 different). The threshold of the first, 0.5, is right for
        # 0.4; that of the second calls all pairs same and is right for 0.9. Of all best thresholds the lowest is 0.2.
        ([0.9, 0.3, 0.1, 0.4], [1, 1, 0, 0], 2, (0.5, 0.0, 0.75, 0.2)),
    ],
)
def test_verification_accuracy(cosines, same, folds: int, expected) -> None:
    figures = verification_accuracy(np.array(cosines), np.array(same, bool), folds)
    assert figures == pytest.approx(expected)


@pytest.mark.parametrize("same", [[], [1, 1], [0, 0], [1, 0]])
def test_verification_needs_pairs_of_both_kinds_in_every_fold(same) -> None:
    with pytest.raises(ValueError, match="of both kinds"):
        verification_accuracy(np.zeros(len(same)), np.array(same, bool), 2)
