"""Write what a command makes of outputs, under their leases and on record, so that jobs.erase finds it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from jobs.command import say
from jobs.options import ArgumentError, program
from jobs.people.files import place_of
from pipeline.errors import OutputError
from pipeline.output import claim
from pipeline.output.derived import Derived, Maker, Source
from pipeline.output.lease import check_held, new_run_id
from pipeline.storage import SingleWriterStorage, Storage


@contextmanager
def making(command: str, outputs: Sequence[Storage], *, single_writer: bool) -> Iterator[Maker]:
    """What writes the files that a command makes of outputs. Enter it before their rows are read.

    It holds the leases of the outputs: else an erasure could end between the reading and the writing. An output that
    this user can only read is no obstacle; a line says what follows. Raises LeaseHeld, UnsafeStore.
    """
    run_id = new_run_id()
    with ExitStack() as leases:
        sources = []
        for output in {output.root: output for output in outputs}.values():
            storage = SingleWriterStorage(output) if single_writer else output
            try:
                leases.enter_context(claim.take_lease(storage, run_id, program(command), say))
            except OutputError as error:
                say(f"{error}. jobs.erase will not know of what is made of {output.root} now: delete it yourself")
                continue
            sources.append(source_of(storage, run_id))
        yield Maker(sources)


def source_of(storage: Storage, run_id: str) -> Source:
    """An output whose lease this run holds."""
    begun = claim.begun_with(storage) or {}
    models = {
        role: f"{model['architecture']['network']}@{model['tensors_sha256'][:12]}"
        for role, model in begun.get("models", {}).items()
    }
    return Source(storage, partial(check_held, storage, run_id), begun.get("fingerprint", ""), models)


def write_made(maker: Maker, thing: Derived, content: bytes) -> str:
    """Write the one file of a thing, at a path or a bucket URI, whole or not at all. Returns where.

    Raises ArgumentError if it cannot be written there.
    """
    storage, name = place_of(thing.place)
    try:
        maker.write(thing, {name: content})
    except OSError as error:
        raise ArgumentError(f"cannot write {thing.place}: {error}; choose another file") from None
    return posixpath.join(storage.root, name)
