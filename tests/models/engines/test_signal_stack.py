"""A thread's stack for signal handlers survives a library that replaces it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from models.engines.signal_stack import DISABLED, _Stack, kept_signal_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are replaced on Linux only")


def signal_stack() -> tuple[int | None, int, int]:
    stack = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.address, stack.flags, stack.size


def test_the_stack_is_the_same_afterwards() -> None:
    memory = ctypes.create_string_buffer(1 << 16)
    before = signal_stack()
    with kept_signal_stack():
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(ctypes.addressof(memory), 0, len(memory))), None)
        assert signal_stack()[0] == ctypes.addressof(memory)
    after = signal_stack()
    assert after == before or after[1] == DISABLED


def test_a_signal_after_networks_are_gone_is_handled() -> None:
    """Networks that another process has compiled, too, and a shape that is compiled when it is used."""
    code = """
import gc, signal
import numpy as np
from models.engines.engine import Runtime
from models.engines.openvino_engine import OpenVinoNetwork
from models.store import DEFAULT_WEIGHTS_DIR, read_model
from tests.models.engines.test_signal_stack import signal_stack
before = signal_stack()
model = read_model(DEFAULT_WEIGHTS_DIR, "keypointer", "resnet18")
networks = [OpenVinoNetwork(model, Runtime(), [(1, 112, 112, 3)]) for _ in range(3)]
for network in networks:
    network(np.zeros((2, 112, 112, 3), np.uint8))
assert signal_stack() == before, "OpenVINO left a stack of its own"
del network
while networks:
    networks.pop(0)
    gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell's background job ignores it
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("handled")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr
