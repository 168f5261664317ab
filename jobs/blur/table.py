"""The table of copies in DEST/_blur: what a run that was stopped goes on with, and its report at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.options import ArgumentError
from pipeline.errors import UserError
from pipeline.output.ledger import to_parquet
from pipeline.settings import differences
from pipeline.storage import Storage

FOLDER = "_blur"
SETTINGS_JSON, TABLE, _PARTS = "blur.json", "copies.parquet", "parts"


class Outcome(StrEnum):
    """What became of an image."""

    COPIED = "copied"
    KEPT_BACK = "kept_back"        # a copy would lose something, or could show a face; `reason` says which
    CHANGED = "changed"            # since OUTPUT was made: its boxes may be elsewhere
    FAILED = "failed"              # could not be read, or written; the next run tries again


SETTLED = (Outcome.COPIED, Outcome.KEPT_BACK)
COPIES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("name", pa.string()),                          # below DEST
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("sha256", pa.string()),                        # of the original
        pa.field("faces", pa.int32(), nullable=False),          # of the image in OUTPUT
        pa.field("hidden", pa.int32(), nullable=False),         # of them, in the copy
        pa.field("still_found", pa.int32()),                    # of the hidden ones, by the detector
        pa.field("still_recognised", pa.int32()),               # of the hidden ones, by the embedder
        pa.field("highest_cosine", pa.float32()),               # of a hidden face to what is found in its place
        pa.field("not_in_output", pa.int32()),                  # found in the copy, and not in OUTPUT
    ]
)

Row = Mapping[str, Any]


class OtherSettings(UserError):   # noqa: N818  (a state, not an error)
    """DEST was begun with other settings."""


class CopyTable:
    """Rows of COPIES under DEST/_blur. Those of SETTLED outcomes are kept between runs."""

    def __init__(self, notes: Storage) -> None:
        self._notes = notes

    def begun_with(self) -> Mapping[str, Any] | None:
        """The settings that DEST was begun with; None for a new one.

        Raises OtherSettings for a damaged file, and ArgumentError if DEST is no folder.
        """
        try:
            found: dict[str, Any] = dict(json.loads(self._notes.read(SETTINGS_JSON)))
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise ArgumentError(f"DEST cannot be written: {error}; choose another folder") from None
        except (ValueError, TypeError):
            raise OtherSettings(f"{self._notes.root}/{SETTINGS_JSON} is damaged; choose another DEST") from None
        return found

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of a new DEST. Needs the lease."""
        self._notes.write(SETTINGS_JSON, json.dumps(settings, indent=1).encode())

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises OtherSettings if DEST was begun with other settings."""
        begun = self.begun_with()
        if begun is not None and begun != settings:
            raise OtherSettings(
                f"{self._notes.root} was begun with other settings, so its copies hide other faces. Use the same ones, "
                "or another DEST. They differ in\n  " + "\n  ".join(differences(settings, begun)).replace(
                    "in the output", "in DEST")
            )

    def settled(self) -> Iterator[pa.Table]:
        """The rows of earlier runs."""
        paths = [file.path for file in self._notes.list(_PARTS)]
        for path in [TABLE, *paths]:
            try:
                yield pq.read_table(pa.BufferReader(self._notes.read(path)), schema=COPIES)
            except FileNotFoundError:
                continue

    def add(self, run_id: str, number: int, rows: Sequence[Row]) -> None:
        """Note some images as settled. Their copies must be there."""
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=COPIES)
        self._notes.write(f"{_PARTS}/{run_id}-{number:06}.parquet", to_parquet(table))

    def finish(self, rows: pa.Table) -> None:
        """Write the whole table in place of its parts."""
        self._notes.write(TABLE, to_parquet(rows.cast(COPIES)))
        self._notes.delete_tree(_PARTS)
