"""Which command has begun a place with --overwrite, so that its own retry goes on instead of deleting again.

Kubernetes, `ray job` and shell loops start a command that broke again, word for word. What it wrote before must stay.
So the file `_overwrite.json` is there from the deletion until the command has ended with 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from pipeline.storage import Storage

OVERWRITE_JSON = "_overwrite.json"


def name_of(words: Sequence[str]) -> str:
    """A name for a command of these words; they cannot be read from it."""
    return hashlib.sha256(json.dumps(list(words)).encode(errors="surrogateescape")).hexdigest()


def goes_on(storage: Storage, command: str) -> str | None:
    """When this command deleted what was here before, if it has not ended with 0 since; None if it did not."""
    try:
        found = json.loads(storage.read(OVERWRITE_JSON))
        return str(found["deleted"]) if found["command"] == command else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def begin(storage: Storage, command: str) -> None:
    """Note that this command has deleted what was here. Needs the lease."""
    deleted = datetime.now(UTC).isoformat(timespec="seconds")
    storage.write(OVERWRITE_JSON, json.dumps({"command": command, "deleted": deleted}).encode())


def end(storage: Storage) -> None:
    """Forget who deleted: the work is done. Needs the lease."""
    storage.delete(OVERWRITE_JSON)
