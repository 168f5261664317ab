"""What file systems do differently: some cannot sync a folder, some have no locks.

What is only for more safety is done without where the system lacks it. Each function adds to `lacks` what it did
without, for the user to read once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

NO_SYNC = "it cannot sync folders or files, so a power cut may lose the newest parts"
NO_RENAME = "it cannot rename a file onto another, so a crash may leave neither"
NO_LOCKS = "it has no file locks; a lock file is used instead"

LOCK_FILE_S = 10.0       # a lock file is held for milliseconds; one that stays longer is of a killed process
_RETRY_S = 0.02

# VirtualBox, 9p, CIFS and some FUSE mounts answer EINVAL to the sync of a folder; a folder without the right to read
# cannot be opened for it.
_CANNOT_SYNC = {
    errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR,
    errno.ENOTTY,
}
# Lustre without `-o flock` answers ENOSYS, NFS without its lock service ENOLCK.
_CANNOT_LOCK = {
    errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF, errno.ENOTTY,
}

# Some shared folders of virtual machines and FUSE mounts.
_CANNOT_RENAME_ONTO = {errno.EEXIST, errno.EPERM, errno.EPROTO, errno.ETXTBSY, errno.EINVAL, errno.ENOTSUP}


def sync_file(descriptor: int, lacks: set[str]) -> None:
    """Write the file's content to disk, so that it survives a power cut. Raises OSError for a full disk."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        lacks.add(NO_SYNC)


def sync_folder(folder: Path, lacks: set[str]) -> None:
    """Write the names in the folder to disk, so that they survive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        lacks.add(NO_SYNC)
        return
    try:
        sync_file(descriptor, lacks)
    finally:
        os.close(descriptor)


def rename_onto(source: Path, target: Path, lacks: set[str]) -> None:
    """Rename a file, in place of the target if there is one."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in _CANNOT_RENAME_ONTO or not target.is_file():
            raise
        lacks.add(NO_RENAME)
        target.unlink()
        source.rename(target)


@contextlib.contextmanager
def locked(path: Path, lacks: set[str]) -> Iterator[None]:
    """Hold a lock against other processes and threads. The kernel releases it when the process ends.

    Without locks in the file system, the lock is a file that only one process can create.
    """
    with contextlib.ExitStack() as held:
        file = held.enter_context(path.open("ab"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                raise
            lacks.add(NO_LOCKS)
            held.enter_context(_lock_file(lock_file_of(path)))
        yield


def lock_file_of(path: Path) -> Path:
    """The lock file that stands for a lock on this file."""
    return path.with_name(f"{path.name}-file")


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[None]:
    mine = secrets.token_bytes(16)
    seen, since = b"", time.monotonic()
    while True:
        try:
            with path.open("xb") as file:
                file.write(mine)
            break
        except FileExistsError:
            found = _content(path)
            if found != seen:
                seen, since = found, time.monotonic()
            elif time.monotonic() > since + LOCK_FILE_S:
                path.unlink(missing_ok=True)
            time.sleep(_RETRY_S)
    try:
        yield
    finally:
        if _content(path) == mine:
            path.unlink(missing_ok=True)


def _content(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""
