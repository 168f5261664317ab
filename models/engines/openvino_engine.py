"""Run an exported network on the CPU with OpenVINO."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from models.engines.compiled_cache import compiled_key, load_or_compile
from models.engines.engine import EngineError, Runtime, Shape
from models.engines.self_check import check_answer, check_input
from models.engines.signal_stack import kept_signal_stack
from models.store import StoredModel
from pipeline.errors import first_line

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}      # elsewhere OpenVINO emulates bfloat16, which is slower than float32


def import_openvino() -> Any:
    """The module openvino, without its telemetry: on import that would report to its maker and write to HOME."""
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))      # its import fails, and openvino does without
    import openvino

    return openvino


class OpenVinoNetwork:
    """A network, compiled once for each shape of batch.

    Static shapes are faster than dynamic ones and better tried. When it is made, the network computes the input whose
    answer is stored with the export. Raises EngineError when the answers differ, or when the model has no export.
    """

    engine = "openvino"
    compiled = False          # by torch
    departure = None

    def __init__(self, model: StoredModel, runtime: Runtime, shapes: Sequence[Shape]) -> None:
        with kept_signal_stack():
            self._open(model, runtime, shapes)

    def _open(self, model: StoredModel, runtime: Runtime, shapes: Sequence[Shape]) -> None:
        ov = import_openvino()
        precision = ("bfloat16" if computes_in_bfloat16() else "float32") if runtime.precision in ("auto", "int8") \
            else runtime.precision
        if precision not in ("float32", "bfloat16"):
            raise EngineError(f"it computes in float32 or bfloat16 on a CPU, not in {precision}")
        quantised = runtime.precision == "int8" and model.card.role == "detector"
        self.precision = "int8" if quantised else precision
        self._properties = _properties(precision, runtime)
        self._core = ov.Core()
        self._preprocessing = model.card.preprocessing
        self._export, answers = int8_of(model) if quantised else export_of(model)
        self._compiled: dict[Shape, Any] = {}
        self._compiling = threading.Lock()
        self._own = threading.local()                 # the requests of each thread
        try:
            for shape in shapes[:1]:                  # others when they are used: compiling takes long
                self._compiled[shape] = self._compile(shape)
            self._check(self.precision, answers, shapes)
        except RuntimeError as error:                 # of OpenVINO, whatever it is
            raise EngineError(first_line(error)) from None

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """A batch (b, s, s, 3) uint8 RGB to the output (b, …) float32; the thread's next call overwrites it."""
        requests: dict[Any, Any] = self._own.__dict__
        if batch.shape in requests:
            return _infer(requests[batch.shape], batch)
        with kept_signal_stack():      # another shape is compiled now
            requests[batch.shape] = self._request(batch.shape)
            return _infer(requests[batch.shape], batch)

    def _request(self, shape: Any) -> Any:
        with self._compiling:
            compiled = self._compiled.get(shape) or self._compile(shape)
            self._compiled[shape] = compiled
        return compiled.create_infer_request()

    def _compile(self, shape: Shape) -> Any:
        key = compiled_key(
            self._core, *(hashlib.sha256(file).hexdigest() for file in self._export), tuple(shape),
            sorted(self._properties.items()), self._preprocessing["mean"], self._preprocessing["std"],
        )
        return load_or_compile(self._core, key, self._properties, lambda: self._build(shape))

    def _build(self, shape: Shape) -> Any:
        ov = import_openvino()
        from openvino.preprocess import PrePostProcessor

        batch, height, width, channels = shape
        network = self._core.read_model(*self._export)
        network.reshape({0: [batch, channels, height, width]})
        steps = PrePostProcessor(network)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        steps.input().preprocess().convert_element_type(ov.Type.f32).mean(
            [float(value) for value in self._preprocessing["mean"]]
        ).scale([float(value) for value in self._preprocessing["std"]])
        return self._core.compile_model(steps.build(), "CPU", self._properties)

    def _check(self, precision: str, answers: Mapping[str, list[float]], shapes: Sequence[Shape]) -> None:
        """Compare with the stored answer, at the input size of one of the shapes if there is an answer for it."""
        shape = next((each for each in shapes if str(each[1]) in answers), None)
        if shape is None:
            side = int(next(iter(answers)))
            shape = (1, side, side, 3)
        batch = np.broadcast_to(check_input(shape[1]), shape)
        for output in self(np.ascontiguousarray(batch)):
            check_answer(output, answers[str(shape[1])], precision)


def _infer(request: Any, batch: np.ndarray) -> np.ndarray:
    output: np.ndarray = request.infer({0: batch}, share_inputs=True, share_outputs=True)[0]
    return output


def export_of(model: StoredModel) -> tuple[tuple[bytes, ...], Mapping[str, list[float]]]:
    """The ONNX file of a model, shipped or made on demand, and its answers by input size. Raises EngineError."""
    content = model.read_export()
    if content is not None:
        return (content,), model.card.exports["onnx"]["answers"]
    from models.engines.onnx_export import export_on_demand

    content, entry = export_on_demand(model)
    return (content,), entry["answers"]


def int8_of(model: StoredModel) -> tuple[tuple[bytes, ...], Mapping[str, list[float]]]:
    """OpenVINO's two files of a quantised detector, and its answers by input size. Raises WeightsError."""
    from models.engines.int8 import read_int8

    return read_int8(model)


def computes_in_bfloat16() -> bool:
    """Whether this CPU has bfloat16 in hardware."""
    if "BF16" not in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return bool(BFLOAT16_FLAGS & set(flags.split()))


def _properties(precision: str, runtime: Runtime) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": runtime.threads or 0,      # 0: all
        "NUM_STREAMS": runtime.calls,
        "PERFORMANCE_HINT": "LATENCY" if runtime.calls == 1 else "THROUGHPUT",
        "ENABLE_CPU_PINNING": False,       # several actors share a machine; pinned, all would take the first cores
    }
