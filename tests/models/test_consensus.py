from __future__ import annotations

import numpy as np
import pytest

from models.consensus import agree, centres, from_face, label_weights, offset, to_face

NOTHING = np.full((1, 12, 2), np.nan)


def eyes(left: tuple[float, float], right: tuple[float, float], size: float = 0.1) -> np.ndarray:
    """Twelve points around two centres, (1, 12, 2)."""
    around = size * np.array([[-1, 0], [-0.5, -0.5], [0.5, -0.5], [1, 0], [0.5, 0.5], [-0.5, 0.5]])
    return np.concatenate([around + left, around + right])[None]


def test_three_of_four_win() -> None:
    shapes = {"a": eyes((0, 0), (1, 0)), "b": eyes((0.02, 0), (1, 0)), "c": eyes((9, 9), (1, 0))}
    consensus = agree(shapes, {"five": np.array([[[0.01, 0.0], [1.0, 0.0]]])}, NOTHING)
    # centres of the left eye: 0, 0.02, 9 and 0.01 across, of which the median is 0.015; 0, 0, 9, 0 down
    assert np.allclose(centres(consensus.points)[0], [[0.015, 0], [1, 0]])
    expected = (0.015 + 0.005 + np.hypot(8.985, 9) + 0.005) / 4
    assert np.allclose(consensus.differences[0], [expected, 0])


def test_the_shape_of_an_eye_is_the_median_shape() -> None:
    shapes = {"a": eyes((0, 0), (1, 0), 0.1), "b": eyes((0, 0), (1, 0), 0.2), "c": eyes((5, 5), (1, 0), 0.3)}
    consensus = agree(shapes, {}, NOTHING)
    assert np.allclose(consensus.points, eyes((0, 0), (1, 0), 0.2))


def test_what_people_marked_counts_as_it_is() -> None:
    given = eyes((0.5, 0), (2, 0))
    consensus = agree({"a": eyes((0, 0), (1, 0)), "b": eyes((0, 1), (1, 1))}, {}, given)
    assert np.array_equal(consensus.points, given) and np.array_equal(consensus.differences, [[0, 0]])


def test_a_teacher_that_says_nothing_is_no_vote() -> None:
    shapes = {"a": eyes((0, 0), (1, 0)), "b": eyes((0.2, 0), (1, 0))}
    consensus = agree(shapes, {"five": np.full((1, 2, 2), np.nan)}, NOTHING)
    assert np.allclose(centres(consensus.points)[0, 0], [0.1, 0])
    assert np.allclose(consensus.differences[0], [0.1, 0])


def test_offsets_are_the_same_on_both_sides() -> None:
    found = np.repeat(eyes((0, 0), (1, 0)), 3, axis=0)
    wanted = found.copy()
    wanted[:, 0] += (0.2, 0.1)                             # the outer corner of one eye alone; 9 is the other's
    moved = offset(wanted, found)
    assert np.allclose(moved[0], [0.1, 0.05]) and np.allclose(moved[9], [-0.1, 0.05])
    assert np.allclose(np.delete(moved, [0, 9], axis=0), 0)
    wanted[1] = np.nan                                     # a face without people's points changes nothing
    assert np.allclose(offset(wanted, found), moved)
    assert np.array_equal(offset(np.full((2, 2, 2), np.nan), np.zeros((2, 2, 2))), np.zeros((2, 2)))


def test_the_frame_of_a_face() -> None:
    frame = np.array([[100.0, 50.0]]), np.array([40.0]), np.array([90.0])
    # Turned a quarter clockwise, what is right of the middle on the face lies below it in the image.
    assert np.allclose(to_face(np.array([[[100.0, 70.0]]]), *frame), [[[0.5, 0.0]]])
    points = np.random.default_rng(1).normal(size=(1, 12, 2))
    assert np.allclose(to_face(from_face(points, *frame), *frame), points)


@pytest.mark.parametrize(("difference", "expected"), [(0.0, 1.0), (0.03, 0.5), (0.09, 0.1)])
def test_labels_count_less_the_more_teachers_differ(difference: float, expected: float) -> None:
    assert label_weights(np.array([[difference, 0.0]])).tolist() == [[pytest.approx(expected), 1.0]]


def test_votes_are_weights() -> None:
    shapes = {"a": eyes((0, 0), (1, 0), 0.1), "b": eyes((0.3, 0), (1, 0), 0.3), "c": eyes((9, 9), (1, 0), 9)}
    consensus = agree(shapes, {"five": np.full((1, 2, 2), np.nan)}, NOTHING, {"a": 2, "b": 1, "five": 5})
    # c has no vote, five says nothing: the left eye is at (2 × 0 + 0.3) / 3, and the sizes' median is 0.2.
    assert np.allclose(consensus.points, eyes((0.1, 0), (1, 0), 0.2))
    assert np.allclose(consensus.differences, [[(2 * 0.1 + 0.2) / 3, 0]])
