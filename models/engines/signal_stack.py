"""Keep a thread's stack for signal handlers while a library replaces it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

DISABLED = 2        # SS_DISABLE of sigaltstack(2)


class _Stack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give this thread its signal stack back after the `with` block, or none if the system refuses the old one.

    On CPUs with AMX OpenVINO 2026.4 sets a stack of its own when it compiles a network, and frees it with the network.
    The next signal that Python handles, such as Ctrl-C, would then end the process with a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if libc.sigaltstack(ctypes.byref(before), None):      # with AMX the system asks for a larger one than it was
            libc.sigaltstack(ctypes.byref(_Stack(None, DISABLED, 0)), None)
