"""Commands whose output nobody reads any more, in processes of their own: pytest replaces the streams of this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MANIFEST = ("-m", "jobs.manifest")
WRITES_MUCH = (
    "from jobs.command import run_process, run_command, say\n"
    "import os, sys\n"
    "def run():\n"
    "    for i in range(20_000): {write}\n"
    "    open('end', 'w').write(str(sorted(os.listdir('/proc/self/fd'))[:3]))\n"
    "    return 3\n"
    "run_process(lambda: run_command('job', run, again=''))\n"
)


def shell(command, tmp_path, *arguments):
    """Run a line of bash in which "$@" is Python with these arguments, and $ROOT is the repository."""
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=100,
    )


@pytest.mark.parametrize("command", ['"$@"', '"$@" 2>&1 | head -n 1; exit ${PIPESTATUS[0]}', '"$@" 2>&-',
                                     '"$@" >&- 2>&- <&-', '"$@" 2>/dev/full', '"$@" 2> >(exec true)'])
def test_a_listing_ends_as_ever_when_its_log_is_gone(tmp_path, command):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").touch()
    assert shell(command, tmp_path, *MANIFEST, "in", "out.parquet").returncode == 0
    assert (tmp_path / "out.parquet/_manifest.json").exists()
    assert shell(command, tmp_path, *MANIFEST, "none", "other.parquet").returncode == 2


@pytest.mark.parametrize("write", ["say(str(i))", "print(i)", "sys.stderr.write('x' * 99)"])
def test_a_command_goes_on_after_its_reader_has_gone(tmp_path, write):
    done = shell('"$@" 2>&1 | head -n 1; exit ${PIPESTATUS[0]}', tmp_path, "-c", WRITES_MUCH.format(
        write=f"say('first') if i == 0 else {write}"))
    assert done.returncode == 3 and (tmp_path / "end").exists()
    assert done.stdout == "first\n" and done.stderr == ""


@pytest.mark.parametrize("words", [["--help"], ["extract", "--help"], ["none"]])
def test_help_for_a_reader_that_leaves(tmp_path, words):
    done = shell('"$@" 2>&1 | exec true; exit ${PIPESTATUS[0]}', tmp_path, "-m", "jobs.cli", *words)
    assert done.returncode == (0 if "--help" in words else 2) and done.stderr == ""


def test_closed_streams_leave_their_numbers_to_no_file(tmp_path):
    done = shell('"$@" >&- 2>&- <&-', tmp_path, "-c", WRITES_MUCH.format(write="say('x')"))
    assert done.returncode == 3
    assert (tmp_path / "end").read_text() == str(["0", "1", "2"])


def test_results_are_not_lost_without_a_word(tmp_path):
    """A full disk is no fault of the reader: what is printed to stdout is a result."""
    done = shell('"$@" > /dev/full', tmp_path, "-c", WRITES_MUCH.format(write="print(i)"))
    assert done.returncode == 1 and "No space left" in done.stderr
