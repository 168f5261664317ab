"""The files below a local folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.input.names import OUTPUT, InputError, composed

NOT_A_FILE = "neither files nor folders"
LOOP = "links to a folder above"
UNREADABLE = "unreadable folders"


def walk(
    top: str, output: str, enter: Callable[[str, str], bool], skipped: Counter[str], warnings: list[str]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Path and entry of everything under `top` that is not a folder. Links to folders are followed, except loops.

    output: a folder that is skipped; "" for none. enter: whether to go into a folder, by its name and path.
    skipped: gets how many names are skipped, by reason. warnings: gets a line for each folder that cannot be read.
    Raises InputError if `top` cannot be read.
    """
    output_identity = identity(output)
    stack: list[tuple[str, tuple[tuple[int, int] | None, ...]]] = [(top, (identity(top),))]   # folder, those above it
    while stack:
        folder, lineage = stack.pop()
        try:
            scan = os.scandir(folder)
        except OSError as error:
            message = f"cannot read the folder {folder}: {error.strerror}"
            if folder == top:
                raise InputError(f"{message}; check its permissions") from error
            skipped[UNREADABLE] += 1
            warnings.append(message)
            continue
        prefix = folder.rstrip("/") + "/"
        with scan:
            for entry in scan:
                path = prefix + entry.name
                if _is_folder(entry):
                    found = identity(path)
                    if found and found == output_identity:
                        skipped[OUTPUT] += 1
                    elif found and found in lineage:
                        skipped[LOOP] += 1
                    elif enter(entry.name, path):
                        stack.append((path, (*lineage, found)))
                elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                    yield path, entry
                else:
                    skipped[NOT_A_FILE] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:   # a link to itself
        return False


def entry_stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The stat of the file that the entry leads to; None for a broken link, whose fetch will fail."""
    try:
        return entry.stat()
    except OSError:
        return None


def path_stat(path: str) -> os.stat_result | None:
    """The stat of the path; None if nothing is there, or a broken link. Raises PermissionError."""
    try:
        return Path(path).stat()
    except PermissionError:
        raise
    except (OSError, ValueError):   # ValueError: a null character
        return None


def existing_beginning(path: str) -> tuple[str, str]:
    """The longest beginning of an absolute path that exists under that very name, and what comes after it.

    A part that is there in another Unicode form exists, and is spelt as there.
    """
    beginning, parts = "", path.strip("/").split("/")
    for i, part in enumerate(parts):
        found = _spelt(beginning or "/", part)
        if found is None:
            return beginning or "/", "/".join(parts[i:])
        beginning = f"{beginning}/{found}"
    return beginning, ""


def _spelt(folder: str, name: str) -> str | None:
    """How the name is spelt in the folder; None if it is not there."""
    if os.path.lexists(f"{folder}/{name}"):
        return name
    if name.isascii():
        return None
    try:
        with os.scandir(folder) as scan:
            return next((entry.name for entry in scan if composed(entry.name) == composed(name)), None)
    except OSError:
        return None


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode; None for what is not there, such as an output in a bucket."""
    try:
        found = path_stat(path) if path else None
    except PermissionError:
        return None
    return (found.st_dev, found.st_ino) if found else None
