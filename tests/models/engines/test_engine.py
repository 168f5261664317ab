"""Which engine runs a network."""

from __future__ import annotations

import pytest

from models.engines import engine
from models.engines.engine import Opened, Runtime, open_network
from models.engines.torch_engine import TorchNetwork
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_model


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "auto"}, "device must be one of cpu, cuda, got 'auto'"),
        ({"engine": "onnx"}, "engine must be one of auto, openvino, torch, got 'onnx'"),
        ({"precision": "int4"}, "precision must be one of auto, float32, bfloat16, float16, int8, got 'int4'"),
    ],
)
def test_unknown_choices_are_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Runtime(**values)


def test_torch_takes_over_where_openvino_is_not_installed(monkeypatch, caplog) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    model = read_model(DEFAULT_WEIGHTS_DIR, "keypointer", "resnet18")
    opened: list[Opened] = []
    assert isinstance(open_network(model, Runtime(opened=opened.append), [(1, 112, 112, 3)]), TorchNetwork)
    assert opened == [Opened(model.card.identity, "torch", "float32", "the package openvino is not installed")]
    assert "runs with torch, not with OpenVINO: the package openvino is not installed" in caplog.text
    with pytest.raises(WeightsError, match="the package openvino is not installed; use --engine torch"):
        open_network(model, Runtime(engine="openvino"), [(1, 112, 112, 3)])


def test_openvino_is_refused_for_a_gpu_and_for_float16() -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, "keypointer", "resnet18")
    for runtime, reason in (
        (Runtime("cuda", engine="openvino"), "it runs on CPUs only"),
        (Runtime(engine="openvino", precision="float16"), "not in float16"),
    ):
        with pytest.raises(WeightsError, match=reason):
            open_network(model, runtime, [(1, 112, 112, 3)])


@pytest.mark.parametrize(
    ("engine_name", "precision"), [("torch", "auto"), ("torch", "bfloat16"), ("openvino", "float32")]
)
def test_who_opens_a_network_is_told_what_runs_it(engine_name: str, precision: str) -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, "keypointer", "resnet18")
    opened: list[Opened] = []
    runtime = Runtime(engine=engine_name, precision=precision, opened=opened.append)
    open_network(model, runtime, [(1, 112, 112, 3)])
    assert opened == [Opened(model.card.identity, engine_name, "float32" if precision == "auto" else precision)]
