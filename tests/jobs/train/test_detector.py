from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.train.detector import average, label_lines, main, paint_ignored, unpack
from models.store import DEFAULT_WEIGHTS_DIR, read_card, read_model


@pytest.mark.parametrize(
    ("boxes", "lines"),
    [
        ([], ""),
        ([[10, 10, 30, 20]], "0 0.200000 0.300000 0.200000 0.200000\n"),
        ([[-20, 40, 20, 60], [0, 0, 100, 50]],
         "0 0.100000 0.900000 0.200000 0.200000\n0 0.500000 0.500000 1.000000 1.000000\n"),
        ([[120, 10, 130, 20], [5, 5, 5, 9]], ""),
    ],
    ids=["none", "one", "clipped to the image", "outside, without area"],
)
def test_labels_are_fractions_of_the_image(boxes, lines: str) -> None:
    assert label_lines(np.array(boxes, np.float64).reshape(-1, 4), 100, 50) == lines


@pytest.mark.parametrize(
    ("ignored", "boxes", "grey"),
    [
        ([], [], []),
        ([[1, 0, 3, 2]], [], [(0, 1), (0, 2), (1, 1), (1, 2)]),
        ([[1, 0, 3, 2]], [[2, 1, 4, 3]], [(0, 1), (0, 2), (1, 1)]),
        ([[2.5, 2.5, 9, 9], [-5, -5, 0.5, 0.5]], [], [(0, 0), (2, 2), (2, 3), (3, 2), (3, 3)]),
    ],
    ids=["none", "one", "a labelled face in it stays", "over the edge"],
)
def test_ignored_boxes_are_grey(ignored, boxes, grey) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels.flags.writeable = False
    painted = paint_ignored(pixels, np.array(ignored).reshape(-1, 4), np.array(boxes).reshape(-1, 4))
    assert [tuple(place) for place in np.argwhere((painted == 114).all(axis=2))] == grey


