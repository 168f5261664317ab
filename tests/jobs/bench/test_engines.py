"""`jobs.bench engines`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jobs.bench.__main__ import main
from jobs.bench.engines import cpu_precisions, face_pairs
from models.engines.openvino_engine import computes_in_bfloat16
from models.store import DEFAULT_WEIGHTS_DIR, read_card
from pipeline.batch import FaceBatch, ImageRecord, Status
from pipeline.geometry import no_points
from tests.support.photos import ASSETS


def batch(*images: list[tuple[list[float], list[float]]]) -> FaceBatch:
    """Images with faces: a box and an embedding each."""
    faces = [face for image in images for face in image]
    return FaceBatch(
        records=tuple(ImageRecord(str(i), Status.OK) for i in range(len(images))),
        face_counts=np.array([len(image) for image in images], np.int64),
        boxes_xyxy=np.array([box for box, _ in faces], np.float32).reshape(-1, 4),
        scores=np.ones(len(faces), np.float32),
        embeddings=np.array([vector for _, vector in faces], np.float32).reshape(-1, 2),
        points5=np.array([[box[:2]] * 5 for box, _ in faces], np.float32).reshape(-1, 5, 2),
    )


BOX, FAR, SMALL = [0, 0, 50, 50], [100, 100, 150, 150], [0, 0, 39, 50]


@pytest.mark.parametrize(
    ("found", "wanted", "pairs"),
    [
        ([[]], [[]], []),
        ([[(BOX, [1, 0])]], [[(SMALL, [1, 0])]], []),
        ([[(BOX, [0.6, 0.8])]], [[(BOX, [1, 0])]], [(1.0, 0.6, 0.0)]),
        ([[]], [[(BOX, [1, 0])]], [(0.0, 0.0, 1.0)]),
        # the face that overlaps most is the one in the same image: half of the width is shared by 25 of 75 px
        ([[(FAR, [0, 1]), ([25, 0, 75, 50], [1, 0])], [(BOX, [0, 1])]], [[(BOX, [1, 0])], []], [(1 / 3, 1.0, 0.5)]),
    ],
    ids=["none", "too small", "same box", "not found", "best of its image"],
)
def test_every_large_face_is_compared_with_the_one_that_overlaps_it_most(found, wanted, pairs) -> None:
    assert np.allclose(np.reshape(face_pairs(batch(*found), batch(*wanted)), (-1, 3)), np.reshape(pairs, (-1, 3)))


def test_faces_without_points_agree_in_them() -> None:
    one = replace(batch([(BOX, [1, 0])]), points5=no_points(1))
    assert face_pairs(one, one) == [(1.0, 1.0, 0.0)]


def test_every_engine_gets_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", str(ASSETS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| torch", "| openvino"))]
    assert [row[0] for row in rows][:2] == ["| torch float32 cpu libjpeg", "| openvino float32 cpu libjpeg"]
    assert len(rows) == 2 + computes_in_bfloat16()
    assert rows[0][2] == "1.00"
    assert all(row[4] == "1.000, 1.000, 1.000, 0.000, 1.000 |" for row in rows[:2])


def test_int8_is_measured_where_it_is_exported() -> None:
    card = read_card(DEFAULT_WEIGHTS_DIR, "detector", "yolov8n")
    others = ["float32", "bfloat16"] if computes_in_bfloat16() else ["float32"]
    assert cpu_precisions(card) == others
    assert cpu_precisions(card.with_export("int8", {"sha256": "ab"})) == [*others, "int8"]
