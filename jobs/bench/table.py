"""The results of `jobs.bench all`: medians and spread, as Markdown, JSON and a bar chart."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.bench.limit import LEAST
from jobs.bench.loop import NAME as LOOP
from jobs.bench.measurement import Measurement

HEAD = "| what | median | least to most | against the loop | of the limit | more |\n|---|---|---|---|---|---|"
IMAGES = "images/s"


@dataclass
class Results:
    """The measurements of one folder by round. Rows keep the order in which they came first."""

    photos: str
    rounds: list[dict[str, Measurement]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, number: int, measurements: Sequence[Measurement]) -> None:
        """Keep what a round measured."""
        while len(self.rounds) <= number:
            self.rounds.append({})
        self.rounds[number].update({each.name: each for each in measurements})

    @property
    def names(self) -> list[str]:
        """The rows, in groups: limit, job, loop, peers, start."""
        found = {name: None for measured in self.rounds for name in measured}
        groups = ("limit", "job", "loop", "peer", "start")
        return sorted(found, key=lambda name: groups.index(name.split(":")[0]))

    def of(self, name: str) -> list[Measurement]:
        """The measurements of a row, one for each round that has it."""
        return [measured[name] for measured in self.rounds if name in measured]

    def against(self, name: str, other: str) -> float | None:
        """The median over the rounds of a row divided by another row; None if no round has both."""
        both = [measured for measured in self.rounds if {name, other} <= {*measured}]
        pairs = [(measured[name].value, measured[other].value) for measured in both]
        return statistics.median(mine / theirs for mine, theirs in pairs) if pairs else None


def markdown(results: Results) -> str:
    """The table."""
    lines = [HEAD]
    for name in results.names:
        found = results.of(name)
        values = [each.value for each in found]
        unit = found[0].unit
        ratios = [ratio(results, name, other) if unit == IMAGES else "" for other in (LOOP, LEAST)]
        more = "; ".join(f"{note}: {number(value)}" for note, value in notes(found).items())
        lines.append(f"| {name} | {number(statistics.median(values))} {unit} | {number(min(values))} to "
                     f"{number(max(values))} | {ratios[0]} | {ratios[1]} | {more} |")
    return "\n".join([*lines, *(f"\nLeft out: {name}: {why}." for name, why in results.left_out.items())])


def ratio(results: Results, name: str, other: str) -> str:
    """A row of the job, the loop or a peer against another, for the table. Parts of the limit have none."""
    if name.startswith("limit") and name != LEAST:
        return ""
    found = results.against(name, other)
    return "" if found is None else f"{found:.2f}"


def notes(found: Sequence[Measurement]) -> dict[str, float]:
    """The medians of the notes of a row."""
    names = {note: None for each in found for note in each.notes}
    return {note: statistics.median(each.notes[note] for each in found if note in each.notes) for note in names}


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(machine: Mapping[str, Any], results: Sequence[Results]) -> str:
    """Everything that was measured, and the medians."""
    folders = [
        {
            "photos": each.photos,
            "median": {name: statistics.median(row.value for row in each.of(name)) for name in each.names},
            "rounds": [[asdict(row) for row in measured.values()] for measured in each.rounds],
            "left_out": each.left_out,
        }
        for each in results
    ]
    return json.dumps({"machine": dict(machine), "folders": folders}, indent=1)


def draw(results: Sequence[Results], path: Path) -> None:
    """A bar for the images a second of every row, a line for its least and most, a picture for every folder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 3 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), squeeze=False)[:, 0]
    for place, each in zip(axes, results, strict=True):
        names = [name for name in each.names if each.of(name)[0].unit == IMAGES
                 and (name == LEAST or not name.startswith("limit"))]
        for row, name in enumerate(names):
            values = [found.value for found in each.of(name)]
            middle = statistics.median(values)
            place.barh(row, middle, xerr=[[middle - min(values)], [max(values) - middle]], color="tab:blue")
            place.annotate(f" {number(middle)}", (max(values), row), va="center")
        place.set_yticks(range(len(names)), names)
        place.invert_yaxis()
        place.margins(x=0.12)
        place.set_xlabel(f"images a second, {each.photos}")
    figure.savefig(path, dpi=120)
