"""Compiled networks are loaded again by the next process, and only when nothing has changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from models.engines import compiled_cache
from models.engines.compiled_cache import compiled_key, load_or_compile
from models.engines.engine import Runtime
from models.engines.openvino_engine import OpenVinoNetwork, import_openvino
from models.store import DEFAULT_WEIGHTS_DIR, read_model

SHAPE = (2, 112, 112, 3)
BATCH = np.arange(np.prod(SHAPE), dtype=np.uint32).astype(np.uint8).reshape(SHAPE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"facelake-compiled-{os.getuid()}"


def answer(threads: int = 1) -> np.ndarray:
    """What a newly opened network says."""
    model = read_model(DEFAULT_WEIGHTS_DIR, "keypointer", "resnet18")
    return OpenVinoNetwork(model, Runtime(threads=threads, precision="float32"), [SHAPE])(BATCH).copy()


def test_the_second_network_is_loaded_and_answers_with_equal_bits(folder: Path, monkeypatch) -> None:
    first = answer()
    [blob] = folder.glob("*.blob")
    made = blob.read_bytes()
    monkeypatch.setattr(OpenVinoNetwork, "_build", None)      # it must not compile again
    assert np.array_equal(answer(), first)
    assert blob.read_bytes() == made and folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"", b"short", bytes(5000)])
def test_a_damaged_file_is_made_again(folder: Path, content: bytes) -> None:
    first = answer()
    [blob] = folder.glob("*.blob")
    blob.write_bytes(content)
    assert np.array_equal(answer(), first) and blob.stat().st_size > 1e6


def test_a_whole_file_that_openvino_refuses_is_made_again(folder: Path) -> None:
    first = answer()
    [blob] = folder.glob("*.blob")
    compiled_cache._write(blob, b"no network")
    assert np.array_equal(answer(), first) and blob.stat().st_size > 1e6


def test_other_threads_are_another_network(folder: Path) -> None:
    answer(threads=1)
    answer(threads=2)
    assert len(list(folder.glob("*.blob"))) == 2


def test_a_folder_that_others_can_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    answer()
    assert list(folder.iterdir()) == []


def test_the_files_that_were_used_last_stay(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(compiled_cache, "KEPT_FILES", 2)
    folder.mkdir(mode=0o700)
    for age_s, name in enumerate("abc"):
        compiled_cache._write(folder / f"{name}.blob", b"x")
        os.utime(folder / f"{name}.blob", (0, 1000 + age_s))
    assert {path.stem for path in folder.iterdir()} == {"b", "c"}
    compiled_cache._read(folder / "b.blob")      # used now
    compiled_cache._write(folder / "d.blob", b"x")
    assert {path.stem for path in folder.iterdir()} == {"b", "d"}


def test_the_key_names_everything_that_makes_a_difference() -> None:
    core = import_openvino().Core()
    assert compiled_key(core, "a", 1) == compiled_key(core, "a", 1)
    assert len({compiled_key(core, *parts) for parts in ((), ("a",), ("a", 1), ("a1",))}) == 4


def test_without_a_folder_the_network_is_compiled(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    assert load_or_compile(None, "key", {}, lambda: "compiled") == "compiled"
