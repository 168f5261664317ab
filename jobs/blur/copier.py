"""Make the copy of one image."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from typing import Any

from jobs.blur.choice import Choice
from jobs.blur.faces import FoundFaces
from jobs.blur.formats import NotWritable, copy_without_faces
from jobs.blur.hide import How, regions_of
from jobs.blur.look import SecondLook
from jobs.blur.places import name_checker, name_of, name_of_row
from jobs.blur.table import Outcome
from jobs.blur.work import Image
from pipeline.batch import Fetched, FetchFailure, TodoRow
from pipeline.errors import EnvironmentFault
from pipeline.input.names import uri_extension
from pipeline.stages.codec import DecodeError
from pipeline.stages.decode import MemoryGate
from pipeline.stages.image import Header, read_header
from pipeline.storage import Storage

HELD_BYTES = 1 << 30       # of pictures at a time, or one that needs more
# Of a picture while it is written again, more than `Header.work_bytes` of decoding.
_PIXEL_BYTES = {"jpeg": 6, "png": 6, "bmp": 6, "tiff": 12, "gif": 12}
_OTHER_PIXEL_BYTES = 25     # of encoders of WebP, AVIF and HEIC


class Copier:
    """Makes copies in DEST; may be called from several threads. Every call gives the image's row of `table.COPIES`.

    root: what the uris of IMAGES begin with. look: None for no second look. numbered: whether the rows of Parquet files
    have numbers in place of names.
    """

    def __init__(
        self, dest: Storage, root: str, how: How, choice: Choice, max_pixels: int, look: SecondLook | None, *,
        numbered: bool = False,
    ) -> None:
        self._dest, self._root, self._how, self._choice = dest, root, how, choice
        self._max_pixels, self._look, self._numbered = max_pixels, look, numbered
        self._may_write = name_checker(dest)
        self._gate = MemoryGate(HELD_BYTES)
        self._looking = threading.Lock()

    def __call__(self, image: Image, faces: FoundFaces, answer: Fetched | FetchFailure) -> Mapping[str, Any]:
        """Raises EnvironmentFault for what no image is at fault for, such as a full disk."""
        uri = image.row.uri
        name = self._name(image.row, answer)
        shown = None if name is None else os.fsencode(name).decode(errors="backslashreplace")
        row: dict[str, Any] = {
            "uri": uri, "name": shown, "sha256": image.record["sha256"], "faces": len(faces.hidden), "hidden": 0,
        }
        if isinstance(answer, FetchFailure):
            return row | {"outcome": Outcome.FAILED, "reason": f"cannot be read: {answer.error}"}
        if hashlib.sha256(answer.content).hexdigest() != image.record["sha256"]:
            return row | {"outcome": Outcome.CHANGED, "reason": "changed since OUTPUT was made"}
        reason = self._keeps_back(image, name, len(faces.hidden))
        if name is None or reason:
            return row | {"outcome": Outcome.KEPT_BACK, "reason": reason}
        try:
            return row | self._copy(uri, name, faces, answer.content)
        except (NotWritable, DecodeError) as error:
            return row | {"outcome": Outcome.KEPT_BACK, "reason": str(error)}
        except MemoryError:
            return row | {"outcome": Outcome.FAILED, "reason": "it needs more memory than there is"}
        except OSError as error:
            if fault := EnvironmentFault.of(error):
                raise fault from error
            return row | {"outcome": Outcome.FAILED, "reason": f"cannot be written: {error.strerror or error}"}

    def _name(self, row: TodoRow, answer: Fetched | FetchFailure) -> str | None:
        name = name_of(row.uri, row.container, self._root)
        is_numbered = self._numbered and uri_extension(row.container or "") == "parquet"
        return name_of_row(name, answer.content) if name and is_numbered and isinstance(answer, Fetched) else name

    def _keeps_back(self, image: Image, name: str | None, rows: int) -> str | None:
        """Why an image is not copied; None if it is. rows: of its faces in OUTPUT."""
        if name is None or not self._may_write(name, image.row.uri):
            return "its name cannot be used in DEST"
        if image.record["n_faces"] != rows:
            return "OUTPUT has not the rows of all its faces"
        if image.record["faces_truncated"] and not self._choice.hides:
            return "more faces than --max-faces of jobs.extract, so not all are known"
        return None

    def _copy(self, uri: str, name: str, faces: FoundFaces, content: bytes) -> dict[str, Any]:
        header = read_header(content, max_pixels=self._max_pixels, min_side_px=None)
        regions = regions_of(
            faces.boxes_xyxy[faces.hidden], (header.width, header.height),
            (header.exif_orientation or 1) if header.must_turn else 1,
        )
        with self._gate.hold(_work_bytes(header)):
            copy = copy_without_faces(content, header.format, header.exif_orientation, regions, self._how)
            seen = self._seen(uri, copy, faces)
        self._dest.write(name, copy)
        return {"outcome": Outcome.COPIED, "hidden": int(faces.hidden.sum()), **seen}

    def _seen(self, uri: str, copy: bytes, faces: FoundFaces) -> dict[str, Any]:
        if self._look is None:
            return {}
        with self._looking:                # the networks use all cores, and are not made for several threads
            seen = self._look(uri, copy, faces)
        return {name: getattr(seen, name) for name in seen.__slots__}


def _work_bytes(header: Header) -> int:
    return header.work_bytes + _PIXEL_BYTES.get(header.format, _OTHER_PIXEL_BYTES) * header.width * header.height


