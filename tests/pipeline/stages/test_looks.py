"""Where the detector looks, and one face from several looks; expected values are worked out by hand."""

from itertools import pairwise

import numpy as np
import pytest

from pipeline.stages.jpeg import jpeg_scale
from pipeline.stages.looks import Looks, merge, spans


@pytest.mark.parametrize(
    ("length", "side", "expected"),
    [
        (0, 10, [(0, 0)]),
        (10, 10, [(0, 10)]),
        (11, 10, [(0, 10), (1, 11)]),
        (100, 40, [(0, 40), (30, 70), (60, 100)]),        # a quarter of 40 px overlaps
        (101, 40, [(0, 40), (20, 60), (41, 81), (61, 101)]),
    ],
)
def test_a_length_is_cut_into_overlapping_stretches(length, side, expected):
    assert spans(length, side) == expected


@pytest.mark.parametrize(
    ("looks", "size_wh", "sides"),
    [
        (Looks(800), (16000, 1600), []),
        (Looks(800, long_windows=True), (3200, 1600), []),
        (Looks(800, long_windows=True), (3202, 1600), [3200]),
        (Looks(800, long_windows=True), (1600, 16000), [3200]),
        (Looks(800, long_windows=True), (0, 0), []),
        (Looks(800, long_windows=True), (160, 1), []),
        (Looks(800, long_windows=True), (3000, 1), [160]),
        (Looks(800, long_windows=True), (50_000, 1), [500]),
        (Looks(800, find_px=20), (800, 600), []),
        (Looks(800, find_px=20), (4000, 3000), [2000, 1000, 800]),
        (Looks(800, find_px=40), (4000, 3000), [2000, 1600]),
        (Looks(800, find_px=20, long_windows=True), (16000, 1600), [3200, 1600, 800]),
    ],
)
def test_the_levels_of_windows(looks, size_wh, sides):
    assert looks.window_sides(*size_wh) == sides


def test_the_windows_of_a_panorama_cover_it_and_are_two_to_one():
    whole, *windows = Looks(800, long_windows=True).boxes((16000, 1600), (8000, 800))
    assert whole == (0, 0, 8000, 800)
    assert windows[0] == (0, 0, 1600, 800) and windows[-1] == (6400, 0, 8000, 800) and len(windows) == 7
    assert all(later[0] <= earlier[2] - 400 for earlier, later in pairwise(windows))
    upright = Looks(800, long_windows=True).boxes((1600, 16000), (800, 8000))
    assert upright == [(y1, x1, y2, x2) for x1, y1, x2, y2 in [whole, *windows]]


def test_the_number_of_looks():
    assert Looks(800).count(16000, 1600) == 1
    assert Looks(800, long_windows=True).count(16000, 1600) == 8
    assert Looks(800, find_px=20).count(4000, 3000) == 1 + 3 * 2 + 5 * 4 + 7 * 5


@pytest.mark.parametrize(
    ("looks", "size_wh", "scale"),
    [
        (Looks(800), (16000, 1600), 0.125),
        (Looks(800), (4000, 3000), 0.5),
        (Looks(800, long_windows=True), (4000, 3000), 0.5),          # not long: as ever
        (Looks(800, long_windows=True), (16000, 1600), 0.5),         # windows of 3200 px get 1600
        (Looks(800, find_px=20), (4000, 3000), 1.0),
        (Looks(800, find_px=40), (12000, 9000), 1.0),
        (Looks(800, find_px=80), (12000, 9000), 0.5),
    ],
)
def test_the_decode_scale_leaves_each_look_twice_the_input(looks, size_wh, scale):
    assert jpeg_scale(*size_wh, looks.min_side_px) == scale


def found(*boxes_and_scores):
    values = np.array(boxes_and_scores, np.float32).reshape(-1, 5)
    return values[:, :4], values[:, 4], np.repeat(values[:, None, :2], 5, 1)      # all points at the box's corner


WHOLE, LEFT, RIGHT = (0, 0, 200, 100), (0, 0, 120, 100), (80, 0, 200, 100)


@pytest.mark.parametrize(
    ("of_looks", "expected"),
    [
        ([found(), found(), found()], []),
        ([found((10, 10, 30, 30, 0.5)), found(), found()], [(10, 10, 30, 30)]),
        # the same face in two looks: the better score stays, by the whole or by a window
        ([found((10, 10, 30, 30, 0.5)), found((11, 10, 31, 30, 0.9)), found()], [(11, 10, 31, 30)]),
        # two faces in the overlap of two windows are both seen twice
        ([found(), found((85, 10, 95, 20, 0.9), (100, 10, 110, 20, 0.8)),
          found((85, 10, 95, 20, 0.7), (100, 10, 110, 20, 0.6))], [(85, 10, 95, 20), (100, 10, 110, 20)]),
        # the left window cuts a face at its right border; the right window has it whole, with a lower score
        ([found(), found((100, 10, 120, 50, 0.9)), found((100, 10, 140, 50, 0.6))], [(100, 10, 140, 50)]),
        # a face that every window cuts is kept as it was found
        ([found(), found((100, 10, 120, 50, 0.9)), found()], [(100, 10, 120, 50)]),
        # the border of the image cuts nothing
        ([found((0, 10, 20, 40, 0.8)), found((0, 10, 21, 40, 0.9)), found()], [(0, 10, 21, 40)]),
        # the mouth of a large face, found in a window, is a part of it; a face before it in the same look is not
        ([found((20, 5, 100, 95, 0.9)), found((40, 60, 60, 75, 0.6)), found()], [(20, 5, 100, 95)]),
        ([found((20, 5, 100, 95, 0.9), (40, 60, 60, 75, 0.6)), found(), found()],
         [(20, 5, 100, 95), (40, 60, 60, 75)]),
        # a better face inside a doubtful large one is no part of it
        ([found((20, 5, 100, 95, 0.4)), found((40, 60, 60, 75, 0.9)), found()],
         [(40, 60, 60, 75), (20, 5, 100, 95)]),
    ],
)
def test_faces_of_several_looks_are_one_list(of_looks, expected):
    boxes, scores, points = merge((200, 100), [WHOLE, LEFT, RIGHT], of_looks, nms_iou=0.5)
    assert [tuple(box) for box in boxes.astype(int).tolist()] == expected
    assert len(scores) == len(expected)
    assert points[:, 0].astype(int).tolist() == [list(box[:2]) for box in expected]      # each box keeps its points


def test_one_look_is_taken_as_it_is():
    boxes, scores, points = found((0, 0, 50, 50, 0.9), (0, 0, 50, 50, 0.8))
    merged = merge((200, 100), [WHOLE], [(boxes, scores, points)], nms_iou=0.5)
    assert merged[0] is boxes and merged[1] is scores and merged[2] is points
