"""What a process says that is ended without a word."""

import subprocess
import sys

import pytest

RUN = """
import os, signal, sys
from pipeline.run.last_words import LastWords, end_process
with LastWords("Resume: 'a b' 50%."):
    print("begun", flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "Resume: 'a b' 50%.\n"),
        ("os._exit(1)", 1, "Resume: 'a b' 50%.\n"),            # as the C++ of Ray does
        ("signal.raise_signal(signal.SIGTERM)", -15, "Resume: 'a b' 50%.\n"),
        ("end_process(143)", 143, ""),
        ("sys.exit(3)", 3, ""),
        ("pass", 0, ""),
    ],
)
def test_only_an_end_without_a_word_has_last_words(end, code, said):
    ended = subprocess.run([sys.executable, "-c", RUN.format(end=end)], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "begun\n", said)
