from __future__ import annotations

import os
from collections import Counter

import pytest

from pipeline.input.folders import LOOP, NOT_A_FILE, UNREADABLE, entry_stat, identity, path_stat, walk
from pipeline.input.names import OUTPUT, InputError


def walked(top, output="", enter=lambda name, path: True):
    """The paths found below the folder, the skipped names by reason, the warnings."""
    skipped, warnings = Counter(), []
    paths = [path for path, _ in walk(str(top), str(output), enter, skipped, warnings)]
    return sorted(path.removeprefix(f"{top}/") for path in paths), skipped, warnings


def touch(top, *names):
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()


def test_an_empty_folder(tmp_path):
    assert walked(tmp_path) == ([], {}, [])


def test_files_are_found_to_the_bottom(tmp_path):
    touch(tmp_path, "a", ".b", "x/c", "x/y/d", "out/e")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "x/up").symlink_to("..")
    (tmp_path / "broken").symlink_to("nothing")
    assert walked(tmp_path, tmp_path / "out") == (
        [".b", "a", "broken", "x/c", "x/y/d"], {OUTPUT: 1, LOOP: 1, NOT_A_FILE: 1}, [],
    )


def test_only_chosen_folders_are_entered(tmp_path):
    touch(tmp_path, "a", "x/b", "y/x/c")
    assert walked(tmp_path, enter=lambda name, _: name == "x")[0] == ["a", "x/b"]
    assert walked(tmp_path, enter=lambda _, path: path != f"{tmp_path}/y/x")[0] == ["a", "x/b"]


def test_a_missing_folder_is_an_error_and_one_that_vanishes_a_warning(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the folder .*none: No such file or directory"):
        walked(tmp_path / "none")
    touch(tmp_path, "a", "x/b")

    def remove(_, path):
        os.remove(f"{path}/b")     # noqa: PTH107
        os.rmdir(path)             # noqa: PTH106
        return True

    message = f"cannot read the folder {tmp_path}/x: No such file or directory"
    assert walked(tmp_path, enter=remove) == (["a"], {UNREADABLE: 1}, [message])


def test_stats(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "broken").symlink_to("nothing")
    sizes = {entry.name: stat and stat.st_size for entry in os.scandir(tmp_path) for stat in [entry_stat(entry)]}
    assert sizes == {"a": 3, "broken": None}
    assert path_stat(f"{tmp_path}/a").st_size == 3
    for nothing in ("none", "broken", "nul\0", "x" * 5000):
        assert path_stat(f"{tmp_path}/{nothing}") is None


def test_identity(tmp_path):
    touch(tmp_path, "x/a")
    (tmp_path / "link").symlink_to("x")
    assert identity(f"{tmp_path}/x") == identity(f"{tmp_path}/link") != identity(str(tmp_path))
    assert identity("") is identity("s3://b/out") is None
