from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate import DetectedPhoto, Report, detection_band, main
from models.store import DEFAULT_WEIGHTS_DIR, read_card


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


TALL, SMALL, ELSEWHERE = (0, 0, 40, 50), (100, 100, 110, 112), (200, 200, 210, 212)
PHOTOS = [
    DetectedPhoto(boxes(), scores(), boxes(), boxes()),
    DetectedPhoto(boxes(TALL, SMALL), scores(0.9, 0.3), boxes(TALL, SMALL), boxes()),
    DetectedPhoto(boxes(ELSEWHERE, TALL), scores(0.8, 0.2), boxes(TALL), boxes(SMALL)),
]


@pytest.mark.parametrize(
    ("photos", "min_height_px", "expected"),
    [
        (PHOTOS[:1], 10, {"faces": 0, "ap50": 0, "recall": 0, "precision": 0, "best_f1_score": 1, "best_f1": 0}),
        (PHOTOS[:2], 10, {"faces": 2, "ap50": 1, "recall": 0.5, "precision": 1, "best_f1_score": 0.3, "best_f1": 1}),
        # the small find now lies on a face that is ignored
        (PHOTOS[:2], 40, {"faces": 1, "ap50": 1, "recall": 1, "precision": 1, "best_f1_score": 0.9, "best_f1": 1}),
        # hit, false, hit: AP 1/2 + 2/3/2; best F1 at the last, 2·⅔·1/(5/3); at 0.5 one hit and one false find
        (PHOTOS, 40, {"faces": 2, "ap50": 5 / 6, "recall": 0.5, "precision": 0.5, "best_f1_score": 0.2,
                      "best_f1": 0.8}),
    ],
    ids=["no face", "all faces", "tall faces", "a false find"],
)
def test_figures_of_a_band(photos, min_height_px: int, expected) -> None:
    band = detection_band(photos, min_height_px, min_score=0.5)
    assert {key: band[key] for key in expected} == pytest.approx(expected)
    assert band["ap50_95"] == pytest.approx(band["ap50"])     # every find fits exactly


def test_a_loose_box_counts_at_half_overlap_only() -> None:
    loose = [DetectedPhoto(boxes((0, 0, 40, 38)), scores(0.9), boxes(TALL), boxes())]      # IoU 0.76
    band = detection_band(loose, 10, 0.5)
    assert band["ap50"] == 1.0
    assert band["ap50_95"] == pytest.approx(0.6)              # 0.5, 0.55, … 0.75 of ten steps


def test_a_report_is_a_table_and_json(tmp_path: Path) -> None:
    report = Report("Title", {"a": 1}, ("x", "y"), [("1", "2"), ("3", "4")])
    report.write(tmp_path / "new", "name")
    assert (tmp_path / "new/name.md").read_text() == (
        "## Title\n\n| x | y |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
    )
    assert json.loads((tmp_path / "new/name.json").read_text()) == {"a": 1}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A photo with two faces, both annotated by eye, and one that is missing from the annotations."""
    import ultralytics

    zidane = cv2.imread(str(Path(ultralytics.__file__).parent / "assets/zidane.jpg"))
    cv2.imwrite(str(tmp_path / "zidane.jpg"), zidane)
    cv2.imwrite(str(tmp_path / "other.jpg"), zidane)
    rows = [{"name": "zidane.jpg", "boxes": [[535.0, 225.0, 668.0, 450.0], [904.0, 80.0, 1060.0, 280.0]],
             "ignored_boxes": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "boxes.parquet")
    return tmp_path


def test_detection_from_the_command_line(photos: Path, capsys) -> None:
    weights = photos / "weights"
    weights.mkdir()
    for file in DEFAULT_WEIGHTS_DIR.glob("detector-yolov8n.*"):
        shutil.copy(file, weights)
    assert main([
        "detection", str(photos), "--out", str(photos / "out"), "--weights", str(weights), "--update-card",
        "--device", "cpu", "--batch-size", "1",
    ]) == 0
    figures = json.loads((photos / "out/detection.json").read_text())
    assert figures["photos"] == 1
    assert figures["by_min_height_px"]["80"]["faces"] == 2
    assert figures["by_min_height_px"]["80"]["ap50"] == 1.0
    assert (photos / "out/detection.md").read_text() == capsys.readouterr().out
    recorded = read_card(weights, "detector", "yolov8n").metrics["detection"]
    assert recorded["by_min_height_px"] == figures["by_min_height_px"]
    assert recorded["command"].startswith("python -m jobs.evaluate detection ")


def test_a_photo_that_is_gone_is_an_error(photos: Path, capsys) -> None:
    (photos / "zidane.jpg").unlink()
    assert main(["detection", str(photos), "--device", "cpu"]) == 2
    assert "zidane.jpg cannot be read" in capsys.readouterr().err
