"""The name of a row: `OUT#uri#face_index`, which stands for a face on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowName:
    """One row of faces/. output: as it was written, perhaps with the options of a store."""

    output: str
    uri: str
    face_index: int


def parse_row_name(text: str, holds_output: Callable[[str], bool]) -> RowName | None:
    """The row that a text names; None if no beginning of it is an output.

    The last `#` is the index's. The output is the shortest beginning before a `#` for which `holds_output` is true:
    names of images may have `#` too, as members of archives do.
    """
    named = re.fullmatch(r"(.*)#([0-9]+)", text, re.DOTALL)
    if named is None:
        return None
    beginning, face_index = named[1], int(named[2])
    for mark in re.finditer("#", beginning):
        output, uri = beginning[: mark.start()], beginning[mark.end() :]
        if output and uri and holds_output(output):
            return RowName(output, uri, face_index)
    return None
