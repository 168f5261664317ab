import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import cli

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OLD_NAMES = {"train_detector", "train_embedder", "train_eyes"}


@pytest.fixture
def facelake(tmp_path):
    """Runs the installed script's code, as a file of that name, in a folder that is not the repository's."""
    script = tmp_path / "bin/facelake"
    script.parent.mkdir()
    module, function = PROJECT["project"]["scripts"]["facelake"].split(":")
    script.write_text(f"import sys\nsys.path.insert(1, {str(ROOT)!r})\nfrom {module} import {function}\n{function}()\n")
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(*arguments):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, str(script), *arguments], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=280,
        )

    return run


def test_every_command_is_listed():
    files = {path.stem for path in (ROOT / "jobs").glob("*.py") if re.search(r"^def main\(", path.read_text(), re.M)}
    packages = {path.parent.name for path in (ROOT / "jobs").glob("*/__main__.py")}
    assert {name.replace("-", "_") for name in cli.COMMANDS} == (files | packages) - OLD_NAMES - {"cli"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_shows_its_help(name, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        importlib.import_module(cli.COMMANDS[name].module).main(["--help"])
    assert f"jobs.{name.replace('-', '_')}" in capsys.readouterr().out


def test_help_has_a_line_for_each_command(facelake):
    shown = facelake("--help")
    assert shown.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", shown.stdout, re.M)


def test_without_a_command_the_help_is_shown(facelake):
    shown = facelake()
    assert shown.returncode == 2 and shown.stderr == facelake("--help").stdout


def test_an_unknown_command_is_refused(facelake):
    shown = facelake("extrct", "photos", "out")
    assert shown.returncode == 2 and "invalid choice: 'extrct'" in shown.stderr


def test_the_version(monkeypatch, capsys):
    monkeypatch.setattr(cli, "version", lambda name: {"facelake": "1.2.3"}[name])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    assert capsys.readouterr().out == "facelake 1.2.3\n"


def test_extract_from_another_folder(facelake, tmp_path):
    """Relative paths are those of the folder, and Ray's workers find the code."""
    photos = tmp_path / "elsewhere/my photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "grey.jpg"), np.full((300, 400, 3), 90, np.uint8))
    ended = facelake("extract", "my photos", "out", "--detect-px", "320")
    assert ended.returncode == 0, ended.stderr
    assert pq.read_table(tmp_path / "elsewhere/out/images")["status"].to_pylist() == ["no_face"]


def test_messages_name_the_script_as_it_was_called(facelake, tmp_path):
    usage = facelake("extract", "--help").stdout.split()
    assert usage[:3] == ["usage:", f"{tmp_path}/bin/facelake", "extract"]


def test_the_build_backend_is_the_locked_one():
    [backend] = PROJECT["build-system"]["requires"]
    assert PROJECT["dependency-groups"]["build"] == [backend]
    assert f"\n{backend} \\\n" in (ROOT / "requirements.lock").read_text()


def test_package_data_names_what_the_code_reads():
    """A build without it would lack the weights and the page's template."""
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / package).glob(pattern)), pattern
