"""`make demo` takes a folder of any name, and hands it on as it is."""

import os
import subprocess
import sys

import pytest

from pipeline.run.cluster import REPOSITORY

SHOW = '#!/bin/bash\nprintf "%s\\0" "${@: -2:1}"\n'      # the last argument but one, INPUT


def demo(folder, *arguments, **environment):
    """What `make demo` gives to the command as INPUT. The command is a stand-in."""
    bin_folder = folder / ".venv/bin"
    bin_folder.mkdir(parents=True, exist_ok=True)
    (bin_folder / "facelake").write_text(SHOW)
    (bin_folder / "facelake").chmod(0o755)
    (bin_folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_folder / "python").chmod(0o755)
    makefile = REPOSITORY / "Makefile"
    done = subprocess.run(
        ["make", "-s", "-C", str(folder), "-f", str(makefile), "-o", ".venv/.installed", "demo", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[0]


@pytest.mark.parametrize(
    "name",
    ["Ann's photos", 'the "best"', "US$1", "$(HOME) $HOME ${HOME}", "`id`", "-o", "--help", "50% #1; & | <x>", "a\\b",
     "Who is this?", "[1] *", "a~/b", "s3://bucket/a=b:c"],
)
def test_a_folder_of_any_name(tmp_path, name):
    assert demo(tmp_path, f"PHOTOS={name}") == name
    assert demo(tmp_path, PHOTOS=name) == name


def test_without_photos_it_takes_those_of_a_package(tmp_path):
    assert demo(tmp_path).endswith("/ultralytics/assets")


def test_a_tilde_that_the_shell_has_left(tmp_path):
    """Only bash replaces it within PHOTOS=~/x."""
    assert demo(tmp_path, "PHOTOS=~/x", HOME="/home/ann") == "/home/ann/x"
