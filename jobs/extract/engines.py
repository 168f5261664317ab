"""Which engine runs each network in the actors of a run: the actors note it, the driver reads it."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.command import say
from models.engines.engine import Opened
from pipeline.run.board import Board

_opened: list[Opened] = []       # in this process


@dataclass(frozen=True, slots=True)
class EngineNotes:
    """The notes of one run, one for each actor. Can be pickled."""

    run_id: str

    def note(self, opened: Opened) -> None:
        """Called by an actor for every network that it opens."""
        _opened.append(opened)
        self._board.report(json.dumps([asdict(each) for each in _opened]).encode())

    def read(self) -> Counter[Opened]:
        """The networks that actors have opened, and in how many actors each runs so; none if Ray does not answer."""
        import ray

        notes: list[list[dict[str, Any]]] = []
        with contextlib.suppress(ray.exceptions.RayError):
            notes = [json.loads(content) for content in self._board.reports()]
        return Counter(Opened(**values) for note in notes for values in note)

    def clear(self) -> None:
        """Delete the notes."""
        self._board.clear()

    @property
    def _board(self) -> Board:
        return Board(f"{self.run_id}-engines")      # the graph clears that of the run at its end


class FallbackLines:
    """Lines for the user about networks that do not run as planned, each once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say_new(self, opened: Iterable[Opened]) -> None:
        """Print those that were not printed before."""
        lines = {line for each in opened for line in fallback_lines(each)} - self._said
        self._said |= lines
        for line in sorted(lines):
            say(line)


def fallback_lines(opened: Opened) -> list[str]:
    """What a user should know of a network that does not run as planned."""
    lines = []
    if opened.fallback is not None:
        lines.append(f"{opened.model} runs with {opened.engine}, not with OpenVINO: {opened.fallback}")
    if opened.departure is not None:
        lines.append(f"{opened.model} runs with {opened.engine} in {opened.precision}: {opened.departure}")
    return lines


def as_json(opened: Mapping[Opened, int]) -> list[dict[str, Any]]:
    """For run.json: the networks, sorted by model, each with its number of actors."""
    ordered = sorted(opened.items(), key=lambda each: (each[0].model, each[0].engine, each[0].precision))
    return [{**asdict(network), "actors": actors} for network, actors in ordered]
