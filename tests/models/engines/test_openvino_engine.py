"""Exports, and networks run by OpenVINO: they agree with torch in float32, and a fault in them is found."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.engines.engine import EngineError, Runtime, open_network
from models.engines.onnx_export import export_on_demand, write_export
from models.engines.openvino_engine import OpenVinoNetwork, computes_in_bfloat16
from models.engines.self_check import check_answer, check_input, sample
from models.engines.torch_engine import TorchNetwork, module_of
from models.networks.faces import build_embedder
from models.store import DEFAULT_WEIGHTS_DIR, StoredModel, WeightsError, read_model, save_model

SHIPPED = [("detector", "yolov8n", 320), ("detector", "yolov8n", 96), ("keypointer", "resnet18", 112),
           ("keypointer", "resnet18-maps", 112), ("embedder", "edgenext", 112)]


def pictures(count: int, side: int) -> np.ndarray:
    """Different pictures with edges and slopes."""
    rng = np.random.default_rng(side)
    small = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return np.ascontiguousarray(small.repeat(side // 8, 1).repeat(side // 8, 2))


def reference(model: StoredModel) -> TorchNetwork:
    preprocessing = model.card.preprocessing
    return TorchNetwork(module_of(model), Runtime(), mean=preprocessing["mean"], std=preprocessing["std"])


def spread(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / np.std(wanted))


@pytest.mark.parametrize(("role", "name", "side"), SHIPPED)
def test_every_shipped_export_agrees_with_torch(role: str, name: str, side: int) -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, role, name)
    batch = pictures(3, side)
    network = OpenVinoNetwork(model, Runtime(threads=2, precision="float32"), [batch.shape])
    wanted = reference(model)(batch)
    found = network(batch).copy()
    assert found.shape == wanted.shape and found.dtype == np.float32
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()
    assert np.array_equal(network(batch), found)
    alone = OpenVinoNetwork(model, Runtime(threads=1, precision="float32"), [(1, side, side, 3)])
    assert np.abs(alone(batch[1:2])[0] - found[1]).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.parametrize(("role", "name", "side"), SHIPPED)
def test_bfloat16_stays_close(role: str, name: str, side: int) -> None:
    if not computes_in_bfloat16():
        pytest.skip("this CPU has no bfloat16 in hardware")
    model = read_model(DEFAULT_WEIGHTS_DIR, role, name)
    batch = pictures(2, side)
    network = OpenVinoNetwork(model, Runtime(threads=2, precision="bfloat16"), [batch.shape])
    assert 0 < spread(network(batch), reference(model)(batch)) < 0.05


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_threads_that_call_a_network_at_once_get_their_own_answers(engine: str) -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, "keypointer", "resnet18")
    network = open_network(model, Runtime(threads=2, engine=engine, precision="float32", calls=2), [(4, 112, 112, 3)])
    batches = [pictures(n + 4, 112)[n : n + 4] for n in range(4)]
    wanted = [network(batch).copy() for batch in batches]
    both_begun = threading.Barrier(2, timeout=60)

    def call(first: int) -> list[np.ndarray]:
        both_begun.wait()
        return [network(batches[(first + i) % 4]).copy() for i in range(20)]

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(call, (0, 2)))
    for first, answers in zip((0, 2), found, strict=True):
        assert all(np.array_equal(answer, wanted[(first + i) % 4]) for i, answer in enumerate(answers))


@pytest.mark.parametrize(("role", "name", "_"), SHIPPED)
def test_an_export_holds_the_weights_in_half_precision(role: str, name: str, _: int) -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, role, name)
    graph = onnx.load_from_string(model.read_export()).graph
    large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > 512]
    assert large and all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in large)
    assert len(model.read_export()) < 1.1 * len(model.content)


# ---- the self-check ------------------------------------------------------------------------------------------------


def test_the_input_of_the_check_is_the_same_everywhere() -> None:
    picture = check_input(4)
    assert picture.shape == (4, 4, 3) and picture.dtype == np.uint8
    assert picture[0].tolist() == [[0, 37, 74], [0, 37, 74], [0, 37, 74], [1, 38, 75]]      # x² // 7
    assert picture[3, 3].tolist() == [16, 53, 90]                                           # 9 // 7 + 15 + 9 // 11


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda output: output, False),
        (lambda output: output + 0.001, False),
        (lambda output: output * 0, True),
        (lambda output: output + 0.1, True),
        (lambda output: output * np.nan, True),
        (lambda output: output[::-1], True),
    ],
    ids=["same", "rounded", "zero", "shifted", "not a number", "reversed"],
)
def test_a_wrong_answer_is_refused(change, refused) -> None:
    output = np.random.default_rng(0).normal(size=1000)
    answer = sample(output)
    if refused:
        with pytest.raises(EngineError, match="answer to the check differs"):
            check_answer(change(output), answer, "float32")
    else:
        check_answer(change(output), answer, "float32")


# ---- exports made here ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with a small embedder without an export."""
    torch.manual_seed(0)
    architecture = {"network": "resnet18", "width": 8}
    fields = {
        "name": "tiny", "role": "embedder", "architecture": architecture,
        "preprocessing": {"input_px": 112, "mean": [127.5] * 3, "std": [127.5] * 3, "colour_order": "RGB"},
        "licence": "none", "commercial_use": False, "started_from": "random weights", "data": [], "metrics": {},
        "command": "",
    }
    save_model(tmp_path / "weights", fields, build_embedder(architecture).eval().state_dict(), half=True)
    return tmp_path / "weights"


