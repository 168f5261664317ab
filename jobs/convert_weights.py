"""Convert weights: an ultralytics checkpoint to ours, or ours to ONNX.

    python -m jobs.convert_weights import FILE.pt OUT_DIR --name yolov8n
    python -m jobs.convert_weights export WEIGHTS_DIR keypointer-resnet18
    python -m jobs.convert_weights quantise WEIGHTS_DIR detector-yolov8n --photos FOLDER

Without a word before FILE.pt it imports. An export lies beside the weights, and the card names it. Trainings export
what they write. `quantise` makes the form of a detector that `--precision int8` runs, in the environment of
`make export-setup`.

Unpickling a checkpoint runs the code in it. So a file is only read if its sha256 is known or given, or with `--trust`.
A separate process reads it, without our packages and the caller's environment. Of a pose network only the boxes and
scores are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.command import run_command, run_process
from jobs.options import command_parser, positive
from models.store import WeightCard, WeightsError, save_model
from pipeline.settings import RowSettings

if TYPE_CHECKING:
    import torch

PINNED = {
    # YOLOv8n-face of derronqi/yolov8-face, recovered from its int8 export
    "88119e118ad5e91862a91436a695e7167cd8c7547b2f2be176375e759b5c0f08": "yolov8n_face.pt",
}

# Python's -I keeps our package `models` out of the way: YOLOv5 checkpoints name a module `models`. torch.load reads the
# file, because ultralytics' loader installs packages that a checkpoint names.
UNPICKLE = """
import sys
import torch, ultralytics.nn.tasks
from safetensors.torch import save_file
checkpoint = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
model = checkpoint.get("ema") or checkpoint["model"]
save_file({k: v.float().contiguous() for k, v in model.state_dict().items()
           if not k.endswith("num_batches_tracked")}, sys.argv[2])
"""

FIRST_CHANNELS = {16: "yolov8n", 32: "yolov8s", 48: "yolov8m"}
BOX_PARTS = ("cv2", "cv3", "dfl")     # of the head, `model.22`; `cv4` finds the points of a pose network
DETECTOR_LICENCE = "AGPL-3.0"         # ultralytics' licence for its networks and models trained with them


def unpickle(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint as float32, read by a separate process. Raises WeightsError.

    Call this only for a trusted file: its code runs.
    """
    import safetensors.torch

    from models.networks.yolo import ULTRALYTICS_ENV

    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "tensors.safetensors"
        ended = subprocess.run(
            [sys.executable, "-I", "-c", UNPICKLE, str(file.resolve()), str(result)],
            env={**ULTRALYTICS_ENV, "YOLO_CONFIG_DIR": scratch, "HOME": scratch, "PATH": os.environ.get("PATH", "")},
            cwd=scratch, capture_output=True, text=True, check=False,
        )
        if ended.returncode != 0:
            reason = (ended.stderr.strip().splitlines() or ["no output"])[-1]
            raise WeightsError(f"{file} is not an ultralytics checkpoint: {reason}")
        return safetensors.torch.load(result.read_bytes())


def box_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """The network's name and its tensors for boxes; from a YOLOv8 detect or pose network with one class.

    Raises WeightsError for any other network.
    """
    from models.networks.yolo import load_network, network_tensors

    first = tensors.get("model.0.conv.weight")
    network = FIRST_CHANNELS.get(len(first)) if first is not None else None
    if network is None:
        raise WeightsError("not a YOLOv8 n, s or m: its first convolution is missing or of another width")
    head = f"model.{max(int(name.split('.')[1]) for name in tensors)}."
    kept = {
        name: tensor for name, tensor in tensors.items()
        if not name.startswith(head) or name.removeprefix(head).split(".")[0] in BOX_PARTS
    }
    return network, network_tensors(load_network(network, kept))


def check_trusted(file: Path, sha256: str | None, trust: bool) -> str:
    """The file's sha256, if we may unpickle it. Otherwise raises WeightsError, which says how to allow it."""
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror}") from None
    if sha256 is not None and sha256.lower() != digest:
        raise WeightsError(f"{file} has sha256 {digest}, not the one given with --sha256: download it again")
    if sha256 is None and digest not in PINNED and not trust:
        raise WeightsError(
            f"{file} (sha256 {digest}) is not known, and reading a .pt file runs the code in it. "
            "Give its publisher's --sha256, or --trust if you made it yourself."
        )
    return digest


def detector_fields(name: str, network: str, input_px: int, **fields: Any) -> dict[str, Any]:
    """The fields of a detector's card: those that all detectors share, and `fields`."""
    return {
        "name": name,
        "role": "detector",
        "architecture": {"network": network, "classes": 1},
        "preprocessing": {"input_px": input_px, "mean": [0, 0, 0], "std": [255, 255, 255], "colour_order": "RGB"},
        "licence": DETECTOR_LICENCE,
        **fields,
    }


