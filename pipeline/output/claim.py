"""An output as a whole: whose rows it takes (`output.json`), and what is said of it at the end (`run.json`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import OutputError
from pipeline.output import ledger, spool
from pipeline.output.lease import Lease
from pipeline.settings import differences, fingerprint
from pipeline.storage import Storage
from pipeline.text import printable

OUTPUT_JSON, RUN_JSON = "output.json", "run.json"
AUDIT_PATH = "_audit.jsonl"
_RUN_ASIDE = "_run.json"     # where run.json waits while an erasure is under way


def lease(storage: Storage, run_id: str, command: str, say: Callable[[str], None]) -> Lease:
    """Take the output's lease; `say` is told when that has to wait.

    Raises LeaseHeld naming the run that has it, and OutputError where nothing can be written at all.
    """
    try:
        return Lease.acquire(storage, run_id, command=command, say=say)
    except OSError as error:
        raise OutputError(f"OUTPUT cannot be written: {error}") from None


def check_foreign(storage: Storage) -> None:
    """Raises OutputError where faces/ or images/ hold tables that no run wrote: somebody's input, perhaps."""
    if foreign := ledger.foreign_tables(storage):
        more = f" and {len(foreign) - 1:,} more" if len(foreign) > 1 else ""
        raise OutputError(
            f"{storage.root} holds {printable(foreign[0])}{more}, which no run wrote, where the tables go; "
            "give another OUTPUT, or move that away"
        )


def claim(storage: Storage, covered: Mapping[str, Any]) -> str:
    """Write the fingerprint of a new output, or check that of an old one; returns it.

    covered: what `settings.fingerprinted` gives. Raises OutputError when the output was made with something else.
    """
    ours = fingerprint(covered)
    content = json.dumps({"fingerprint": ours, **covered}, indent=1).encode()
    if storage.create(OUTPUT_JSON, content) is not None:
        if ledger.committed_parts(storage):
            storage.delete(OUTPUT_JSON)
            raise OutputError(
                f"{storage.root} holds parts but no {OUTPUT_JSON}, so nobody knows how they were made; restore it, "
                "or start anew with --overwrite"
            )
        return ours
    try:
        theirs = json.loads(storage.read(OUTPUT_JSON))
        found = theirs.pop("fingerprint")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OutputError(
            f"{storage.root}/{OUTPUT_JSON} is damaged; restore it, or start anew with --overwrite"
        ) from None
    if found != ours:
        raise OutputError(
            f"{storage.root} was made with other settings or models: its fingerprint is {found[:12]}, this run's "
            f"{ours[:12]}. Use the same, another OUTPUT, or --overwrite to start anew. They differ in\n  "
            + "\n  ".join(differences(covered, theirs))
        )
    return ours


def clear(storage: Storage) -> None:
    """Delete what runs have written there; nothing else, and not the lease. What makes it exact goes first.

    What was erased stays so: the list of it and the audit are kept.
    """
    unfinish(storage)
    storage.delete(OUTPUT_JSON)
    ledger.remove_parts(storage)
    storage.delete_tree(spool.FOLDER)


def is_finished(storage: Storage) -> bool:
    """Whether the last run came to its end."""
    try:
        storage.read(RUN_JSON)
    except FileNotFoundError:
        return False
    return True


def unfinish(storage: Storage) -> None:
    """Take run.json away for good: until it is written again, faces/ may hold halves of pairs."""
    storage.delete(_RUN_ASIDE)     # first: alone it would be taken for the run.json of a killed erasure
    storage.delete(RUN_JSON)


def set_run_aside(storage: Storage) -> dict[str, Any] | None:
    """Take run.json away while rows are erased; its content, or that which a killed erasure had set aside.

    None if the last run has not come to its end.
    """
    try:
        content = storage.read(RUN_JSON)
    except FileNotFoundError:
        try:
            return json.loads(storage.read(_RUN_ASIDE))
        except FileNotFoundError:
            return None
    storage.write(_RUN_ASIDE, content)
    storage.delete(RUN_JSON)
    return json.loads(content)


def put_run_back(storage: Storage, run: Mapping[str, Any]) -> None:
    """Write run.json again, the last step of an erasure."""
    storage.write(RUN_JSON, json.dumps(run, indent=1).encode())
    storage.delete(_RUN_ASIDE)


def append_audit(storage: Storage, entry: Mapping[str, Any]) -> None:
    """Add a line to `_audit.jsonl`. Called under the lease."""
    try:
        before = storage.read(AUDIT_PATH)
    except FileNotFoundError:
        before = b""
    storage.write(AUDIT_PATH, before + json.dumps(entry).encode() + b"\n")


def recover(storage: Storage) -> None:
    """Finish or undo what a killed run was at. Called under the lease, before anything is read."""
    storage.clean_temporary()
    storage.delete_tree(spool.FOLDER)
    ledger.finish_rewrite(storage)
    ledger.remove_halves(storage)
