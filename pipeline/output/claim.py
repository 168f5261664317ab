"""An output as a whole: `output.json`, its settings and models, and `run.json`, the sign that a run has finished."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import OutputError
from pipeline.output import derived, ledger, spool
from pipeline.output.lease import Lease
from pipeline.schemas import LATER_COLUMNS
from pipeline.settings import differences, fingerprint
from pipeline.storage import Storage
from pipeline.storage.faults import bucket_fault
from pipeline.text import printable

OUTPUT_JSON, RUN_JSON = "output.json", "run.json"
AUDIT_PATH = "_audit.jsonl"
_RUN_ASIDE = "_run.json"     # run.json is moved here during an erasure


@dataclass(frozen=True, slots=True)
class Claim:
    """An output that a run may write: its fingerprint, and which of `schemas.LATER_COLUMNS` it has."""

    fingerprint: str
    columns: Sequence[str]


def take_lease(storage: Storage, run_id: str, command: str, say: Callable[[str], None]) -> Lease:
    """Take the lease of an output; calls `say` before it waits for a silent holder.

    Raises LeaseHeld, which names the run that holds it, and OutputError if the storage cannot be written.
    """
    try:
        lease = Lease.acquire(storage, run_id, command=command, say=say)
    except OSError as error:
        raise OutputError(f"OUTPUT cannot be written: {error}; {_next_step(error)}") from None
    for line in storage.weaknesses():
        say(line)
    return lease


def _next_step(error: OSError) -> str:
    if re.search(r"NotImplemented|status code: 501", str(error)):
        return "the store has no conditional writes; add --single-writer if no other run will write there"
    return bucket_fault(error) or "check its path and your write permission"


def refuse_foreign_tables(storage: Storage) -> ledger.Files:
    """What is in the tables.

    Raises OutputError if faces/ or images/ hold Parquet files that no run wrote, such as somebody's input.
    """
    files = ledger.list_files(storage)
    if foreign := files.foreign:
        more = f" and {len(foreign) - 1:,} more" if len(foreign) > 1 else ""
        raise OutputError(
            f"{storage.root} holds {printable(foreign[0])}{more}, which no run wrote; readers of the tables would read "
            "that too. Give another OUTPUT, or move it away"
        )
    return files


def begun_with(storage: Storage) -> Mapping[str, Any] | None:
    """What output.json says: fingerprint, settings, models, columns; None for a new output. Raises OutputError."""
    try:
        content = storage.read(OUTPUT_JSON)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found: dict[str, Any] = json.loads(content)
        found["fingerprint"], found["settings"].keys(), found.get("models", {}).keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OutputError(
            f"{storage.root}/{OUTPUT_JSON} is damaged; restore it, or start again with --overwrite"
        ) from None
    return found


def check_claim(storage: Storage, covered: Mapping[str, Any]) -> None:
    """Check that a run can continue what is there; writes nothing. Raises OutputError as `claim` does."""
    begun = begun_with(storage)
    if begun is not None:
        _compare(storage, begun, covered)
    elif ledger.committed_parts(storage):
        raise OutputError(_without_settings(storage))


def claim(storage: Storage, covered: Mapping[str, Any]) -> Claim:
    """Write the fingerprint of a new output, or check that of an existing one.

    covered: from `settings.fingerprinted`. Raises OutputError if the output was made with other settings or models.
    """
    ours = fingerprint(covered)
    content = json.dumps({"fingerprint": ours, "columns": LATER_COLUMNS, **covered}, indent=1).encode()
    if storage.create(OUTPUT_JSON, content) is not None:
        if ledger.committed_parts(storage):
            storage.delete(OUTPUT_JSON)
            raise OutputError(_without_settings(storage))
        return Claim(ours, LATER_COLUMNS)
    return _compare(storage, begun_with(storage) or {}, covered)


def _without_settings(storage: Storage) -> str:
    return (
        f"{storage.root} holds parts but no {OUTPUT_JSON}, so their settings are unknown; restore that file, or start "
        "again with --overwrite"
    )


def _compare(storage: Storage, begun: Mapping[str, Any], covered: Mapping[str, Any]) -> Claim:
    """The claim on an output that was begun so. Raises OutputError unless it has this run's fingerprint."""
    theirs, ours = dict(begun), fingerprint(covered)
    found, columns = theirs.pop("fingerprint", ""), theirs.pop("columns", [])
    if found != ours:
        raise OutputError(
            f"{storage.root} was made with other settings or models: its fingerprint is {found[:12]}, this run's "
            f"{ours[:12]}. Use the same ones, another OUTPUT, or --overwrite to start again. They differ in\n  "
            + "\n  ".join(differences(covered, theirs))
        )
    return Claim(ours, tuple(columns))


def clear(storage: Storage) -> None:
    """Delete what runs have written and what was made of it in the output, and nothing else.

    The order: what was made of it, run.json, output.json, the parts. The lease stays, and so do the list of erased
    images, the audit, and the records of what was made of it and lies elsewhere.
    """
    derived.clear(storage)
    mark_unfinished(storage)
    storage.delete(OUTPUT_JSON)
    ledger.remove_parts(storage)
    storage.delete_tree(spool.FOLDER)


def is_finished(storage: Storage) -> bool:
    """Whether the last run has finished."""
    try:
        storage.read(RUN_JSON)
    except FileNotFoundError:
        return False
    return True


def mark_unfinished(storage: Storage) -> None:
    """Delete run.json: from here until a run writes it again, faces/ may hold files that are not committed."""
    storage.delete(_RUN_ASIDE)     # first: alone it would look like the run.json of a killed erasure
    storage.delete(RUN_JSON)


def set_run_aside(storage: Storage) -> dict[str, Any] | None:
    """Move run.json away while rows are erased. Returns its content, or that of a killed erasure's copy.

    None if the last run has not finished.
    """
    try:
        content = storage.read(RUN_JSON)
    except FileNotFoundError:
        try:
            return _parse_run(storage.read(_RUN_ASIDE))
        except FileNotFoundError:
            return None
    storage.write(_RUN_ASIDE, content)
    storage.delete(RUN_JSON)
    return _parse_run(content)


def _parse_run(content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        return {}      # damaged; the next run of jobs.extract writes another


def put_run_back(storage: Storage, run: Mapping[str, Any]) -> None:
    """Write run.json again: the last step of an erasure."""
    storage.write(RUN_JSON, json.dumps(run, indent=1).encode())
    storage.delete(_RUN_ASIDE)


def append_audit(storage: Storage, entry: Mapping[str, Any]) -> None:
    """Add a line to `_audit.jsonl`. Needs the lease."""
    try:
        before = storage.read(AUDIT_PATH)
    except FileNotFoundError:
        before = b""
    storage.write(AUDIT_PATH, before + json.dumps(entry).encode() + b"\n")


def recover(storage: Storage, files: ledger.Files | None = None) -> list[str]:
    """Clean up after a killed run: finish its rewrite, delete uncommitted files. Returns the committed parts.

    Needs the lease; call before reads. files: what is in the tables, if they were listed under this lease.
    """
    storage.clean_temporary()
    storage.delete_tree(spool.FOLDER)
    if ledger.finish_rewrite(storage) or files is None:
        files = ledger.list_files(storage)
    ledger.remove_halves(storage, files)
    return files.committed
