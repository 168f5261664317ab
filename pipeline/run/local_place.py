"""Where a Ray that is started on this machine keeps its files: not in the home folder, and under a short name.

Ray 2.60 writes a token to `~/.ray/auth_token` for a cluster of its own. A home folder that cannot be written stops it,
and a token that stays there locks out a later `ray job submit`. Its sockets have names of at most 107 bytes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.scratch import ScratchFolder

# `/ray-abcdefgh/session_2026-11-26_20-46-47_618120_1234567/sockets/plasma_store`, and Linux's limit for a socket.
SESSION_BYTES = 77
SOCKET_BYTES = 107


class NoPlace(UserError):   # noqa: N818  (a state, not an error)
    """There is no folder for Ray's temporary files."""


@contextlib.contextmanager
def prepared() -> Iterator[str | None]:
    """Within it Ray has a token of this run's own; yields the folder for its files, None for Ray's own choice.

    Raises NoPlace.
    """
    with contextlib.ExitStack() as ended:
        base = short_folder()
        temp_dir = None
        if base != _of_ray():
            temp_dir = tempfile.mkdtemp(prefix="ray-", dir=base)
            ended.callback(shutil.rmtree, temp_dir, ignore_errors=True)
        if _needs_token():
            ended.enter_context(_own_token())
        yield temp_dir


def short_folder() -> str:
    """A folder for temporary files: the user's, or another one if its name is too long or it cannot be written.

    Raises NoPlace.
    """
    tried = dict.fromkeys([_of_ray(), "/tmp", "/var/tmp", f"/run/user/{os.getuid()}", "/dev/shm"])
    for folder in tried:
        if len(os.fsencode(folder)) + SESSION_BYTES <= SOCKET_BYTES and _can_hold_files(folder):
            return folder
    raise NoPlace(
        f"no folder for Ray's temporary files: none of {', '.join(tried)} can be written and has a name of at most "
        f"{SOCKET_BYTES - SESSION_BYTES} bytes; set TMPDIR to one"
    )


def _of_ray() -> str:
    """Where Ray puts its files by itself."""
    return os.path.abspath(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")   # noqa: PTH100


def _can_hold_files(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Within it Ray's processes share a token in a private file."""
    import ray._raylet

    untyped: Any = ray._raylet
    tokens = untyped.AuthenticationTokenLoader.instance()
    mode = os.environ.get("RAY_AUTH_MODE")
    scratch = ScratchFolder()
    file = scratch.path / "token"
    file.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
    tokens.reset_cache()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN_PATH"]
        os.environ.pop("RAY_AUTH_MODE", None)       # Ray has set it
        if mode is not None:
            os.environ["RAY_AUTH_MODE"] = mode
        tokens.reset_cache()
        scratch.close()


def _needs_token() -> bool:
    """Whether Ray would use a token in the home folder."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return not given and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
