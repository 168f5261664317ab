"""Networks run by torch."""

from __future__ import annotations

import copy
import shutil
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from models.boxes import FaceRules, decode_faces
from models.engines.compiler import check_c_compiler, compiled
from models.engines.engine import EngineError, OutOfDeviceMemory, Runtime, open_network
from models.engines.self_check import check_answer, check_input, sample
from models.engines.torch_engine import Normalised, TorchNetwork, module_of
from models.padded_batches import PaddedBatches
from models.store import DEFAULT_WEIGHTS_DIR, WeightsError, read_model
from pipeline.errors import EnvironmentFault


class Remember(nn.Module):
    """Returns the first column of its input times a weight, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.convolution = nn.Conv2d(3, 1, 1)
        self.seen: list[torch.Tensor] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(pixels)
        return pixels[:, :, 0, 0] * self.weight + 0 * self.convolution(pixels).mean()


def batch(*values: int) -> np.ndarray:
    """Canvases of one pixel colour each: red v, green 51, blue 255."""
    made = np.zeros((len(values), 4, 4, 3), np.uint8)
    made[..., 0] = np.array(values)[:, None, None]
    made[..., 1], made[..., 2] = 51, 255
    made.flags.writeable = False
    return made


def test_the_network_sees_normalised_rgb_and_gives_numpy() -> None:
    module = Remember()
    output = TorchNetwork(module, Runtime(), mean=[0, 0, 0], std=[255, 255, 255])(batch(0, 51))
    assert tuple(module.seen[0].shape) == (2, 3, 4, 4)
    assert output.dtype == np.float32
    assert output == pytest.approx(np.array([[0, 0.2, 1], [0.2, 0.2, 1]]))
    assert TorchNetwork(module, Runtime(), mean=[127.5] * 3, std=[127.5] * 3)(batch(255)) == pytest.approx(
        np.array([[1, -0.6, 1]])
    )
    assert not module.training


def test_bfloat16_computes_the_convolutions_in_bfloat16_and_gives_float32() -> None:
    class Convolve(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 1, 1, bias=False)
            nn.init.constant_(self.convolution.weight, 1.0)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.convolution(pixels).mean((1, 2, 3))

    exact, rounded = (
        TorchNetwork(Convolve(), Runtime(precision=precision), mean=[0] * 3, std=[1] * 3)(batch(1))
        for precision in ("float32", "bfloat16")
    )
    assert exact.tolist() == [307.0]            # 1 + 51 + 255
    assert rounded.dtype == np.float32 and rounded.tolist() == [308.0]     # bfloat16 has 8 bits: steps of 2 above 256


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_no_memory_on_the_device_is_an_error_of_its_own(kind: type[Exception]) -> None:
    """torchvision's operators raise a RuntimeError."""
    class TooLarge(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            raise kind("CUDA out of memory")

    with pytest.raises(OutOfDeviceMemory, match="CUDA out of memory"):
        TorchNetwork(TooLarge(), Runtime(), mean=[0] * 3, std=[1] * 3)(batch(1))


def test_the_threads_are_those_of_the_runtime() -> None:
    before = torch.get_num_threads()
    try:
        TorchNetwork(Remember(), Runtime(threads=1), mean=[0] * 3, std=[1] * 3)
        assert torch.get_num_threads() == 1
        TorchNetwork(Remember(), Runtime(), mean=[0] * 3, std=[1] * 3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("role", "name", "side", "shape"),
    [
        ("detector", "yolov8n", 64, (2, 75, 84)), ("keypointer", "resnet18", 112, (2, 12, 2)),
        ("keypointer", "resnet18-maps", 112, (2, 13, 2)),
        ("embedder", "edgenext", 112, (2, 512)),
    ],
)
def test_the_shipped_models_give_what_their_callers_take(role, name, side, shape) -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, role, name)
    preprocessing = model.card.preprocessing
    network = TorchNetwork(module_of(model), Runtime(), mean=preprocessing["mean"], std=preprocessing["std"])
    output = network(np.zeros((2, side, side, 3), np.uint8))
    assert output.shape == shape and np.isfinite(output).all()


SHIPPED = [("detector", "yolov8n", 64), ("keypointer", "resnet18-maps", 112), ("embedder", "edgenext", 112)]
SHAPE = (4, 32, 32, 3)


