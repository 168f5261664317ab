"""Compile a torch module for one shape of input, one process of a node at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from models.engines.engine import EngineError
from models.store import own_folder

C_COMPILERS = ("gcc", "clang")      # that Triton looks for, unless CC names one
NETWORKS = 64                       # that one process may compile; torch's own limit is 8, jobs.bench opens more


def compiled(module: nn.Module, example: Tensor, backend: str = "inductor") -> Callable[[Tensor], Tensor]:
    """The module compiled for inputs like the example, which is made in inference mode, and run once.

    Raises EngineError, or what the compiler raises. What it compiles is kept in a private folder: the next process
    takes a part of the time.
    """
    if example.device.type == "cuda":
        check_c_compiler()
    faster: Callable[[Tensor], Tensor] = torch.compile(module, dynamic=False, fullgraph=True, backend=backend)
    with _compiling(), torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=NETWORKS):
        faster(example)
        if example.device.type == "cuda":
            torch.cuda.synchronize(example.device)
    return faster


def check_c_compiler() -> None:
    """Raises EngineError if there is no C compiler that Triton finds."""
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), *C_COMPILERS) if name):
        raise EngineError("there is no C compiler; install gcc")


@contextmanager
def _compiling() -> Iterator[None]:
    """Wait until no other process of this node compiles: each takes all cores, and the second finds what it needs."""
    folder = own_folder(Path(tempfile.gettempdir()) / f"facelake-inductor-{os.getuid()}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    with (folder / ".lock").open("w") as lock:
        with suppress(OSError):                   # some file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
