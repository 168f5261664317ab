"""int8 detectors: how they are stored, found, checked and refused. NNCF itself is not needed here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.engines import int8
from models.engines.engine import Opened, Runtime, open_network
from models.engines.int8 import normalised, packed, quantise_with_nncf, unpacked, write_int8
from models.engines.openvino_engine import OpenVinoNetwork, import_openvino
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_model

BATCH = np.random.default_rng(0).integers(0, 256, (1, 320, 320, 3), np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped detector with an "int8" form that is not quantised at all."""
    folder = tmp_path_factory.mktemp("weights")
    for file in DEFAULT_WEIGHTS_DIR.glob("detector-yolov8n.*"):
        shutil.copy(file, folder)
    seen: list[np.ndarray] = []

    def keep(network, inputs):
        seen.extend(inputs)
        return network

    card = write_int8(folder, "detector", "yolov8n", [np.full((320, 320, 3), 51, np.uint8)], 320, keep)
    assert [(each.shape, each.dtype, float(each.max())) for each in seen] == [
        ((1, 3, 320, 320), np.float32, pytest.approx(0.2))
    ]
    assert card.files()["detector-yolov8n.int8.zip"] == card.exports["int8"]["sha256"]
    return folder


def test_the_export_changes_no_fingerprint_and_is_in_the_card(weights: Path) -> None:
    shipped = read_model(DEFAULT_WEIGHTS_DIR, "detector", "yolov8n").card
    card = read_model(weights, "detector", "yolov8n").card
    assert card.fingerprint() == shipped.fingerprint() and card.exports["onnx"] == shipped.exports["onnx"]
    assert set(card.exports["int8"]) == {"sha256", "answers"} and set(card.exports["int8"]["answers"]) == {"320", "800"}


def test_precision_int8_runs_the_export_at_any_size(weights: Path) -> None:
    model = read_model(weights, "detector", "yolov8n")
    opened: list[Opened] = []
    network = open_network(model, Runtime(threads=1, precision="int8", opened=opened.append), [BATCH.shape])
    assert opened == [Opened(model.card.identity, "openvino", "int8")]
    exact = OpenVinoNetwork(model, Runtime(threads=1, precision="float32"), [BATCH.shape])
    wanted = exact(BATCH)
    assert np.sqrt(np.mean((network(BATCH) - wanted) ** 2)) < 0.05 * np.std(wanted)
    small = BATCH[:, :96, :96]
    assert network(np.ascontiguousarray(small)).shape == exact(np.ascontiguousarray(small)).shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no int8 export. Make it: make export-setup"),
        ({"engine": "torch"}, "--precision int8 is run by OpenVINO on CPUs"),
        ({"device": "cuda"}, "--precision int8 is run by OpenVINO on CPUs"),
    ],
)
def test_what_cannot_run_is_refused_with_the_way_out(options: dict[str, str], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        open_network(read_model(DEFAULT_WEIGHTS_DIR, "detector", "yolov8n"), Runtime(precision="int8", **options), [])


def test_a_wrong_answer_is_refused_and_nothing_takes_over(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights, tmp_path / "w")
    card_file = tmp_path / "w" / "detector-yolov8n.json"
    card = json.loads(card_file.read_text())
    card["exports"]["int8"]["answers"] = {"320": [0.0] * 64}
    card_file.write_text(json.dumps(card))
    with pytest.raises(WeightsError, match="--precision int8: its answer to the check differs"):
        open_network(read_model(tmp_path / "w", "detector", "yolov8n"), Runtime(precision="int8"), [BATCH.shape])


def test_the_other_networks_run_as_with_auto() -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, "keypointer", "resnet18")
    batch = np.ascontiguousarray(BATCH[:, :112, :112])
    shapes = [batch.shape]
    auto, with_int8 = (open_network(model, Runtime(threads=1, precision=name), shapes) for name in ("auto", "int8"))
    assert np.array_equal(auto(batch), with_int8(batch))


def test_only_detectors_are_quantised() -> None:
    with pytest.raises(WeightsError, match="only detectors with an ONNX export are quantised"):
        write_int8(DEFAULT_WEIGHTS_DIR, "keypointer", "resnet18", [], 112, lambda network, inputs: network)


def test_a_network_is_packed_as_one_file() -> None:
    content = read_model(DEFAULT_WEIGHTS_DIR, "detector", "yolov8n").read_export()
    xml, weights_file = unpacked(packed(import_openvino().Core().read_model(content)))
    assert xml.startswith(b"<?xml") and len(weights_file) > 1e6


def test_pictures_are_normalised_as_the_card_says() -> None:
    card = read_model(DEFAULT_WEIGHTS_DIR, "detector", "yolov8n").card
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[0, 1] = (255, 51, 0)
    found = normalised(picture, card)
    assert found.shape == (1, 3, 32, 32) and found[0, :, 0, 1].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_without_nncf_the_environment_is_named(monkeypatch) -> None:
    monkeypatch.setitem(int8.sys.modules, "nncf", None)
    with pytest.raises(WeightsError, match="NNCF is not installed here: make export-setup"):
        quantise_with_nncf(None, [])
