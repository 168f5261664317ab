"""The faces of a batch, chosen at once, are those that the arithmetic of one canvas after the other gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.boxes import FaceRules, decode_faces
from models.engines.device_faces import chosen_faces, faces_by_canvas

SIDE_PX, CELLS = 64, 84


def random_output(seed, canvases, channels=75):
    """Logits of a network on canvases, about a tenth of them likely faces."""
    raw = np.random.default_rng(seed).normal(0, 2, (canvases, channels, CELLS)).astype(np.float32)
    raw[:, 64] -= 2
    return raw


def faces_of_each(raw, rules):
    found = [part.numpy() for part in chosen_faces(torch.from_numpy(raw), SIDE_PX, rules)]
    assert (np.diff(found[0]) >= 0).all()
    return faces_by_canvas(found, len(raw), rules.max_detections)


@pytest.mark.parametrize("canvases", [0, 1, 5])
def test_no_canvas_and_no_face(canvases):
    raw = np.full((canvases, 65, CELLS), -20, np.float32)
    assert [tuple(of.shape for of in faces) for faces in faces_of_each(raw, FaceRules(0.35, 0.5, 100))] == [
        ((0, 4), (0,), (0, 5, 2))
    ] * canvases


def test_without_points_they_are_no_numbers():
    raw = random_output(1, 2, channels=65)
    for (boxes, _, points), each in zip(faces_of_each(raw, FaceRules(0.35, 0.5, 9)), raw, strict=True):
        assert len(boxes) and points.shape == (len(boxes), 5, 2) and np.isnan(points).all()
        np.testing.assert_allclose(boxes, decode_faces(each, SIDE_PX, FaceRules(0.35, 0.5, 9)).boxes, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.35, 0.7]), st.sampled_from([0.0, 0.3, 0.5, 1.0]),
       st.sampled_from([1, 3, 100]))
def test_the_faces_are_those_of_one_canvas_after_the_other(seed, min_score, iou, most):
    rules, raw = FaceRules(min_score, iou, most), random_output(seed, 4)
    for found, each in zip(faces_of_each(raw, rules), raw, strict=True):
        wanted = decode_faces(each, SIDE_PX, rules)
        np.testing.assert_allclose(found[1], wanted.scores, atol=1e-6)
        np.testing.assert_allclose(found[0], wanted.boxes, atol=1e-3)
        np.testing.assert_allclose(found[2], wanted.points, atol=1e-3)


@pytest.mark.parametrize("most", [1, 10, 25, 10**6])
def test_many_boxes_are_compared_in_groups_of_canvases(monkeypatch, most):
    monkeypatch.setattr("models.engines.device_faces.MOST_BOXES", most)
    raw, rules = random_output(3, 9), FaceRules(0.35, 0.5, 100)
    raw[[0, 4]] = -20                                           # canvases without a face
    for found, each in zip(faces_of_each(raw, rules), raw, strict=True):
        wanted = decode_faces(each, SIDE_PX, rules)
        np.testing.assert_allclose(found[0], wanted.boxes, atol=1e-3)
        np.testing.assert_allclose(found[1], wanted.scores, atol=1e-6)


def test_a_canvas_has_the_same_faces_in_every_place_of_a_batch():
    raw, rules = random_output(7, 1), FaceRules(0.2, 0.5, 100)
    (alone,) = faces_of_each(raw, rules)
    for place in range(6):
        batch = random_output(8, 6)
        batch[place] = raw[0]
        for found, wanted in zip(faces_of_each(batch, rules)[place], alone, strict=True):
            np.testing.assert_array_equal(found, wanted)
