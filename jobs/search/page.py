"""The page of a search: each probe, and under it the most alike faces, cut out of their photos again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from jobs.pages.pictures import FaceView
from jobs.pages.template import load_template
from jobs.people import TEMPLATES
from jobs.people.pictures import views_of
from jobs.people.subjects import Face, Faces
from pipeline.people.outputs import Output, Row

SHOWN_PROBES = 20
SHOWN_MATCHES = 240       # photos to read again; in all


@dataclass(frozen=True, slots=True)
class Result:
    """A probe and its matches, most alike first. face: None for a vector, which has no picture."""

    name: str
    number: int
    face: Face | None
    matches: list[Row] = field(default_factory=list)


def make_page(output: Output, faces: Faces, matches: pa.Table) -> bytes:
    """The page of these matches."""
    results, hidden = choose(faces.faces, matches)
    wanted = [(str(row["uri"]), int(row["face_index"])) for result in results for row in result.matches]
    views = views_of(output, wanted)
    return render_page(output.storage.root, results, views, hidden).encode()


def choose(faces: Sequence[Face], matches: pa.Table) -> tuple[list[Result], int]:
    """The results that fit on a page, and how many matches do not."""
    results = {
        (str(face.row["uri"]), int(face.row["face_index"])): Result(face.name, int(face.row["face_index"]), face)
        for face in faces[:SHOWN_PROBES]
    }
    each = max(1, SHOWN_MATCHES // max(1, min(SHOWN_PROBES, len(results) or SHOWN_PROBES)))
    shown = 0
    for row in matches.slice(0, SHOWN_PROBES * SHOWN_MATCHES).to_pylist():
        probe = row["probe"], row["probe_face"]
        if probe not in results and len(results) < SHOWN_PROBES:
            results[probe] = Result(*probe, None)
        if probe in results and len(results[probe].matches) < each:
            results[probe].matches.append(row)
            shown += 1
    return list(results.values()), len(matches) - shown


def render_page(
    root: str, results: Sequence[Result], views: dict[tuple[str, int], FaceView | str], hidden: int
) -> str:
    """The page as HTML. views: pictures of the matches, or why there is none. Every value from a file is escaped."""
    numbers = {place: i for i, place in enumerate(views)}
    return load_template(TEMPLATES, "search.html").render(
        root=root, results=results, hidden=hidden, numbers=numbers,
        views={place: view for place, view in views.items() if isinstance(view, FaceView)},
        notes={place: view for place, view in views.items() if isinstance(view, str)},
    )
