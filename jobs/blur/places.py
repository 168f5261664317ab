"""Where the images are, where their copies go, and that the two cannot meet."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.blur.table import FOLDER
from jobs.options import ArgumentError
from pipeline.input.buckets import list_objects
from pipeline.input.listing import InputKind
from pipeline.stages.headers import sniff_format
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import (
    StoreOptions,
    absolute,
    is_addressable,
    is_local,
    local_path,
    parse_input_uri,
    split_uri,
)

_MAX_NAME_BYTES = 255      # of one part of a path, on all usual file systems
_EXTENSIONS = {"jpeg": "jpg", "tiff": "tif"}      # others are as the format


@dataclass(frozen=True, slots=True)
class Places:
    """images: the URI or absolute path of IMAGES. dest: where the copies go. notes: `_blur/` in it."""

    images: str
    options: StoreOptions
    dest: Storage
    dest_options: StoreOptions
    notes: Storage


def open_places(images: str, out: Storage, dest: str, *, single_writer: bool) -> Places:
    """IMAGES and DEST. Raises UserError if copies could be written over images or into OUTPUT."""
    images_uri, options = parse_input_uri(images)
    dest_uri, dest_options = parse_input_uri(dest)
    if is_local(images_uri):
        images_uri = absolute(local_path(images_uri))
    storage = open_storage(dest_uri, dest_options, single_writer=single_writer)
    for name, place in (("IMAGES", images_uri), ("OUTPUT", out.root)):
        if _overlap(place, storage.root):
            raise ArgumentError(
                f"DEST ({storage.root}) and {name} ({place}) overlap: copies could replace originals. Choose a DEST "
                "beside them"
            )
    notes = open_storage(f"{dest_uri.rstrip('/') or '/'}/{FOLDER}", dest_options, single_writer=single_writer)
    return Places(images_uri, options, storage, dest_options, notes)


def refuse_used(places: Places, *, begun: bool) -> None:
    """Raises ArgumentError if DEST holds files that jobs.blur has not written. begun: whether it has written there."""
    if not begun and _holds_anything(places.dest.root, places.dest_options):
        raise ArgumentError(
            f"DEST ({places.dest.root}) is not empty, and jobs.blur has not begun it: files there could be replaced. "
            "Choose a new folder"
        )


def root_of(images: str, kind: InputKind) -> str:
    """What the uris of all images begin with: their names in DEST are what follows. Raises ArgumentError."""
    match kind:
        case InputKind.FOLDER | InputKind.PREFIX:
            return images.rstrip("/") + "/"
        case InputKind.FILE | InputKind.OBJECT | InputKind.CONTAINER:
            return images.rpartition("/")[0] + "/"
    raise ArgumentError(
        f"IMAGES is a {kind}: give the folder or prefix of its images, because copies are named by their places in it"
    )


def name_of(uri: str, container: str | None, root: str) -> str | None:
    """The name of an image's copy in DEST; None if it cannot be written there.

    A member of an archive is in a folder with the archive's name.
    """
    if container is not None and uri != container:
        name = f"{_below(container, root)}/{uri.removeprefix(f'{container}#').strip('/')}"
    else:
        name = _below(uri, root)
    parts = name.split("/")
    bad = {"", ".", ".."}.intersection(parts) or parts[0] == FOLDER or "\0" in name
    too_long = any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in parts)
    return None if bad or too_long else name


def name_of_row(name: str, content: bytes) -> str:
    """The name of a copy whose image has only a number in its Parquet file: with the extension of its format."""
    format = sniff_format(content)
    return f"{name}.{_EXTENSIONS.get(format, format)}" if format else name


def name_checker(dest: Storage) -> Callable[[str, str], bool]:
    """Whether a name of DEST may be written, given the uri of its original."""
    if not is_local(dest.root):
        return lambda name, uri: is_addressable(name) and name.isprintable()
    return lambda name, uri: not _same_file(Path(dest.root, name), uri)


def _same_file(copy: Path, uri: str) -> bool:
    """Whether links have made the copy and its original one file."""
    try:
        return is_local(uri) and copy.samefile(local_path(uri))
    except (OSError, ValueError):
        return False


def _below(uri: str, root: str) -> str:
    path = local_path(uri) if is_local(uri) else uri
    return path.removeprefix(root) if path.startswith(root) else ""


def _overlap(first: str, second: str) -> bool:
    """Whether one place is the other, or in it; links are followed."""
    if is_local(first) != is_local(second):
        return False
    ways = [os.path.realpath(place) if is_local(place) else place.rstrip("/") for place in (first, second)]
    one, other = (f"{way.rstrip('/')}/" for way in ways)
    return one.startswith(other) or other.startswith(one)


def _holds_anything(root: str, options: StoreOptions) -> bool:
    """Whether there is something beside FOLDER, which a run that was killed at once has left."""
    if is_local(root):
        return Path(root).is_dir() and any(entry.name != FOLDER for entry in Path(root).iterdir())
    bucket, key = split_uri(root)
    prefix = f"{key}/" if key else ""
    return any(not found.startswith(f"{prefix}{FOLDER}/") for found, *_ in list_objects(bucket, prefix, options))
