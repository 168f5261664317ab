"""Compiled networks of OpenVINO, kept in a folder of this user: the next process loads them in half the time."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.store import WeightsError, own_folder, write_whole

KEPT_FILES = 32             # of about 10 MB, the last ones used
DIGEST_BYTES = 32


def compiled_key(core: Any, *parts: object) -> str:
    """The name of a compiled network: it is loaded only by the same OpenVINO on the same CPU for the same parts."""
    from openvino import get_version

    cpu = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    return hashlib.sha256(repr([get_version(), *cpu, *parts]).encode()).hexdigest()[:32]


def load_or_compile(core: Any, key: str, properties: Mapping[str, Any], build: Callable[[], Any]) -> Any:
    """The compiled network of this key from the folder, else what `build` compiles, which is kept there."""
    try:
        path = own_folder(Path(tempfile.gettempdir()) / f"facelake-compiled-{os.getuid()}") / f"{key}.blob"
    except WeightsError:        # the folder for temporary files is not writable, or another user made this one
        return build()
    content = _read(path)
    if content is not None:
        with contextlib.suppress(RuntimeError):      # a blob that this OpenVINO refuses is made again
            return core.import_model(io.BytesIO(content), "CPU", dict(properties))
    compiled = build()
    with contextlib.suppress(OSError):               # a full disk costs only the cache
        _write(path, bytes(compiled.export_model().getvalue()))
    return compiled


def _read(path: Path) -> bytes | None:
    """The content of a whole file; None if it is not there or damaged."""
    try:
        stored = path.read_bytes()
        path.touch()
    except OSError:
        return None
    digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def _write(path: Path, content: bytes) -> None:
    """Keep a file; the files that were not used for longest go."""
    write_whole(path, hashlib.sha256(content).digest() + content)
    files = sorted(path.parent.glob("*.blob"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in files[KEPT_FILES:]:
        old.unlink(missing_ok=True)
