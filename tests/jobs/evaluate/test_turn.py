from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate.__main__ import main
from jobs.evaluate.turn import KINDS, kinds_of_pairs, turns
from tests.support.evaluation import encoded, tiny_weights

STRAIGHT = np.array([[-20.0, -20], [20, -20], [0, 0], [-15, 20], [15, 20]])


def seen_from(degrees: float) -> np.ndarray:
    """The landmarks of a drawn head that is turned by so much; its nose stands 20 px out."""
    angle = np.radians(degrees)
    depth = np.array([0, 0, 20, 0, 0])
    return np.stack([STRAIGHT[:, 0] * np.cos(angle) + depth * np.sin(angle), STRAIGHT[:, 1]], axis=1)


@pytest.mark.parametrize(
    ("degrees", "turn", "kind"), [(0, 0.0, "straight"), (10, 0.087, "straight"), (20, 0.171, "half turned"),
                                  (45, 0.354, "turned"), (-45, 0.354, "turned"), (90, 0.5, "turned")],
)  # fmt: skip
def test_how_far_a_face_is_turned(degrees: float, turn: float, kind: str) -> None:
    rolled = np.array([[0.6, -0.8], [0.8, 0.6]])
    face = seen_from(degrees) @ rolled.T * 3 + 100
    found = turns(np.stack([face, seen_from(degrees)]))
    assert np.allclose(found, turn, atol=1e-3)
    assert list(KINDS)[kinds_of_pairs(found)[0]] == kind


def test_the_more_turned_face_gives_the_kind_of_a_pair() -> None:
    assert kinds_of_pairs(np.array([0.0, 0.3, 0.1, 0.0])).tolist() == [2, 1, 0, 2, 2, 1]
    assert kinds_of_pairs(np.zeros(1)).tolist() == []


def test_pairs_by_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    images = [encoded(image) for image in rng.integers(0, 256, (5, 144, 144, 3), np.uint8)]
    faces = [seen_from(degrees) + 72 for degrees in (0, 5, 2, 45, 45)]
    pq.write_table(pa.table({"identity": ["a", "a", "b", "a", "b"], "image": images,
                             "landmarks": [face.tolist() for face in faces]}), tmp_path / "crops.parquet")
    weights = tiny_weights(tmp_path / "weights")
    command = ["identification", str(tmp_path / "crops.parquet"), "--weights", str(weights), "--keypointer", "tiny",
               "--embedder", "tiny", "--device", "cpu", "--by", "turn", "--out", str(tmp_path / "out"), "--update-card"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "| ours | straight | 1 | 2 |" in said and "| given | turned | 3 | 4 |" in said
    assert "| ours | half turned | 0 | 0 |  |  |  |" in said
    figures = json.loads((tmp_path / "out/identification.json").read_text())
    assert figures["eyes_given, turned"]["pairs"] == 7
    card = json.loads((weights / "embedder-tiny.json").read_text())
    assert "identification_by_turn" in card["metrics"] and "identification" not in card["metrics"]
