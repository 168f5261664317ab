"""Export a model to ONNX, for engines that run it without torch.

Weights are stored in half precision where that is exact, as in the safetensors file: the export holds the same values
in the same space. Batch norms stay apart, because folded into a convolution their values need float32. Engines fold
them when they compile the network.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.engines.engine import EngineError, Runtime
from models.engines.self_check import check_input, sample
from models.store import StoredModel, WeightCard, own_folder, read_model, write_card, write_whole

if TYPE_CHECKING:
    import onnx

OPSET = 17                  # the first with LayerNormalization
DETECTOR_SIDES_PX = (320, 800)        # the answers of a detector: at the second pass, and at the first
CACHE_VERSION = 1           # of the exports made on demand; raise it when this file changes what they hold


def export_model(model: StoredModel) -> tuple[bytes, dict[str, Any]]:
    """A model as an ONNX file, its batch size open, and the entry `exports["onnx"]` of its card.

    The output of a detector is raw (`networks.yolo.RawDetector`), and the size of its input is open too. The entry
    holds the answers of torch in float32 to `self_check.check_input`, by input size.
    """
    from models.engines.torch_engine import TorchNetwork, module_of

    module = module_of(model, fuse=False)
    sides = DETECTOR_SIDES_PX if model.card.role == "detector" else (int(model.card.preprocessing["input_px"]),)
    content = _to_onnx(module, sides[0], size_is_open=model.card.role == "detector")
    preprocessing = model.card.preprocessing
    network = TorchNetwork(module, Runtime(), mean=preprocessing["mean"], std=preprocessing["std"])
    answers = {str(side): sample(network(check_input(side)[None])[0]) for side in sides}
    return content, {"sha256": hashlib.sha256(content).hexdigest(), "opset": OPSET, "answers": answers}


def write_export(weights_dir: Path, role: str, name: str) -> WeightCard:
    """Export a model beside its weights, name it in its card, and return the card. Raises WeightsError."""
    model = read_model(weights_dir, role, name)
    content, entry = export_model(model)
    card = model.card.with_export("onnx", entry)
    write_whole(weights_dir / card.export_name, content)
    write_card(weights_dir, card)
    return card


def export_on_demand(model: StoredModel) -> tuple[bytes, dict[str, Any]]:
    """The export of a model that ships none, from this user's cache or made now by a process of its own.

    So the process that asks does not import torch. Raises EngineError when it cannot be made.
    """
    cache = own_folder(Path(tempfile.gettempdir()) / f"facelake-exports-{os.getuid()}")
    path = cache / f"{model.card.tensors_sha256[:16]}-{CACHE_VERSION}.onnx"
    with (cache / ".lock").open("w") as lock:
        with suppress(OSError):                   # some file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)      # of several actors one exports, the others wait
        if not path.with_suffix(".json").exists():
            card = model.card
            command = [sys.executable, "-m", __name__, str(model.folder), card.role, card.name, str(path)]
            path_of_code = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path_of_code)}
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise EngineError(f"its export failed: {(ended.stderr.strip().splitlines() or ['no output'])[-1]}")
    entry = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise EngineError(f"{path} is damaged: delete it")
    return content, entry


def _to_onnx(module: Any, side_px: int, *, size_is_open: bool) -> bytes:
    import onnx
    import torch

    open_axes = {0: "n", 2: "height", 3: "width"} if size_is_open else {0: "n"}
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad(), warnings.catch_warnings():
        exported = Path(scratch) / "network.onnx"
        # The exporter by tracing is deprecated. The other takes five times as long and fixes sizes that must be open.
        warnings.simplefilter("ignore")
        module(torch.zeros(2, 3, side_px, side_px))      # computes what it keeps, which is not to be traced
        torch.onnx.export(
            module, (torch.zeros(2, 3, side_px, side_px),), exported, dynamo=False, opset_version=OPSET,
            input_names=["input"], output_names=["output"],
            dynamic_axes={"input": open_axes, "output": {0: "n", 2: "cells"} if size_is_open else {0: "n"}},
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,      # both would fold batch norms
        )
        network = onnx.load(exported)
    _store_in_half(network)
    onnx.checker.check_model(network)
    return bytes(network.SerializeToString(deterministic=True))


def _store_in_half(network: onnx.ModelProto) -> None:
    """Store weights in half precision where that is exact; a Cast makes them float32 again."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in list(network.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            network.graph.initializer.remove(tensor)
            network.graph.initializer.append(numpy_helper.from_array(half, f"{tensor.name}.half"))
            casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        network.graph.node.insert(0, cast)


if __name__ == "__main__":
    folder, role, name, out = sys.argv[1:]
    onnx_file, card_entry = export_model(read_model(Path(folder), role, name))
    write_whole(Path(out), onnx_file)
    write_whole(Path(out).with_suffix(".json"), json.dumps(card_entry).encode())