class Small(nn.Module):
    """A network of one convolution. The largest batch that fits the device may be given, and what is added to a call.

    added: for the calls one after the other; the last one stays.
    """

    def __init__(self, fits: int = 99, added: tuple[float, ...] = (0.0,)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3)
        self._fits, self._added = fits, list(added)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > self._fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        added = self._added.pop(0) if len(self._added) > 1 else self._added[0]
        return self.convolution(pixels) * 100 ** added


captured = partial(compiled, backend="eager")


def small(module: nn.Module, compile_with=captured, **runtime: str) -> TorchNetwork:
    return TorchNetwork(
        module, Runtime(compile=True, **runtime), mean=[127.5] * 3, std=[127.5] * 3, shapes=[SHAPE],
        compile_with=compile_with,
    )


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE[1:]), np.uint8)


def test_the_first_shape_runs_compiled_in_every_thread_and_others_run_as_they_are() -> None:
    asked: list[tuple[int, ...]] = []

    def counting(module, example):
        faster = compiled(module, example, backend="eager")
        return lambda pixels: (asked.append(tuple(pixels.shape)), faster(pixels))[1]

    network = small(Small(), counting)
    assert network.compiled and network.departure is None, network.departure
    asked.clear()
    expected = TorchNetwork(Small(), Runtime(), mean=[127.5] * 3, std=[127.5] * 3)
    found: list[np.ndarray] = []
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (4, 3):
            thread = threading.Thread(target=lambda count=count: found.append(network(pictures(count))))
            thread.start()
            thread.join()
    assert asked == [(4, 32, 32, 3)]
    for output, count in zip(found, (4, 3), strict=True):
        np.testing.assert_array_equal(output, expected(pictures(count)))


def test_a_network_is_compiled_once_and_not_again_by_its_first_batch() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    network = small(Small(), partial(compiled, backend=backend))
    network(pictures(4))
    assert network.compiled and len(graphs) == 1


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles for CPUs with g++")
def test_inductor_gives_the_same_answers() -> None:
    network = small(Small(), compiled)
    assert network.compiled and network.departure is None, network.departure
    expected = TorchNetwork(Small(), Runtime(), mean=[127.5] * 3, std=[127.5] * 3)(pictures(4))
    np.testing.assert_allclose(network(pictures(4)), expected, atol=1e-5)


def raises(module, example):
    raise RuntimeError("backend='inductor' raised:\nno kernel for it")


@pytest.mark.parametrize(
    ("compile_with", "reason"),
    [
        (raises, "not compiled: RuntimeError: backend='inductor' raised: no kernel for it"),
        (lambda module, example: lambda pixels: 0 * module(pixels), "not compiled: EngineError: its answer to the"),
        (lambda module, example: lambda pixels: module(pixels) / 0, "not compiled: EngineError: its answer to the"),
    ],
    ids=["raises", "zeros", "not finite"],
)
def test_what_the_compiler_spoils_runs_as_it_is(compile_with, reason) -> None:
    network = small(Small(), compile_with)
    assert not network.compiled and network.departure.startswith(reason) and "\n" not in network.departure
    expected = TorchNetwork(Small(), Runtime(), mean=[127.5] * 3, std=[127.5] * 3)(pictures(4))
    np.testing.assert_array_equal(network(pictures(4)), expected)


def test_half_precision_that_differs_is_left_out() -> None:
    network = small(Small(added=(0.0, 1.0, 0.0)), raises, precision="bfloat16")
    assert network.precision == "float32"
    first, second = network.departure.split("; ")
    assert first.startswith("float32 instead of bfloat16: EngineError: its answer to the check differs by")
    assert second.startswith("not compiled: ")


def test_a_device_whose_float32_differs_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"the GPU's answer is not the CPU's: .* use --device cpu"):
        small(Small(added=(0.0, 1.0)))


