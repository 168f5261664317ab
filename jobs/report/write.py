"""Write the page of an output."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.people.files import PAGE, check_files
from jobs.people.making import making, write_made
from jobs.report.groups import read_groups
from jobs.report.page import render_page
from jobs.report.photos import Sizes, collect
from jobs.report.run import read_run
from jobs.report.survey import Progress, survey
from pipeline.output.derived import Derived
from pipeline.people.outputs import open_output

LARGE = Sizes(photos=24, photo_px=720, faces=10_000, parts=2_000)
SMALL = Sizes(photos=60, photo_px=1000, faces=0, parts=100)      # jobs.preview: no gallery
MAX_FACES = 50_000      # 35 MB; the lists of alike faces have numbers up to 65,534


@dataclass(frozen=True, slots=True)
class Page:
    """A page to write. place: a path or a bucket URI. maker: the command that writes it; again: and writes it again."""

    place: str
    maker: str
    again: str
    sizes: Sizes


def write_report(output: str, page: Page, *, single_writer: bool, progress: Progress) -> str:
    """Write the page of an output that a run has begun, and put it on record. Returns where it is.

    The photos are read again from where they were. Faces are cut and aligned by the values of the tables. A photo that
    cannot be read is shown as a note. Raises OutputError if there is no output, or if it is damaged; ArgumentError if
    the page cannot be written; LeaseHeld while a run writes to the output.
    """
    check_files((page.place, PAGE))
    opened = open_output(output)
    sizes = page.sizes
    with making(page.maker, [opened.storage], single_writer=single_writer) as maker:
        groups = read_groups(opened) if sizes.faces else None
        also = sorted({uri for uri, _ in groups.places()}) if groups else []
        found = survey(
            opened.storage, photos=sizes.photos, faces=sizes.faces, max_parts=sizes.parts, progress=progress, also=also
        )
        shown = collect(opened, found, sizes, progress)
        html = render_page(opened, read_run(opened), found, shown, groups, gallery=sizes.faces > 0)
        return write_made(maker, Derived("page", page.place, page.again), html.encode())
