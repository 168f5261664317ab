from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import closing

import pytest

from pipeline.storage.scratch import ScratchFolder

HOLD = """if True:
    import signal
    from pipeline.storage.scratch import ScratchFolder
    folder = ScratchFolder()
    (folder.path / "names").write_text("ann.jpg")
    print(folder.path, flush=True)
    signal.pause()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder as the place for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_private_and_closing_deletes_it(temporary):
    with closing(ScratchFolder()) as folder:
        (folder.path / "names").write_text("ann.jpg")
        assert folder.path.parent == temporary and folder.path.stat().st_mode & 0o777 == 0o700
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_deleted_and_one_in_use_is_not(temporary):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=os.environ | {"TMPDIR": str(temporary)}, stdout=subprocess.PIPE, text=True
    )
    held = holder.stdout.readline().strip()
    with closing(ScratchFolder()) as mine, closing(ScratchFolder()) as another:
        assert {str(path) for path in temporary.iterdir()} == {held, str(mine.path), str(another.path)}
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert [str(path) for path in temporary.iterdir()] == [held]
    with closing(ScratchFolder()) as mine:
        assert list(temporary.iterdir()) == [mine.path]


def test_links_are_not_followed(temporary):
    kept = temporary / "kept"
    kept.mkdir()
    (temporary / "facelake-scratch-link").symlink_to(kept)
    ScratchFolder().close()
    assert kept.is_dir()
