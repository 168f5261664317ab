from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate.__main__ import main
from jobs.evaluate.detection import DetectedPhoto, band_curve, detection_band
from models.store import read_card
from tests.support.evaluation import ZIDANE_BOXES, encoded, face, tiny_weights, write_output, zidane


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
        # the small detection is now on an ignored face
        (PHOTOS[:2], 40, {"faces": 1, "ap50": 1, "recall": 1, "precision": 1, "best_f1_score": 0.9, "best_f1": 1}),
        # hit, false, hit: AP 1/2 + 2/3/2; best F1 at the last, 2·⅔·1/(5/3); at 0.5 one hit and one false detection
        (PHOTOS, 40, {"faces": 2, "ap50": 5 / 6, "recall": 0.5, "precision": 0.5, "best_f1_score": 0.2,
                      "best_f1": 0.8}),
    ],
    ids=["no face", "all faces", "tall faces", "a false detection"],
)
def test_figures_of_a_band(photos, min_height_px: int, expected) -> None:
    band = detection_band(photos, min_height_px, min_score=0.5)
    assert {key: band[key] for key in expected} == pytest.approx(expected)
    assert band["ap50_95"] == pytest.approx(band["ap50"])     # every detection fits exactly


def test_a_loose_box_is_a_hit_at_low_iou_only() -> None:
    loose = [DetectedPhoto(boxes((0, 0, 40, 38)), scores(0.9), boxes(TALL), boxes())]      # IoU 0.76
    band = detection_band(loose, 10, 0.5)
    assert band["ap50"] == 1.0
    assert band["ap50_95"] == pytest.approx(0.6)              # 0.5, 0.55, … 0.75 of ten steps


def test_the_curve_of_a_band() -> None:
    recall, precision = band_curve(PHOTOS, 40)                # hit, false, hit
    assert recall.tolist() == [0.5, 0.5, 1.0]
    assert precision.tolist() == pytest.approx([1, 0.5, 2 / 3])
    assert [len(axis) for axis in band_curve(PHOTOS[:1], 10)] == [0, 0]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tiny_weights(tmp_path / "weights")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with an annotated photo of two faces, and a photo without annotations."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("zidane.jpg", "other.jpg"):
        cv2.imwrite(str(folder / name), zidane())
    rows = [{"name": "zidane.jpg", "boxes": ZIDANE_BOXES, "ignored_boxes": []}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "boxes.parquet")
    return folder


def evaluate(*arguments: object) -> int:
    return main(["detection", *map(str, arguments), "--device", "cpu", "--batch-size", "1"])


def test_detection_in_a_folder_of_photos(photos: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos / "out"
    assert evaluate(photos, "--out", out, "--weights", weights, "--update-card") == 0
    figures = json.loads((out / "detection.json").read_text())
    assert figures["photos"] == 1
    assert figures["by_min_height_px"]["80"]["faces"] == 2
    assert figures["by_min_height_px"]["80"]["ap50"] == 1.0
    assert (out / "detection.md").read_text() == capsys.readouterr().out
    assert (out / "detection.png").exists()
    recorded = read_card(weights, "detector", "yolov8n").metrics["detection"]
    assert recorded["by_min_height_px"] == figures["by_min_height_px"]
    assert recorded["command"].startswith("python -m jobs.evaluate detection ")


def test_detection_on_images_in_parquet(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files in a folder, without the column ignored_boxes; the network in bfloat16."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(2):
        rows = {"image": [encoded(zidane())], "boxes": [ZIDANE_BOXES]}
        pq.write_table(pa.table(rows), folder / f"{i}.parquet")
    assert evaluate(folder, "--weights", weights, "--precision", "bfloat16", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("## Detection on 2 photos: yolov8n-face@")
    figures = json.loads((tmp_path / "out/detection.json").read_text())
    assert figures["by_min_height_px"]["80"]["ap50"] == 1.0
    assert figures["network_dtype"] == "bfloat16"


def test_detection_by_an_output_of_jobs_extract(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three photos: one face found and one missed; a false detection with a better score; no detection."""
    identity = read_card(weights, "detector", "yolov8n").identity
    there, elsewhere = (10, 10, 60, 60), (70, 70, 90, 90)
    faces = [face(f"/p/{name}.jpg", box, det_score=score, detector=identity)
             for name, box, score in (("a", there, 0.9), ("b", there, 0.6), ("b", elsewhere, 0.8), ("d", there, 1.0))]
    output = write_output(tmp_path / "output", [f"/p/{name}.jpg" for name in "abcd"], faces)
    rows = [{"name": "a.jpg", "boxes": [there, (70, 20, 90, 80)]}, {"name": "b.jpg", "boxes": [there]},
            {"name": "c.jpg", "boxes": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "truth.parquet")
    command = [output, "--truth", tmp_path / "truth.parquet", "--weights", weights, "--out", tmp_path / "out"]
    assert evaluate(*command, "--update-card", "--min-score", 0.1) == 0
    assert "3 photos" in (table := capsys.readouterr().out) and "AP cut off below its min score 0.35" in table
    figures = json.loads((tmp_path / "out/detection.json").read_text())
    band = figures["by_min_height_px"]["40"]
    # hit, false, hit: precision 1 up to recall 1/3, then 2/3 up to 2/3
    assert (band["faces"], band["ap50"], band["recall"], band["precision"]) == (3, 0.5556, 0.6667, 0.6667)
    assert (figures["detector"], figures["input_px"], figures["min_score"]) == (identity, 640, 0.35)
    assert read_card(weights, "detector", "yolov8n").metrics["detection"]["photos"] == 3


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"name": "gone.jpg", "boxes": ZIDANE_BOXES}], [], "gone.jpg cannot be read"),
        ([{"name": "zidane.jpg", "boxes": []}], [], "no photo has an annotated face"),
        ([{"name": "zidane.jpg"}], [], "has no column boxes"),
        ([{"name": "zidane.jpg", "boxes": [[1.0, 2.0, 3.0]]}], [], "lists of x1, y1, x2, y2"),
        (None, [], "name the annotations"),
        ([{"name": "zidane.jpg", "boxes": ZIDANE_BOXES}], ["--precision", "bfloat16", "--update-card"], "--precision"),
    ],
)
def test_wrong_annotations_are_refused(photos: Path, rows, options, message: str, capsys) -> None:
    if rows is None:
        (photos / "boxes.parquet").unlink()
    else:
        kind = pa.list_(pa.list_(pa.float32()))
        table = pa.Table.from_pylist(rows)
        if "boxes" in table.column_names:
            table = table.set_column(1, "boxes", table["boxes"].cast(kind))
        pq.write_table(table, photos / "boxes.parquet")
    assert evaluate(photos, *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
