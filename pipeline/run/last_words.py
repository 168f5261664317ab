"""The last words of a process that is ended without any: by the C++ of Ray, for lack of memory, or by `kill -9`."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from typing import NoReturn, Self

# It waits for a line. If the process ends, its pipe closes, and the shell reads none. The words are no argument: they
# have the command of the process, and `pkill -f` would find it there.
_SHELL = """trap '' INT TERM HUP; read -r said || printf '%s\\n' "$LAST_WORDS" >&2"""

_waiting: list[LastWords] = []


class LastWords:
    """If this process ends within the `with` block, a shell beside it prints these words to stderr."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __enter__(self) -> Self:
        self._shell = subprocess.Popen(
            ["sh", "-c", _SHELL], stdin=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "LAST_WORDS": self._words},
        )
        _waiting.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _waiting.remove(self)
        self.close()

    def close(self) -> None:
        """The process has said itself how it ends."""
        with suppress(OSError):          # someone has ended the shell
            self._shell.communicate(b"said\n")


def end_process(exit_code: int) -> NoReturn:
    """End this process at once, after it has said why."""
    for words in _waiting:
        words.close()
    os._exit(exit_code)
