"""The shipped networks on a CUDA device: compiled, in float16, and as good as the reference on the CPU."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.boxes import FaceRules, decode_faces
from models.engines.engine import Opened, Runtime, open_network
from models.store import DEFAULT_WEIGHTS_DIR, read_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

SHIPPED = [("detector", "yolov8n", 320), ("keypointer", "resnet18-maps", 112), ("embedder", "edgenext", 112)]
BATCH = 8


def pictures(side: int) -> np.ndarray:
    """Soft random pictures."""
    small = np.random.default_rng(0).integers(0, 256, (BATCH, side // 16, side // 16, 3), np.uint8)
    return small.repeat(16, 1).repeat(16, 2)


@pytest.mark.parametrize(("role", "name", "side"), SHIPPED)
def test_a_network_runs_compiled_in_float16_and_agrees_with_the_cpu(role, name, side) -> None:
    model = read_model(DEFAULT_WEIGHTS_DIR, role, name)
    opened: list[Opened] = []
    runtime = Runtime("cuda", compile=True, opened=opened.append)
    network = open_network(model, runtime, [(BATCH, side, side, 3)])
    assert opened == [Opened(model.card.identity, "torch", "float16", compiled=True)]
    expected = open_network(model, Runtime(engine="torch"), [])(pictures(side))
    off = np.sqrt(np.mean((network(pictures(side)) - expected) ** 2)) / expected.std()
    assert off < 0.02
    assert open_network(model, replace(runtime, compile=False), [(BATCH, side, side, 3)])(
        pictures(side)
    ).shape == expected.shape


def test_two_threads_get_their_own_answers_without_another_compilation() -> None:
    role, name, side = SHIPPED[2]
    network = open_network(read_model(DEFAULT_WEIGHTS_DIR, role, name), Runtime("cuda", compile=True),
                           [(BATCH, side, side, 3)])
    batches = [np.roll(pictures(side), number, 0) for number in range(4)]
    expected, found = [network(batch).copy() for batch in batches], {}

    def call(first: int) -> None:
        for number in [first, first + 1] * 20:
            found.setdefault(number, []).append(network(batches[number]))

    with torch.compiler.set_stance("fail_on_recompile"):
        threads = [threading.Thread(target=call, args=(first,)) for first in (0, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {number: len(answers) for number, answers in found.items()} == dict.fromkeys(range(4), 20)
    for number, answers in found.items():
        for answer in answers:
            np.testing.assert_array_equal(answer, expected[number])


def test_the_detector_chooses_the_faces_that_its_whole_output_has() -> None:
    role, name, side = SHIPPED[0]
    network = open_network(read_model(DEFAULT_WEIGHTS_DIR, role, name), Runtime("cuda"), [(BATCH, side, side, 3)])
    rules = FaceRules(0.001, 0.5, 100)
    for found, raw in zip(network.faces(pictures(side), rules), network(pictures(side)), strict=True):
        wanted = decode_faces(raw, side, rules)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
        np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-3)
        np.testing.assert_allclose(found.points, wanted.points, atol=1e-3)


def test_without_a_c_compiler_it_runs_uncompiled_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    role, name, side = SHIPPED[1]
    opened: list[Opened] = []
    runtime = Runtime("cuda", compile=True, opened=opened.append)
    open_network(read_model(DEFAULT_WEIGHTS_DIR, role, name), runtime, [(BATCH, side, side, 3)])
    (network,) = opened
    assert network.precision == "float16" and not network.compiled
    assert network.departure == "not compiled: EngineError: there is no C compiler; install gcc"
