"""Detectors in 8-bit integers: made by calibration from the ONNX export, kept beside the weights, run by OpenVINO.

NNCF makes them, in an environment of its own; it is not needed to run them. The file is a zip of OpenVINO's two files.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from models.engines.openvino_engine import import_openvino
from models.engines.self_check import check_input, sample
from models.store import StoredModel, WeightCard, WeightsError, read_model, write_card, write_whole

ANSWER_SIDES_PX = (320, 800)       # of the self-check: at the second pass, and at the first
NAMES = ("network.xml", "network.bin")

Quantise = Callable[[Any, Iterable[np.ndarray]], Any]
"""From OpenVINO's network, and inputs (1, 3, s, s) float32 as it takes them, to the quantised network."""


def write_int8(
    weights_dir: Path, role: str, name: str, pictures: Iterable[np.ndarray], side_px: int, quantise: Quantise
) -> WeightCard:
    """Quantise a detector, write the file beside its weights, name it in its card, and return the card.

    pictures: (side_px, side_px, 3) uint8 RGB, to calibrate with. Raises WeightsError.
    """
    model = read_model(weights_dir, role, name)
    onnx_file = model.read_export()
    if role != "detector" or onnx_file is None:
        raise WeightsError(
            f"only detectors with an ONNX export are quantised; export {role}-{name} with jobs.convert_weights export"
        )
    core = import_openvino().Core()
    network = core.read_model(onnx_file)
    network.reshape({0: [1, 3, side_px, side_px]})
    content = packed(quantise(network, (normalised(picture, model.card) for picture in pictures)))
    answers = {str(side): answer(core, content, side, model.card) for side in ANSWER_SIDES_PX}
    card = model.card.with_export("int8", {"sha256": hashlib.sha256(content).hexdigest(), "answers": answers})
    write_whole(weights_dir / card.export_file("int8"), content)
    write_card(weights_dir, card)
    return card


def read_int8(model: StoredModel) -> tuple[tuple[bytes, bytes], dict[str, list[float]]]:
    """OpenVINO's two files of a quantised detector, and its answers by input size. Raises WeightsError."""
    require_int8(model.card)
    content = model.read_export("int8")
    assert content is not None
    return unpacked(content), model.card.exports["int8"]["answers"]


def require_int8(card: WeightCard) -> None:
    """Raises WeightsError, with the way to make it, if a detector has no quantised form."""
    if "int8" not in card.exports:
        raise WeightsError(
            f"--precision int8: the {card.role} {card.name!r} has no int8 export. Make it: make export-setup, then "
            f".venv-export/bin/python -m jobs.convert_weights quantise WEIGHTS_DIR {card.role}-{card.name} --photos "
            "FOLDER, with at least a hundred photos like yours"
        )


def quantise_with_nncf(network: Any, inputs: Iterable[np.ndarray]) -> Any:
    """Quantise with NNCF. Raises WeightsError where it is not installed."""
    os.environ["NNCF_CI"] = "1"        # no telemetry
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import nncf
    except ImportError:
        raise WeightsError("NNCF is not installed here: make export-setup, then use .venv-export/bin/python") from None
    found = list(inputs)
    library: Any = nncf
    return library.quantize(
        network, library.Dataset(found), preset=library.QuantizationPreset.MIXED, subset_size=len(found)
    )


def normalised(picture: np.ndarray, card: WeightCard) -> np.ndarray:
    """A picture (s, s, 3) uint8 RGB as the network takes it: (1, 3, s, s) float32."""
    mean, std = (np.array(card.preprocessing[name], np.float32) for name in ("mean", "std"))
    return np.ascontiguousarray(((picture - mean) / std).transpose(2, 0, 1)[None], np.float32)


def answer(core: Any, content: bytes, side_px: int, card: WeightCard) -> list[float]:
    """What a quantised network answers to the input of the self-check."""
    network = core.read_model(*unpacked(content))
    network.reshape({0: [1, 3, side_px, side_px]})
    request = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    return sample(request.infer({0: normalised(check_input(side_px), card)})[0][0])


def packed(network: Any) -> bytes:
    """OpenVINO's two files as one zip."""
    with tempfile.TemporaryDirectory() as folder:
        import_openvino().save_model(network, str(Path(folder) / NAMES[0]))
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
            for name in NAMES:
                file.writestr(name, (Path(folder) / name).read_bytes())
    return made.getvalue()


def unpacked(content: bytes) -> tuple[bytes, bytes]:
    """OpenVINO's two files."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return file.read(NAMES[0]), file.read(NAMES[1])
