from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.evaluate import DetectedPhoto, Report, detection_band, main, middle_faces
from models.embedder import build_embedder
from models.eyes import build_keypointer
from models.store import DEFAULT_WEIGHTS_DIR, read_card, save_model


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


# ---- eyes, identification, verification ------------------------------------------------------------------------------


def card_fields(role: str, architecture: dict, **preprocessing) -> dict:
    return {
        "name": "tiny", "role": role, "architecture": architecture,
        "preprocessing": {"input_px": 112, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB",
                          **preprocessing},
        "licence": "none", "commercial_use": False, "started_from": "random weights", "data": [], "metrics": {"a": 1},
        "command": "",
    }


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights folder with the shipped detector, and an untrained keypointer and embedder."""
    torch.manual_seed(0)
    folder = tmp_path / "weights"
    folder.mkdir()
    for file in DEFAULT_WEIGHTS_DIR.glob("detector-yolov8n.*"):
        shutil.copy(file, folder)
    eyes = {"network": "resnet18", "width": 8, "input_px": 64}
    save_model(folder, card_fields("keypointer", eyes, chip_fraction=0.75), build_keypointer(eyes).state_dict())
    embedder = {"network": "resnet18", "width": 8}
    save_model(folder, card_fields("embedder", embedder), build_embedder(embedder).state_dict())
    return folder


def encoded(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_eyes_from_the_command_line(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ultralytics

    zidane = cv2.imread(str(Path(ultralytics.__file__).parent / "assets/zidane.jpg"))
    points = np.full((68, 2), 160.0)
    points[:2] = (80, 80), (240, 240)
    points[36:42], points[42:48] = (130, 140), (190, 140)
    table = pa.table({
        "image": [encoded(zidane[20:340, 822:1142]), encoded(np.zeros((320, 320, 3), np.uint8))],
        "points": [points.tolist()] * 2,
    })
    pq.write_table(table, tmp_path / "eyes.parquet")
    assert main([
        "eyes", str(tmp_path / "eyes.parquet"), "--weights", str(weights), "--keypointer", "tiny", "--device", "cpu",
        "--update-card", "--out", str(tmp_path / "out"),
    ]) == 0
    figures = json.loads((tmp_path / "out/eyes.json").read_text())
    assert (figures["faces"], figures["found"]) == (2, 1)
    assert figures["failures"] == 1.0                # an untrained network, and a face that is not there
    assert figures["nme"] > 0.1
    assert (tmp_path / "out/eyes.md").read_text() == capsys.readouterr().out
    metrics = read_card(weights, "keypointer", "tiny").metrics
    assert metrics["a"] == 1 and metrics["eyes"]["nme"] == figures["nme"]


def test_identification_from_the_command_line(tmp_path: Path, weights: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 144, 144, 3), np.uint8)
    landmarks = [[54.0, 62], [90, 62], [72, 82], [58, 100], [86, 100]]
    table = pa.table({
        "identity": ["a", "a", "b"], "image": [encoded(first), encoded(first), encoded(second)],
        "landmarks": [landmarks] * 3,
    })
    pq.write_table(table, tmp_path / "crops.parquet")
    assert main([
        "identification", str(tmp_path / "crops.parquet"), "--weights", str(weights), "--keypointer", "tiny",
        "--embedder", "tiny", "--device", "cpu", "--update-card", "--out", str(tmp_path / "out"),
    ]) == 0
    figures = json.loads((tmp_path / "out/identification.json").read_text())
    for eyes in ("eyes_ours", "eyes_given"):         # the same picture twice is one person at any rate
        assert {rate["tpr"] for rate in figures[eyes].values()} == {1.0}
    card = read_card(weights, "embedder", "tiny")
    assert card.thresholds == {fpr: rate["threshold"] for fpr, rate in figures["eyes_ours"].items()}
    assert card.metrics["identification"]["command"].startswith("python -m jobs.evaluate identification ")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An extract output of 100×100 photos p0 … p9 with vectors (cos 20°·i, sin 20°·i); p9 has no face."""
    uris = [f"/photos/p{i}.webp" for i in range(10)]
    images = {"uri": uris, "width": [100] * 10, "height": [100] * 10}
    faces = []
    for i, uri in enumerate(uris[:9]):
        angle = np.radians(20 * i)
        middle = {"x1": 40.0, "y1": 40.0, "x2": 60.0, "y2": 60.0, "embedding": [np.cos(angle), np.sin(angle)]}
        corner = {"x1": 0.0, "y1": 0.0, "x2": 90.0, "y2": 30.0, "embedding": [-1.0, 0.0]}
        faces += [{"uri": uri} | face for face in ((middle, corner) if i % 2 else (corner, middle))]
    for name, table in (("images", pa.table(images)), ("faces", pa.Table.from_pylist(faces))):
        (tmp_path / "output" / name).mkdir(parents=True)
        pq.write_table(table, tmp_path / f"output/{name}/part-0.parquet")
    return tmp_path / "output"


def test_the_face_nearest_the_middle_counts(output: Path) -> None:
    vectors = middle_faces(output)
    assert sorted(vectors) == [f"p{i}" for i in range(9)]
    assert np.allclose(vectors["p3"], [0.5, np.sqrt(0.75)])


def test_verification_from_the_command_line(output: Path, tmp_path: Path) -> None:
    same = ["p0,p1,1"] * 9 + ["p0,p9,1"]             # 20° apart, but one photo has no face
    different = ["p0,p8,0"] * 10                     # 160° apart
    (tmp_path / "pairs.csv").write_text("\n".join(["a,b,same", *same, *different]) + "\n")
    assert main(["verification", str(output), str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "out")]) == 0
    figures = json.loads((tmp_path / "out/verification.json").read_text())
    assert figures["pairs"] == 20 and figures["pairs_without_face"] == 1
    assert figures["best_accuracy"] == figures["accuracy"] == pytest.approx(0.95)
    assert figures["best_threshold"] == pytest.approx(0.0, abs=1e-6)       # half-way between cos 160° and cos 20°


def test_verification_without_an_output_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("a,b,same\nx,y,1\n")
    assert main(["verification", str(tmp_path / "none"), str(tmp_path / "pairs.csv")]) == 2