def convert(file: Path, out_dir: Path, name: str, digest: str, command: str) -> WeightCard:
    """Write the detector of a trusted checkpoint into out_dir; its card. Raises WeightsError."""
    network, tensors = box_tensors(unpickle(file))
    fields = detector_fields(
        name, network, 640,
        commercial_use=False,      # its data are unknown
        started_from=f"{file.name}, sha256 {digest}",
        data=[{"name": "as the checkpoint's publisher says", "licence": "unknown"}],
        metrics={},
        command=command,
    )
    return save_model(out_dir, fields, tensors)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["export"]:
        return run_command("convert-weights", partial(export_models, words[1:]), again="The same command starts again.")
    if words[:1] == ["quantise"]:
        return run_command("convert-weights", partial(quantise, words[1:]), again="The same command starts again.")
    parser = command_parser(
        "convert-weights", "Convert YOLOv8 weights from .pt to safetensors: `import`, which may be left out. "
        "`export WEIGHTS_DIR ROLE-NAME …` writes ONNX files beside weights. `quantise` makes int8 ones of detectors."
    )
    parser.add_argument("file", type=Path, metavar="FILE.pt", help="an ultralytics YOLOv8 checkpoint, detect or pose")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="weights folder for the result")
    parser.add_argument("--name", required=True, help="name of the detector: detector-NAME.safetensors")
    parser.add_argument("--sha256", help="the file's sha256, as its publisher gives it")
    parser.add_argument("--trust", action="store_true", help="run the code in a file of unknown sha256")
    args = parser.parse_args(words[1:] if words[:1] == ["import"] else words)
    command = f"python -m jobs.convert_weights {shlex.join(words)}"
    return run_command("convert-weights", partial(convert_file, args, command), again="The same command starts again.")


def convert_file(args: argparse.Namespace, command: str) -> None:
    """Check the file, convert it, and print the result. Raises WeightsError."""
    digest = check_trusted(args.file, args.sha256, args.trust)
    card = convert(args.file, args.out_dir, args.name, digest, command)
    print(f"{args.out_dir / card.file_name}: {card.identity}")


def export_models(words: Sequence[str]) -> None:
    """Write the ONNX file of every named model and its entry in the card. Raises WeightsError."""
    from models.engines.onnx_export import write_export

    parser = command_parser("convert-weights export", "Write models as ONNX files beside their weights.")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS_DIR", help="the folder of the weights")
    parser.add_argument("models", nargs="+", metavar="ROLE-NAME", help="for example keypointer-resnet18")
    args = parser.parse_args(words)
    for model in args.models:
        role, _, name = model.partition("-")
        card = write_export(args.weights, role, name)
        size = (args.weights / card.export_name).stat().st_size
        print(f"{args.weights / card.export_name}: {size / 1e6:.1f} MB, opset {card.exports['onnx']['opset']}")


def quantise(words: Sequence[str]) -> None:
    """Write the int8 form of a detector and its entry in the card. Raises WeightsError."""
    from models.engines.int8 import quantise_with_nncf, write_int8

    parser = command_parser("convert-weights quantise", "Write the int8 form of a detector beside its weights.")
    parser.add_argument("weights", type=Path, metavar="WEIGHTS_DIR", help="the folder of the weights")
    parser.add_argument("model", metavar="DETECTOR", help="for example detector-yolov8n")
    parser.add_argument("--photos", type=Path, required=True, metavar="PHOTOS", help=(
        "to calibrate with: a folder of photos, or a .parquet file with a column image. Use none that you measure on"))
    parser.add_argument("--images", type=positive, default=128, metavar="N", help="of them; default: %(default)s")
    args = parser.parse_args(words)
    role, _, name = args.model.partition("-")
    side_px = RowSettings().detect_px
    pictures = calibration_pictures(args.photos, args.images, side_px)
    card = write_int8(args.weights, role, name, pictures, side_px, quantise_with_nncf)
    size = (args.weights / card.export_file("int8")).stat().st_size
    print(f"{args.weights / card.export_file('int8')}: {size / 1e6:.1f} MB")


def calibration_pictures(photos: Path, count: int, side_px: int) -> list[np.ndarray]:
    """So many photos, evenly spaced, as the detector gets them: (side_px, side_px, 3) uint8 RGB.

    Raises WeightsError if there are fewer that can be read.
    """
    import cv2

    from pipeline.stages.operations import letterbox

    files = image_files(photos)
    found: list[np.ndarray] = []
    for read in files[:: max(1, len(files) // (2 * count))]:      # twice as many, should some be broken
        pixels = cv2.imdecode(np.frombuffer(read(), np.uint8), cv2.IMREAD_COLOR) if len(found) < count else None
        if pixels is not None:
            found.append(letterbox(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), side_px)[0])
    if len(found) < count:
        raise WeightsError(f"{photos} holds {len(found)} photos that can be read, {count} are needed: see --images")
    return found


def image_files(photos: Path) -> list[Callable[[], bytes]]:
    """What reads each image of a folder, or of a Parquet file. Raises WeightsError."""
    if photos.is_dir():
        return [path.read_bytes for path in sorted(photos.rglob("*")) if path.is_file() and path.stat().st_size]
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(photos, columns=["image"])["image"]
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{photos} is neither a folder nor a Parquet file with a column image: {error}") from None
    return [value.as_py for value in column]


if __name__ == "__main__":
    run_process(main)