def parquet(path: Path, count: int, side: int = 64) -> Path:
    """Images of noise with one bright square, which is a box; in the last image it is an ignored box."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        pixels = rng.integers(0, 100, (side, side, 3), np.uint8)
        pixels[16:40, 16:40] = 200
        coded = cv2.imencode((".png", ".jpg", ".webp")[i % 3], pixels)[1].tobytes()
        box = [[16.0, 16.0, 40.0, 40.0]]
        rows.append({"name": str(i), "image": coded, "width": side, "height": side,
                     "boxes": [] if i == count - 1 else box, "ignored_boxes": box if i == count - 1 else []})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_parquet_becomes_a_yolo_folder(tmp_path: Path) -> None:
    unpack([parquet(tmp_path / "a.parquet", 3), parquet(tmp_path / "b.parquet", 3)], tmp_path / "data")
    made = sorted(str(p.relative_to(tmp_path / "data")) for p in (tmp_path / "data").rglob("*.*"))
    assert made == [
        "images/train/000001.jpg", "images/train/000002.png", "images/train/000003.png", "images/train/000004.jpg",
        "images/train/000005.png", "images/val/000000.png",
        *(f"labels/train/00000{i}.txt" for i in range(1, 6)), "labels/val/000000.txt",
    ]
    assert (tmp_path / "data/labels/train/000001.txt").read_text() == "0 0.437500 0.437500 0.375000 0.375000\n"
    assert (tmp_path / "data/labels/train/000005.txt").read_text() == ""
    painted = cv2.imread(str(tmp_path / "data/images/train/000005.png"))
    assert (painted[16:40, 16:40] == 114).all()
    assert painted[0, 0, 0] != 114

    (tmp_path / "data/labels/train/000001.txt").unlink()
    unpack([tmp_path / "a.parquet"], tmp_path / "data")           # the folder is complete: nothing is done
    assert not (tmp_path / "data/labels/train/000001.txt").exists()


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([], "no readable image with a face"),
        ([{"image": b"torn", "boxes": [[1.0, 1, 9, 9]], "ignored_boxes": []}], "no readable image with a face"),
        ([{"image": cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes(), "boxes": [],
           "ignored_boxes": []}], "no readable image with a face"),
        ([{"image": cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes(), "boxes": [[1.0, 1, 9, 9]],
           "ignored_boxes": []}], "each 50th image is held out"),
        ([{"image": cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes(), "boxes": [[1.0, 1, 9]],
           "ignored_boxes": []}], "boxes must be lists of x1, y1, x2, y2 in pixels, got [[1.0, 1.0, 9.0]]"),
    ],
    ids=["empty", "unreadable", "no face", "one image", "three numbers a box"],
)
def test_data_without_a_face_is_an_error(rows, error: str, tmp_path: Path, capsys) -> None:
    box = pa.list_(pa.list_(pa.float64()))
    schema = pa.schema({"image": pa.binary(), "boxes": box, "ignored_boxes": box})
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    assert main([str(tmp_path / "a.parquet"), "--checkpoints", str(tmp_path / "c"), "--out", str(tmp_path)]) == 2
    assert error in capsys.readouterr().err


def test_the_first_readable_image_is_held_out(tmp_path: Path) -> None:
    good = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    rows = [{"image": image, "boxes": [[1.0, 1, 9, 9]]} for image in (b"torn", good, good)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")                      # without ignored_boxes
    unpack([tmp_path / "a.parquet"], tmp_path / "data")
    assert [p.name for p in (tmp_path / "data/images/val").iterdir()] == ["000001.png"]
    assert [p.name for p in (tmp_path / "data/images/train").iterdir()] == ["000002.png"]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (["none.parquet"], "none.parquet does not exist"),
        (["text.parquet"], "text.parquet cannot be read, Parquet is expected"),
        (["other.parquet"], "other.parquet has no column boxes; needed: image, boxes"),
        (["folder"], "folder lacks images/train of YOLO's layout"),
        (["folder", "a.parquet"], "Parquet files or one folder"),
    ],
)
def test_wrong_data_is_named_and_does_not_claim_the_folder(data: list[str], error: str, tmp_path: Path, capsys) -> None:
    parquet(tmp_path / "a.parquet", 3)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.parquet").write_text("nothing")
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "other.parquet")
    options = ["--checkpoints", str(tmp_path / "c"), "--out", str(tmp_path)]
    assert main([*(str(tmp_path / name) for name in data), *options]) == 2
    assert error in capsys.readouterr().err
    # a run that did not start does not claim the folder
    assert main([str(tmp_path / "a.parquet"), *options, "--finish"]) == 2
    assert "no finished epoch" in capsys.readouterr().err
    assert len(list((tmp_path / "c/data/images/train").iterdir())) == 2


def test_an_incomplete_folder_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "data/images/train").mkdir(parents=True)
    (tmp_path / "data/images/train/000009.jpg").write_bytes(b"of other data")
    unpack([parquet(tmp_path / "a.parquet", 3)], tmp_path / "data")
    assert sorted(p.name for p in (tmp_path / "data/images/train").iterdir()) == ["000001.jpg", "000002.png"]


@pytest.mark.parametrize(
    "options",
    [["--source", "photos"], ["--name", "a b"], ["--epochs", "0"], ["--batch", "-1"], ["--keep-start", "2"],
     ["--lr0", "0"], ["--threads", "0"]],
)
def test_wrong_options_are_refused_at_once(options: list[str], capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["a.parquet", *options])
    assert options[0] in capsys.readouterr().err


def test_a_run_writes_weights_and_is_not_repeated(tmp_path: Path, capsys) -> None:
    data = parquet(tmp_path / "a.parquet", 5)
    checkpoints, out = tmp_path / "checkpoints", tmp_path / "out"
    command = [
        str(data), "--epochs", "1", "--imgsz", "64", "--batch", "2", "--device", "cpu", "--threads", "1",
        "--checkpoints", str(checkpoints), "--out", str(out), "--source", "noise=none",
    ]
    assert main(command) == 0
    assert "epoch 1 of 1: box_loss " in capsys.readouterr().out
    card = read_card(out, "detector", "yolov8n")
    assert card.started_from == "random weights"
    assert card.data == [{"name": "noise", "licence": "none"}]
    assert json.loads((out / "detector-yolov8n.json").read_text())["preprocessing"]["input_px"] == 800

    last = checkpoints / "run/weights/last.pt"
    written = last.stat().st_mtime_ns
    assert main(command) == 0
    assert "epoch" not in capsys.readouterr().out
    assert last.stat().st_mtime_ns == written
    assert read_card(out, "detector", "yolov8n").tensors_sha256 == card.tensors_sha256

    (checkpoints / "finished").unlink()             # like a run that was stopped after its first epoch
    assert main([*command, "--finish", "--name", "stopped"]) == 0
    stopped = read_card(out, "detector", "stopped")
    assert stopped.tensors_sha256 == card.tensors_sha256
    assert stopped.metrics == {"training": {"epochs_done": 1}}

    parquet(data, 7)
    assert main(command) == 2
    assert "another data: repeat its command" in capsys.readouterr().err
    parquet(data, 5)
    assert main([*command, "--lr0", "0.5"]) == 2
    assert "another lr0: repeat its command" in capsys.readouterr().err


def test_emulated_bfloat16_is_refused(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    options = ["--device", "cpu", "--precision", "bfloat16", "--checkpoints", str(tmp_path), "--out", str(tmp_path)]
    assert main([str(parquet(tmp_path / "a.parquet", 3)), *options]) == 2
    assert "leave --precision" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keep", "keep_boxes", "body", "boxes"),
    [(0.0, 0.0, 4.0, 4.0), (1.0, 1.0, 0.0, 0.0), (0.75, 0.75, 1.0, 1.0), (0.75, 0.5, 1.0, 2.0)],
)
def test_average_with_the_start(keep: float, keep_boxes: float, body: float, boxes: float) -> None:
    names = ("model.0.conv.weight", "model.22.cv3.0.2.bias", "model.22.cv2.0.2.bias")
    start, trained = ({name: torch.full((2,), value) for name in names} for value in (0.0, 4.0))
    assert [t[0].item() for t in average(start, trained, keep, keep_boxes).values()] == [body, body, boxes]


def test_keep_start_averages_with_the_start(tmp_path: Path) -> None:
    data = parquet(tmp_path / "a.parquet", 3)
    command = [
        str(data), "--start", "yolov8n", "--epochs", "1", "--imgsz", "64", "--batch", "2", "--lr0", "0.01",
        "--device", "cpu", "--threads", "1", "--checkpoints", str(tmp_path / "checkpoints"), "--out", str(tmp_path),
    ]
    assert main([*command, "--name", "none"]) == 0
    assert main([*command, "--name", "half", "--keep-start", "0.5"]) == 0
    start, none, half = (
        read_model(folder, "detector", name).tensors()
        for folder, name in ((DEFAULT_WEIGHTS_DIR, "yolov8n"), (tmp_path, "none"), (tmp_path, "half"))
    )
    name = "model.22.cv3.0.2.weight"
    assert (none[name] - start[name]).abs().max() > 1e-3
    assert torch.allclose(half[name], (start[name] + none[name]) / 2, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--finish"], "no finished epoch"), (["--start", "none.pt"], "none.pt"),
     (["--start", "none"], "no detector 'none'"),
     (["--network", "resnet"], "must be one of yolov8n")],
)
def test_a_missing_start_is_an_error(tmp_path: Path, capsys, options: list[str], message: str) -> None:
    data = parquet(tmp_path / "a.parquet", 3)
    assert main([str(data), "--checkpoints", str(tmp_path / "c"), "--weights", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
