from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from pipeline.run import local_place
from pipeline.run.local_place import NoPlace, prepared, short_folder


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A short folder for temporary files, and no settings for Ray."""
    for name in ("RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


def test_the_users_folder_is_used_if_its_name_is_short(place):
    assert short_folder() == str(place)
    with prepared() as temp_dir:
        assert temp_dir is None


def test_another_folder_is_used_if_its_name_is_too_long(place, monkeypatch):
    (long := place / ("x" * 40)).mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with prepared() as temp_dir:
        assert temp_dir and Path(temp_dir).parent == Path("/tmp")
        socket = f"{temp_dir}/session_2026-11-26_20-46-47_618120_1234567/sockets/plasma_store"
        assert len(socket) <= 107
        assert stat.S_IMODE(Path(temp_dir).stat().st_mode) == 0o700
    assert not Path(temp_dir).exists()


def test_no_folder_is_refused_with_the_remedy(place, monkeypatch):
    monkeypatch.setattr(local_place, "_can_hold_files", lambda folder: False)
    with pytest.raises(NoPlace, match=r"none of /tmp/t\w+, /tmp, .* can be written .* set TMPDIR"):
        short_folder()


def test_the_token_is_in_a_private_folder_and_goes_with_the_run(place, tmp_path):
    with prepared():
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.is_relative_to(place) and len(token.read_text()) == 64
        assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ and not token.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/x"}],
)
def test_what_the_user_has_set_stays(place, monkeypatch, settings):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with prepared():
        assert dict(os.environ) == before
    assert dict(os.environ) == before