def test_a_device_that_is_full_when_an_actor_starts_is_no_wrong_answer() -> None:
    class Full(Small):
        """The host has its answer; then others have filled the device."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            answer = super().forward(pixels)
            self._fits = 0
            return answer

    with pytest.raises(EnvironmentFault, match=r"no memory for another actor .*out of memory.* fewer share it"):
        small(Full(), precision="bfloat16")


def test_a_broken_device_is_no_reason_to_go_on_without_a_compiler() -> None:
    def breaks(module, example):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        small(Small(), breaks)


@pytest.mark.parametrize("fits", [1, 2])
def test_a_compiled_batch_that_does_not_fit_halves(fits: int) -> None:
    def warms_up(module, example):
        module(example)
        return module

    network = small(Small(fits=fits), warms_up)
    assert not network.compiled and "out of memory" in network.departure
    batches = PaddedBatches(network, 4)
    expected = TorchNetwork(Small(), Runtime(), mean=[127.5] * 3, std=[127.5] * 3)(pictures(6))
    np.testing.assert_allclose(batches(pictures(6)), expected, atol=1e-5)
    assert batches.batch_size == fits


def test_a_batch_that_no_longer_fits_halves_and_runs_uncompiled() -> None:
    full = [False]

    def filling(module, example):
        def run(pixels):
            if full[0]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return module(pixels)
        return run

    network = small(Small(), filling)
    assert network.compiled
    full[0] = True
    batches = PaddedBatches(network, 4)
    assert batches(pictures(6)).shape == (6, 4, 30, 30) and batches.batch_size == 2


@pytest.mark.parametrize(("role", "name", "side"), SHIPPED)
def test_the_shipped_networks_compile_as_one_graph(role, name, side) -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, role, name)
    network = TorchNetwork(
        module_of(model), Runtime(compile=True), mean=model.card.preprocessing["mean"],
        std=model.card.preprocessing["std"], shapes=[(2, side, side, 3)], compile_with=captured,
    )
    assert network.compiled and network.departure is None, network.departure


@pytest.mark.parametrize(("role", "name", "side"), SHIPPED)
def test_copies_of_the_shipped_networks_in_float16_answer_as_in_float32(role, name, side) -> None:
    """A GPU gets such a copy. The network in float32 stays as it was."""
    model = read_model(DEFAULT_WEIGHTS_DIR, role, name)
    network = Normalised(module_of(model), model.card.preprocessing["mean"], model.card.preprocessing["std"])
    pixels = torch.from_numpy(check_input(side)[None])
    with torch.inference_mode():
        wanted = sample(network(pixels)[0].numpy())
        found = copy.deepcopy(network).cast(torch.float16)(pixels)
        assert sample(network(pixels)[0].numpy()) == wanted
    assert found.dtype is torch.float32
    check_answer(found[0].numpy(), wanted, "float16")


def test_a_detector_gives_the_faces_of_every_canvas() -> None:
    raw = np.random.default_rng(0).normal(0, 3, (3, 75, 84)).astype(np.float32)
    raw[1, 64] = -20.0

    class Raw(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(raw)

    network = TorchNetwork(Raw(), Runtime(), mean=[0] * 3, std=[1] * 3)
    rules = FaceRules(0.5, 0.5, 10)
    found = network.faces(np.zeros((3, 64, 64, 3), np.uint8), rules)
    assert [len(faces.scores) for faces in found] == [10, 0, 10]
    for faces, each in zip(found, raw, strict=True):
        for part, wanted in zip(faces, decode_faces(each, 64, rules), strict=True):
            np.testing.assert_allclose(part, wanted, atol=1e-4)


def test_the_compiled_network_gets_one_kind_of_tensor() -> None:
    """For a tensor that was made outside of inference mode torch would compile once more."""
    kinds: list[bool] = []

    def compile_with(module: nn.Module, example: torch.Tensor):
        def call(pixels: torch.Tensor) -> torch.Tensor:
            kinds.append(pixels.is_inference())
            return module(pixels)

        return call

    network = TorchNetwork(Remember(), Runtime(compile=True), mean=[0] * 3, std=[1] * 3, shapes=[(2, 4, 4, 3)],
                           compile_with=compile_with)
    network(batch(1, 2))
    network(torch.from_numpy(batch(1, 2).copy()))
    with torch.inference_mode():
        made_in_inference_mode = torch.zeros((2, 4, 4, 3), dtype=torch.uint8)
    network(made_in_inference_mode)
    assert len(kinds) >= 3 and all(kinds)


def test_a_tensor_gives_what_an_array_gives() -> None:
    role, name, side = "keypointer", "resnet18", 112
    network = open_network(read_model(DEFAULT_WEIGHTS_DIR, role, name), Runtime(engine="torch"), [])
    batch = np.stack([check_input(side)] * 2)
    np.testing.assert_array_equal(network(torch.from_numpy(batch)), network(batch))


def test_no_c_compiler_is_a_reason_in_plain_words(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(EngineError, match="there is no C compiler; install gcc"):
        check_c_compiler()
    own = tmp_path / "own-cc"
    own.touch(mode=0o755)
    monkeypatch.setenv("CC", str(own))
    check_c_compiler()
