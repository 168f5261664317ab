import subprocess
import sys

import pytest

from jobs import preflight
from pipeline.run.cluster import REPOSITORY


def test_this_repository_is_ready():
    """As a user runs it: a line on standard output, nothing of Ray's."""
    result = subprocess.run([sys.executable, "-m", "jobs.preflight"], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith(f"the code to send, {REPOSITORY}, has ") and result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_too_large_names_the_largest(tmp_path, monkeypatch, capsys):
    with (tmp_path / "photos.tar").open("wb") as file:
        file.truncate(200 << 20)
    monkeypatch.setattr(preflight, "REPOSITORY", tmp_path)
    assert preflight.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "largest: photos.tar 200.0 MiB. Name in .rayignore" in shown.err


def test_it_takes_no_arguments(capsys):
    with pytest.raises(SystemExit) as stopped:
        preflight.main(["--fast"])
    assert stopped.value.code == 2
