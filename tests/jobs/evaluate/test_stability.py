from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from jobs.evaluate.__main__ import main
from jobs.evaluate.stability import Looks, jitter_figures, jittered, look_at, moved_by
from models.store import read_card, write_card
from pipeline.geometry import AlignmentTemplate, no_points
from tests.support.evaluation import tiny_weights, zidane


def test_boxes_move_by_shares_of_their_longer_side() -> None:
    boxes = [np.tile(np.array([[0.0, 0, 50, 100]], np.float32), (4000, 1))]
    moved = jittered(boxes, boxes, 0.01, np.random.default_rng(1))[0] - boxes[0]
    assert np.allclose(moved.std(0), 1.0, atol=0.05) and np.abs(moved.mean(0)).max() < 0.06
    assert len(jittered([np.zeros((0, 4))], [np.zeros((0, 4))], 0.01, np.random.default_rng(1))[0]) == 0
    points = np.ones((4000, 5, 2))
    moved = jittered([points], boxes, 0.01, np.random.default_rng(1))[0] - points
    assert np.allclose(moved.std(0), 1.0, atol=0.06)


def test_what_moved() -> None:
    before = Looks(np.zeros((2, 2, 2)), np.array([[1.0, 0], [0, 1]]), np.zeros(2), np.ones(2, bool))
    eyes = np.array([[[3.0, 4], [0, 0]], [[0, 0], [0, 0]]])
    after = Looks(eyes, np.array([[0.6, 0.8], [0, 1]]), np.zeros(2), np.ones(2, bool))
    cosines, moves = moved_by(before, after, np.array([100.0, 10]))
    assert np.allclose(cosines, [0.6, 1.0])
    assert np.allclose(moves, [0.025, 0])                             # 5 px and none, of a side of 100


def test_figures_of_a_jitter() -> None:
    cosines = np.linspace(0, 1, 101)                                  # percentiles are their hundredths
    spreads = np.linspace(1, 0, 101)                                  # the lowest cosines are of the least sure
    sides = np.where(np.arange(101) < 51, 50.0, 100.0)
    nothing = np.zeros((101, 0))

    def figures_with(spreads: np.ndarray, align_ok: np.ndarray) -> dict[str, Any]:
        return jitter_figures(cosines, np.full(101, 0.002), Looks(nothing, nothing, spreads, align_ok), sides)

    figures = figures_with(spreads, cosines >= 0.5)
    assert figures["align_ok"] == {"share": round(51 / 101, 5), "p1": 0.505, "p5": 0.525, "median": 0.75}
    assert (figures["p1"], figures["p5"], figures["median"], figures["eyes_move"]) == (0.01, 0.05, 0.5, 0.002)
    assert figures["p1_sure"] == pytest.approx(0.0595, abs=1e-4)      # 96 left, from 0.05: 1% of the way to 1
    assert figures["by_size"]["40-80"]["looks"] == 51 and figures["by_size"]["80-160"]["median"] == 0.755
    assert not {"p1_sure", "align_ok"} & figures_with(np.full(101, np.nan), np.zeros(101, bool)).keys()


def test_a_face_is_looked_at_where_its_box_is() -> None:
    photo = np.zeros((200, 200, 3), np.uint8)
    cv2.circle(photo, (100, 100), 10, (255, 255, 255), -1)
    box = np.array([[80, 80, 120, 120]], np.float32)

    def keypointer(chips: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        assert [chip.shape for chip in chips] == [(64, 64, 3)]
        points = np.concatenate([np.tile((22.0, 32.0), (6, 1)), np.tile((42.0, 32.0), (6, 1))])
        return points[None], np.array([[2.0, 4.4]])

    def embed(crops: np.ndarray) -> np.ndarray:
        return crops.reshape(len(crops), -1)[:, ::5000].astype(np.float64) + 1

    looks = look_at([photo], [box], [box], [no_points(1)], keypointer, embed, AlignmentTemplate())
    # The chip begins at 100 − 32: its points come to 90 and 110.
    assert np.allclose(looks.eyes, [[[90, 100], [110, 100]]])
    assert np.allclose(looks.spreads, [0.11]) and not looks.align_ok[0]
    assert np.allclose(np.linalg.norm(looks.vectors, axis=1), 1)


def test_stability_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tiny_weights(tmp_path / "weights")
    card = read_card(weights, "embedder", "tiny")
    card.preprocessing["alignment"] = {"box_side_px": 110.0, "eyes_in_box_xy": [0.5, 0.4]}
    write_card(weights, card)
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "zidane.jpg"), zidane())
    (photos / "boxes.parquet").write_bytes(b"not a photo")
    command = ["stability", str(photos), "--weights", str(weights), "--keypointer", "tiny", "--embedder", "tiny",
               "--device", "cpu", "--update-card", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    figures = json.loads((tmp_path / "out/stability.json").read_text())
    assert figures["faces"] == 2 and list(figures["jitter"]) == ["0.5%", "1.0%", "2.0%"]
    assert all(0 < of["p1"] <= of["p5"] <= of["median"] <= 1.00001 for of in figures["jitter"].values())
    assert read_card(weights, "keypointer", "tiny").metrics["stability"]["faces"] == 2
    assert main([*command, "--jitter-points"]) == 0
    metrics = read_card(weights, "keypointer", "tiny").metrics
    assert metrics["stability_with_points"]["jitter_points"] and not metrics["stability"]["jitter_points"]
    assert main([*command, "--min-face-px", "900"]) == 2
    assert "holds no photo with a face of 900 px" in capsys.readouterr().err
