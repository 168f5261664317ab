"""What a benchmark measured in one round. Only the standard library: other environments import this too."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the table in one round. notes: further figures, by a name with its unit."""

    name: str
    value: float
    unit: str = "images/s"
    notes: dict[str, float] = field(default_factory=dict)


Measure = Callable[[], Sequence[Measurement]]
"""Runs one round."""


def serve(prepare: Callable[[], Measure]) -> None:
    """Answer `resident.Resident`: prepare once, then run a round for every line of stdin.

    What libraries print goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    measure = prepare()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps([asdict(each) for each in measure()]), file=answers, flush=True)
