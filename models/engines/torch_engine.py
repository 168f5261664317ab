"""Run a network with torch: on a CPU or on CUDA, in float32 or in half precision."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.boxes import FaceRules, Faces
from models.device import copied_back, set_threads, to_device, torch_device
from models.engines.compiler import compiled
from models.engines.device_faces import chosen_faces, faces_by_canvas
from models.engines.engine import OutOfDeviceMemory, Runtime, Shape
from models.engines.self_check import check_answer, check_input, sample
from models.store import StoredModel, WeightsError
from pipeline.errors import EnvironmentFault, is_device_fault, is_out_of_memory

Compile = Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]
"""Compiles a module for inputs like the example."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchNetwork:
    """A network in evaluation mode on its device.

    module: (b, 3, s, s) float, normalised by `mean` and `std` (three values each, in units of 0–255), to (b, …).
    shapes: the batches that it will get; the first may be compiled, others run as they are.
    Precision auto is float16 on CUDA, else float32, the reference. On a CPU another one runs the network under
    autocast; on CUDA its weights are cast too.

    On CUDA, and where it is compiled, a first answer is compared with that of the CPU in float32. What differs or
    raises is left out: the compiler, half precision. `departure` has the reasons. Raises WeightsError if float32
    differs too.
    """

    engine = "torch"

    def __init__(
        self, module: nn.Module, runtime: Runtime, *, mean: Sequence[float], std: Sequence[float],
        shapes: Sequence[Shape] = (), compile_with: Compile = compiled,
    ) -> None:
        if runtime.threads is not None:
            set_threads(runtime.threads)
        self._device = torch_device(runtime.device)
        self._one_call = threading.Lock()                # torch's threads, or the device, serve one call at a time
        self._compiled: tuple[Shape, Callable[[Tensor], Tensor]] | None = None
        self._departures: list[str] = []
        half = "float16" if self._device.type == "cuda" else "float32"
        self.precision = half if runtime.precision == "auto" else runtime.precision
        self._on_host = Normalised(module.eval(), mean, std)
        checked = shapes[:1] if runtime.compile or self._device.type == "cuda" else ()
        wanted = [_answer(self._on_host, shape[1]) for shape in checked]
        self._network = self._placed()
        for shape, answer in zip(checked, wanted, strict=True):
            self._check_precision(answer, shape[1])
            if runtime.compile:
                self._compile(shape, answer, compile_with)
        if self._device.type == "cuda":
            self._warm_up(shapes)

    @property
    def compiled(self) -> bool:
        """Whether the first shape runs compiled."""
        return self._compiled is not None

    @property
    def departure(self) -> str | None:
        """What was left out after the check, and why; None if nothing was."""
        return "; ".join(self._departures) or None

    def __call__(self, batch: np.ndarray | Tensor) -> np.ndarray:
        """A batch (b, s, s, 3) uint8 RGB to the output (b, …) float32. Raises OutOfDeviceMemory.

        batch: an array, or a tensor in the device's memory.
        """
        return self._on_device(batch, lambda output: (output,))[0]

    def faces(self, batch: np.ndarray | Tensor, rules: FaceRules) -> list[Faces]:
        """For a detector: the faces of every canvas, as `boxes.decode_faces` gives them, chosen on the device.

        The whole output would be megabytes an image. Raises OutOfDeviceMemory.
        """
        side_px = batch.shape[1]
        found = self._on_device(batch, lambda output: chosen_faces(output, side_px, rules))
        return faces_by_canvas(found, len(batch), rules.max_detections)

    @torch.inference_mode()
    def _on_device(
        self, batch: np.ndarray | Tensor, take: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[np.ndarray, ...]:
        """What `take` takes of the output, as NumPy arrays.

        On CUDA the lock is held only until the work is queued, so that the next batch is queued meanwhile.
        """
        pixels = batch if isinstance(batch, Tensor) else torch.from_numpy(np.require(batch, requirements="W"))
        try:
            if self._device.type == "cpu":
                with self._one_call:
                    return copied_back(take(self._run(pixels)))
            if not pixels.is_cuda:
                pixels = pixels.pin_memory()
            with self._one_call:
                output = self._run(pixels.to(self._device, non_blocking=True))
            return copied_back(take(output))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        torch.cuda.empty_cache()      # the error is gone, and with it what the call held
        raise OutOfDeviceMemory(reason)

    def _run(self, pixels: Tensor) -> Tensor:
        if self._compiled and self._compiled[0] == pixels.shape:
            # Padded batches are made outside of inference mode; for that kind of tensor torch would compile again.
            return self._compiled[1](pixels if pixels.is_inference() else pixels.clone())
        output: Tensor = self._network(pixels)
        return output

    def _placed(self) -> Normalised:
        """The network on the device in its precision. On a CPU it is the host's own, elsewhere a copy."""
        network = self._on_host if self._device.type == "cpu" else copy.deepcopy(self._on_host)
        return to_device(network, self._device).in_precision(self.precision)

    def _warm_up(self, shapes: Sequence[Shape]) -> None:
        """Run every shape once: CUDA loads its kernels when they are first used, which takes seconds."""
        for shape in shapes:
            with suppress(OutOfDeviceMemory):      # the batches that come are halved then
                self._some_of(np.zeros(shape, np.uint8))

    def _check_precision(self, wanted: list[float], side: int) -> None:
        try:
            self._compare(wanted, (1, side, side, 3))
        except OutOfDeviceMemory as error:
            raise EnvironmentFault(
                f"the GPU has no memory for another actor ({error}); let fewer share it, as with --pools "
                "decode+detect+keypoint+align+embed:1"
            ) from None
        except Exception as error:
            if is_device_fault(error):
                raise
            if self.precision == "float32":
                raise WeightsError(f"the GPU's answer is not the CPU's: {reason_of(error)}; use --device cpu") from None
            self._departures.append(f"float32 instead of {self.precision}: {reason_of(error)}")
            self.precision = "float32"
            self._network = self._placed()
            self._check_precision(wanted, side)

    def _compile(self, shape: Shape, wanted: list[float], compile_with: Compile) -> None:
        """Compile the network for a shape. It runs as it is if that fails, or if its answer is another one then."""
        with torch.inference_mode():      # as the batches are made: for another kind of tensor torch compiles again
            example = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        try:
            self._compiled = shape, compile_with(self._network, example)
            self._compare(wanted, shape)
        except Exception as error:
            if is_device_fault(error):
                raise
            self._compiled = None
            self._departures.append(f"not compiled: {reason_of(error)}")

    def _compare(self, wanted: list[float], shape: Shape) -> None:
        """Raises EngineError where an answer to the check differs from that of the CPU."""
        for output in self._some_of(np.ascontiguousarray(np.broadcast_to(check_input(shape[1]), shape))):
            check_answer(output, wanted, self.precision)

    def _some_of(self, batch: np.ndarray) -> np.ndarray:
        """The first and the last output of a batch: a detector's have 4 MB each, and pinned memory is kept."""
        return self._on_device(batch, lambda output: (output[:: max(1, len(output) - 1)],))[0]


class Normalised(nn.Module):
    """A network from pixels (b, s, s, 3) uint8 RGB to its output in float32. The pixels are normalised in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.module = module
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])
        self._cast_to: torch.dtype | None = None
        self._autocast = torch.float32

    def in_precision(self, precision: str) -> Normalised:
        """Cast the weights on CUDA, or set the type of autocast, and return this network."""
        if self.mean.device.type == "cuda":
            return self.cast(DTYPES[precision])
        self._autocast = DTYPES[precision]
        return self

    def cast(self, dtype: torch.dtype) -> Normalised:
        """Cast the weights, and the inputs when they are normalised; returns this network."""
        self._cast_to = dtype
        self.module.to(dtype)
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        inputs = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std     # the bytes are NHWC: channels_last
        if self._cast_to is not None:
            inputs = inputs.to(self._cast_to)
        half = self._autocast is not torch.float32
        with torch.autocast(inputs.device.type, self._autocast if half else None, enabled=half):
            output: Tensor = self.module(inputs)
        return output.float()


def _answer(network: Normalised, side: int) -> list[float]:
    """What a network answers to the check on the CPU, in float32."""
    with torch.inference_mode():
        return sample(network(torch.from_numpy(check_input(side)[None]))[0].numpy())


def reason_of(error: Exception) -> str:
    """An error in a line. Its name comes first: the compiler's own first lines say little."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def module_of(model: StoredModel, *, fuse: bool = True) -> nn.Module:
    """The network of a model as a torch module in evaluation mode.

    fuse: fold batch norms into the convolutions of a detector. Raises WeightsError.
    """
    if model.card.role == "detector":
        from models.networks.yolo import RawDetector, detector_network, load_network

        points = model.card.architecture.get("points", 0)
        network: Any = load_network(detector_network(model.card), model.tensors(), points).eval()
        return RawDetector(network.fuse(verbose=False) if fuse else network)
    if model.card.role == "keypointer":
        from models.networks.eyes import build_keypointer

        return model.load(build_keypointer).eval()
    from models.networks.faces import build_embedder

    return model.load(build_embedder).eval()