def test_an_export_is_written_beside_the_weights(tiny: Path) -> None:
    before = read_model(tiny, "embedder", "tiny").card
    card = write_export(tiny, "embedder", "tiny")
    model = read_model(tiny, "embedder", "tiny")
    assert model.card == card and card.fingerprint() == before.fingerprint()
    assert replace(card, exports={}) == before
    assert set(card.exports["onnx"]) == {"sha256", "opset", "answers"}
    assert set(card.exports["onnx"]["answers"]) == {"112"}
    batch = pictures(2, 112)
    found = open_network(model, Runtime(engine="openvino", precision="float32"), [batch.shape])(batch)
    assert np.abs(found - reference(model)(batch)).max() < 1e-3 * np.abs(found).max()


@pytest.mark.parametrize("damage", ["other bytes", "missing", "another's answer"])
def test_a_damaged_export_is_not_used(tiny: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    write_export(tiny, "embedder", "tiny")
    card_file = tiny / "embedder-tiny.json"
    if damage == "other bytes":
        (tiny / "embedder-tiny.onnx").write_bytes(b"other")
    elif damage == "missing":
        (tiny / "embedder-tiny.onnx").unlink()
    else:
        values = json.loads(card_file.read_text())
        values["exports"]["onnx"]["answers"]["112"].reverse()
        card_file.write_text(json.dumps(values))
    model = read_model(tiny, "embedder", "tiny")
    batch = pictures(1, 112)
    if damage == "another's answer":
        with pytest.raises(WeightsError, match="--engine openvino: its answer to the check differs"):
            open_network(model, Runtime(engine="openvino"), [batch.shape])
        found = open_network(model, Runtime(), [batch.shape])(batch)
        assert np.array_equal(found, reference(model)(batch))
        assert "runs with torch, not with OpenVINO: its answer to the check differs" in caplog.text
    else:
        with pytest.raises(WeightsError, match="damaged" if damage == "other bytes" else "missing"):
            open_network(model, Runtime(), [batch.shape])


def test_a_model_without_an_export_gets_one_in_the_cache(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = read_model(tiny, "embedder", "tiny")
    content, entry = export_on_demand(model)
    [made] = tmp_path.glob("facelake-exports-*/*.onnx")
    assert made.read_bytes() == content
    made_at = made.stat().st_mtime_ns
    assert export_on_demand(model) == (content, entry) and made.stat().st_mtime_ns == made_at
    made.write_bytes(b"other")
    with pytest.raises(EngineError, match="damaged: delete it"):
        export_on_demand(model)


# ---- what a CPU actor imports and reaches --------------------------------------------------------------------------


def test_an_actor_on_a_cpu_imports_no_torch_opens_no_connection_and_writes_nothing_to_the_home(tmp_path: Path) -> None:
    code = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("went online")
socket.getaddrinfo = socket.socket.connect = refuse
import numpy as np
from jobs.extract.stages import Models, StageConfig, stage_builders
from models.store import DEFAULT_WEIGHTS_DIR, read_card
from pipeline.settings import RowSettings
cards = [read_card(DEFAULT_WEIGHTS_DIR, *each) for each in
         (("detector", "yolov8n"), ("keypointer", "resnet18-maps"), ("embedder", "edgenext"))]
settings = RowSettings(detect_px=64, second_pass_px=None)
builders = stage_builders(StageConfig(settings, Models(*cards), engine="openvino"))
stages = {name: build(1, 1) for name, build in builders.items()}
print(sorted(set(sys.modules) & {"torch", "torchvision", "ultralytics", "timm", "onnx"}))
"""
    home = tmp_path / "home"
    home.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False,
        env={"HOME": str(home), "PATH": "", "TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr
    assert list(home.iterdir()) == []
