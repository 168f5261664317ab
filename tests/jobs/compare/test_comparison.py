import json

import numpy as np
import pytest

from jobs.compare.comparison import LISTED_PAIRS, Comparison
from jobs.people.subjects import Face
from pipeline.people.likeness import Threshold

ROW = {"face_index": 0, "det_score": 0.9, "roll_deg": float("nan"), "eye_points": [1.0, float("nan")]}
LIMIT = "threshold 0.500 at a false positive rate of 0.01"


def comparison(subjects, cosines, threshold=0.5, names=None):
    """Faces of these arguments; cosines: of the pairs (0, 1), (0, 2), (1, 2), …"""
    n = len(subjects)
    matrix = np.eye(n)
    matrix[np.triu_indices(n, 1)] = cosines
    names = names or [f"/p/{subject}.jpg" for subject in range(max(subjects) + 1)]
    faces = [Face(subject, names[subject], ROW | {"face_index": subjects[:i].count(subject)})
             for i, subject in enumerate(subjects)]
    return Comparison(
        faces, np.maximum(matrix, matrix.T), None if threshold is None else Threshold(threshold, 0.01),
        {"architecture": {"network": "n"}, "tensors_sha256": "0" * 64, "preprocessing": {}}, max(subjects) + 1,
    )


@pytest.mark.parametrize(
    ("subjects", "cosines", "threshold", "answer"),
    [
        ([0, 1], [0.6], 0.5, f"same person: cosine 0.600, {LIMIT}"),
        ([0, 1], [0.5], 0.5, f"same person: cosine 0.500, {LIMIT}"),
        ([0, 1], [0.4], 0.5, f"different people: cosine 0.400, {LIMIT}"),
        ([0, 0], [0.4], 0.5, f"different people: cosine 0.400, {LIMIT}"),
        ([0, 1], [0.4], None, "no verdict, the embedder has no threshold: the highest cosine is 0.400"),
        ([0, 1, 1], [0.1, 0.7, 0.9], 0.5, f"same person in both: 0.jpg #0 and 1.jpg #1, cosine 0.700; {LIMIT}"),
        ([0, 1, 1], [0.6, 0.7, 0.1], 0.5,
         f"same person in both: 0.jpg #0 and 1.jpg #1, cosine 0.700; 2 pairs in all; {LIMIT}"),
        ([0, 1, 1], [0.1, 0.2, 0.9], 0.5, f"nobody is in both: the most alike are 0.jpg #0 and 1.jpg #1, cosine 0.200; "
         f"{LIMIT}"),
        # Pairs within a photo are not counted where there are others.
        ([0, 1, 1, 2], [0.1, 0.2, 0.3, 0.9, 0.1, 0.2], 0.5, "0 of 5 pairs are the same person: the most alike are "
         f"0.jpg #0 and 2.jpg #0, cosine 0.300; {LIMIT}"),
        ([0, 1, 2], [0.1, 0.2, 0.9], 0.5, "1 of 3 pairs are the same person: the most alike are 1.jpg #0 and 2.jpg #0, "
         f"cosine 0.900; {LIMIT}"),
    ],
)
def test_the_answer_is_one_line(subjects, cosines, threshold, answer):
    found = comparison(subjects, cosines, threshold)
    assert found.answer() == answer
    assert next(found.lines()) == answer


def test_two_faces_need_no_table_and_three_do():
    assert len(list(comparison([0, 1], [0.6]).lines())) == 1
    assert list(comparison([0, 1, 1], [0.1, 0.7, 0.2]).lines())[2:] == [
        "   0  /p/0.jpg #0  score 0.90",
        "   1  /p/1.jpg #0  score 0.90",
        "   2  /p/1.jpg #1  score 0.90",
        "",
        "cosine      0       1       2 ",
        "   0    1.000   0.100   0.700*",
        "   1    0.100   1.000   0.200",
        "   2    0.700*  0.200   1.000",
        "* the same person",
    ]


def test_of_many_faces_the_most_alike_pairs_are_listed():
    cosines = np.linspace(0, 0.9, 190)
    lines = list(comparison([0] * 10 + [1] * 10, cosines).lines())
    assert lines[-1] == f"… and {190 - LISTED_PAIRS} pairs more: --json writes all"
    assert lines[23] == "   9   19   0.686  same person" and len(lines) == 23 + LISTED_PAIRS + 1


def test_names_are_shortened_only_where_that_is_clear_and_cannot_control_the_terminal():
    assert comparison([0, 1, 1], [0, 0, 0], names=["/a/x.jpg", "/b/x.jpg"]).label(2) == "/b/x.jpg #1"
    assert comparison([0, 1, 1], [0, 0, 0], names=["/a/x.jpg", "/a/x.jpg"]).label(2) == "x.jpg #1"
    lines = list(comparison([0, 1, 1], [0, 0, 0], names=["a\x1b[2J.jpg", "b\n.jpg"]).lines())
    assert not [line for line in lines if "\x1b" in line or "\n" in line]


def test_the_json_has_all_and_no_nan():
    content = json.loads(json.dumps(comparison([0, 1, 1], [0.1, 0.7, 0.9]).content(), allow_nan=False))
    assert content["threshold"] == {"cosine": 0.5, "false_positive_rate": 0.01}
    assert content["cosines"] == [[1, 0.1, 0.7], [0.1, 1, 0.9], [0.7, 0.9, 1]]
    assert content["pairs"] == [
        {"first": 0, "second": 2, "cosine": 0.7, "same_person": True, "same_photo": False},
        {"first": 0, "second": 1, "cosine": 0.1, "same_person": False, "same_photo": False},
        {"first": 1, "second": 2, "cosine": 0.9, "same_person": True, "same_photo": True},
    ]
    assert [face["argument"] for face in content["faces"]] == [0, 1, 1]
    assert content["faces"][0]["roll_deg"] is None and content["faces"][0]["eye_points"] == [1.0, None]
    assert comparison([0, 1], [0.1], threshold=None).content()["threshold"] is None
