"""Boxes from the detector's raw output, against torchvision's nms and ultralytics' own decoding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchvision.ops import nms as torchvision_nms

from models.boxes import BINS, RAW_CHANNELS, SCORE, FaceRules, anchors, decode_faces, nms

corners = arrays(np.float32, st.tuples(st.integers(0, 40), st.just(4)), elements=st.integers(0, 12).map(np.float32))


@settings(max_examples=300, deadline=None)
@given(corners, st.sampled_from([0.0, 0.3, 1 / 3, 0.5, 0.7, 1.0]), st.data())
def test_nms_keeps_the_boxes_that_torchvision_keeps(values, iou, data):
    """Small whole numbers make equal boxes, equal scores, equal overlaps and boxes without area common."""
    boxes = np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], 1)
    scores = data.draw(arrays(np.float32, len(boxes), elements=st.sampled_from([0.25, 0.5, 0.75]).map(np.float32)))
    expected = torchvision_nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).numpy()
    np.testing.assert_array_equal(nms(boxes, scores, iou), expected)


def test_anchors_of_a_small_input():
    centres, strides = anchors(64)
    assert len(centres) == 8 * 8 + 4 * 4 + 2 * 2
    assert centres[0].tolist() == [0.5, 0.5] and centres[1].tolist() == [1.5, 0.5] and centres[8].tolist() == [0.5, 1.5]
    assert strides[[0, 63, 64, 79, 80, 83]].tolist() == [8, 8, 16, 16, 32, 32]


def raw_output(cells):
    """A network's output that finds nothing."""
    raw = np.zeros((RAW_CHANNELS, cells), np.float32)
    raw[-1] = -20.0
    return raw


def put_face(raw, cell, distances, logit):
    """A face in a cell, all of the weight of each distance in one bin."""
    for side, distance in enumerate(distances):
        raw[side * BINS + distance, cell] = 100.0
    raw[SCORE, cell] = logit


@pytest.mark.parametrize(
    ("faces", "boxes", "scores"),
    [
        ([], np.zeros((0, 4)), []),
        # cell 9 is x 1, y 1 of the grid of stride 8: centre (12, 12)
        ([(9, (1, 1, 2, 3), 0.0)], [[4, 4, 28, 36]], [0.5]),
        # cell 80 is the first of stride 32: centre (16, 16). The box of cell 9 is the same and weaker, and goes
        ([(9, (1, 1, 2, 3), 0.0), (80, (0, 0, 1, 1), 2.0)], [[16, 16, 48, 48], [4, 4, 28, 36]], [0.880797, 0.5]),
        ([(9, (1, 1, 2, 3), 0.0), (10, (2, 1, 1, 3), 1.0)], [[4, 4, 28, 36]], [0.731059]),
        ([(9, (1, 1, 2, 3), -1.0)], np.zeros((0, 4)), []),
    ],
)
def test_faces_of_an_output(faces, boxes, scores):
    raw = raw_output(84)
    for cell, distances, logit in faces:
        put_face(raw, cell, distances, logit)
    found, found_scores, _ = decode_faces(raw, 64, FaceRules(0.35, 0.5, 100))
    assert found.dtype == found_scores.dtype == np.float32 and found.shape == (len(scores), 4)
    np.testing.assert_allclose(found, boxes, atol=1e-4)
    np.testing.assert_allclose(found_scores, scores, rtol=1e-5)


def test_the_best_faces_are_kept_up_to_the_limit():
    raw = raw_output(84)
    for cell, logit in ((0, 1.0), (7, 3.0), (56, 2.0)):
        put_face(raw, cell, (0, 0, 1, 1), logit)
    boxes, *_ = decode_faces(raw, 64, FaceRules(0.35, 0.5, 2))
    np.testing.assert_allclose(boxes, [[60, 4, 68, 12], [4, 60, 12, 68]], atol=1e-4)


def test_points_come_with_their_boxes():
    raw = np.concatenate([raw_output(84), np.zeros((10, 84), np.float32)])
    for cell, distances, logit in ((9, (1, 1, 2, 3), 0.0), (80, (0, 0, 1, 1), 2.0), (10, (2, 1, 1, 3), -0.1)):
        put_face(raw, cell, distances, logit)
    raw[RAW_CHANNELS:, 9] = [0, 0, 0.5, 0, 0, 0.25, -1, 1, 1, 1]
    faces = decode_faces(raw, 64, FaceRules(0.35, 0.5, 100))
    # cell 9 begins at (8, 8), its stride is 8, and raw points count in two strides; cell 80 begins at 0. Cell 10 goes
    assert faces.points.dtype == np.float32
    assert faces.points.tolist() == [[[0, 0]] * 5, [[8, 8], [16, 8], [8, 12], [-8, 24], [24, 24]]]


def test_a_network_without_points_gives_no_numbers():
    raw = raw_output(84)
    put_face(raw, 9, (1, 1, 2, 3), 0.0)
    points = decode_faces(raw, 64, FaceRules(0.35, 0.5, 100)).points
    assert points.shape == (1, 5, 2) and np.isnan(points).all()
