"""Which engine runs a network, in which precision; and the network itself, ready to be called."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.store import StoredModel, WeightsError

logger = logging.getLogger(__name__)

Network = Callable[[np.ndarray], np.ndarray]
"""A batch (b, s, s, 3) uint8 RGB to the output (b, …) float32, which the next call of the same thread may overwrite.

Several threads may call it at once. Raises OutOfDeviceMemory."""

Shape = tuple[int, int, int, int]

ENGINES = ("auto", "openvino", "torch")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")

INT8_PLACE = "--precision int8 is run by OpenVINO on CPUs: leave out --engine torch and --device cuda"


class EngineError(Exception):
    """The engine cannot run this network on this machine; the message is the reason."""


class EngineNetwork(Protocol):
    """A `Network` that names its engine and the precision that it computes in; for the others see `Opened`."""

    engine: str
    precision: str

    @property
    def compiled(self) -> bool: ...

    @property
    def departure(self) -> str | None: ...

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """The output of a batch, as `Network` has it."""


class OutOfDeviceMemory(Exception):   # noqa: N818
    """The device has no memory for a batch of this size."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A network that is ready: its model's identity, and what runs it.

    fallback: why OpenVINO does not run it, although engine auto would take it.
    compiled: whether torch compiled it. departure: what torch left out at its self-check, and why.
    """

    model: str
    engine: str
    precision: str
    fallback: str | None = None
    compiled: bool = False
    departure: str | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """How networks are run.

    device: "cpu" or "cuda". threads: of the CPU; None leaves torch's number, and gives OpenVINO all cores.
    engine: one of `ENGINES`; auto is OpenVINO on a CPU where it is installed and can run the network, else torch.
    precision: one of `PRECISIONS`; auto is the fastest that agrees with float32: float16 on CUDA, bfloat16 with
    OpenVINO on a CPU that has it in hardware, else float32. int8 is the detector's, by OpenVINO; the others run as with
    auto.
    calls: how many threads call a network at once. OpenVINO divides `threads` between them: small networks on one
    thread each lose less to waiting than one network on many.
    opened: is told of every network that is opened.
    compile: torch compiles the network for the first of its shapes, which takes up to half a minute.
    """

    device: str = "cpu"
    threads: int | None = None
    engine: str = "auto"
    precision: str = "auto"
    calls: int = 1
    opened: Callable[[Opened], None] | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        for name, known in (("device", ("cpu", "cuda")), ("engine", ENGINES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


def open_network(model: StoredModel, runtime: Runtime, shapes: Sequence[Shape]) -> Network:
    """The network of a model, ready for batches of these shapes.

    With engine auto torch takes over where OpenVINO cannot run the network; one line of the log says why, and
    `runtime.opened` is told. Raises WeightsError.
    """
    network, fallback = _open(model, runtime, shapes)
    if runtime.opened:
        runtime.opened(Opened(
            model.card.identity, network.engine, network.precision, fallback, network.compiled, network.departure
        ))
    return network


def _open(model: StoredModel, runtime: Runtime, shapes: Sequence[Shape]) -> tuple[EngineNetwork, str | None]:
    """The network, and why OpenVINO does not run it, where it would."""
    fallback = None
    if runtime.engine == "openvino" or (runtime.engine == "auto" and runtime.device == "cpu"):
        try:
            return _with_openvino(model, runtime, shapes), None
        except EngineError as error:
            if runtime.precision == "int8":      # another output: nothing may take over
                raise WeightsError(f"--precision int8: {error}; choose another precision and OUTPUT") from None
            if runtime.engine == "openvino":
                raise WeightsError(f"--engine openvino: {error}; use --engine torch") from None
            fallback = str(error)
            logger.warning("%s runs with torch, not with OpenVINO: %s", model.card.identity, error)
    if runtime.precision == "int8":
        raise WeightsError(INT8_PLACE)
    from models.engines.torch_engine import TorchNetwork, module_of

    preprocessing = model.card.preprocessing
    mean, std = preprocessing["mean"], preprocessing["std"]
    return TorchNetwork(module_of(model), runtime, mean=mean, std=std, shapes=shapes), fallback


def _with_openvino(model: StoredModel, runtime: Runtime, shapes: Sequence[Shape]) -> EngineNetwork:
    if runtime.device != "cpu":
        raise EngineError("it runs on CPUs only")
    if importlib.util.find_spec("openvino") is None:
        raise EngineError("the package openvino is not installed")
    from models.engines.openvino_engine import OpenVinoNetwork

    return OpenVinoNetwork(model, runtime, shapes)
