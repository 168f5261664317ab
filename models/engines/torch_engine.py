"""Run a network with torch: on a CPU or on CUDA, in float32 or in half precision."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from models.device import set_threads, to_device, torch_device
from models.engines.engine import OutOfDeviceMemory, Runtime
from models.store import StoredModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchNetwork:
    """A network in evaluation mode on its device.

    module: (b, 3, s, s) float, normalised by `mean` and `std` (three values each, in units of 0–255), to (b, …).
    Precision auto is float32, the reference. Another one runs the network under autocast.
    """

    engine = "torch"

    def __init__(self, module: nn.Module, runtime: Runtime, *, mean: Sequence[float], std: Sequence[float]) -> None:
        if runtime.threads is not None:
            set_threads(runtime.threads)
        self._device = torch_device(runtime.device)
        self._module = to_device(module.eval(), self._device)
        self._one_call = threading.Lock()                # torch's threads, or the device, serve one call at a time
        self.precision = "float32" if runtime.precision == "auto" else runtime.precision
        self._dtype = DTYPES[self.precision]
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=self._device)[:, None, None] for values in (mean, std)
        )

    @torch.inference_mode()
    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """A batch (b, s, s, 3) uint8 RGB to the output (b, …) float32. Raises OutOfDeviceMemory."""
        with self._one_call:
            return self._run(batch)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        try:
            pixels = torch.from_numpy(np.require(batch, requirements="W")).to(self._device)
            pixels = pixels.permute(0, 3, 1, 2).float()      # the bytes are NHWC, so this is channels_last
            half = self._dtype is not torch.float32
            with torch.autocast(self._device.type, self._dtype if half else None, enabled=half):
                output = self._module((pixels - self._mean) / self._std)
            return cast(np.ndarray, output.float().cpu().numpy())
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfDeviceMemory(str(error)) from None


def module_of(model: StoredModel, *, fuse: bool = True) -> nn.Module:
    """The network of a model as a torch module in evaluation mode.

    fuse: fold batch norms into the convolutions of a detector. Raises WeightsError.
    """
    if model.card.role == "detector":
        from models.networks.yolo import RawDetector, detector_network, load_network

        network: Any = load_network(detector_network(model.card), model.tensors()).eval()
        return RawDetector(network.fuse(verbose=False) if fuse else network)
    if model.card.role == "keypointer":
        from models.networks.eyes import build_keypointer

        return model.load(build_keypointer).eval()
    from models.networks.faces import build_embedder

    return model.load(build_embedder).eval()
