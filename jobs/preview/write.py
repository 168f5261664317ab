"""Write the preview page of an output."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs.options import program
from jobs.pages.pictures import PhotoView, locate, view_photo
from jobs.people.making import making, write_made
from jobs.preview.output import Row, Run, read_output, read_run
from jobs.preview.page import render_page
from pipeline.batch import FetchFailure
from pipeline.input.fetch import Fetch
from pipeline.output.derived import Derived
from pipeline.stages.pillow import prepare_pillow
from pipeline.storage import open_storage
from pipeline.storage.uris import StoreOptions, parse_input_uri

MAX_IMAGES = 60


def write_preview(
    output: str | Path, html_path: str | Path, *, max_images: int = MAX_IMAGES, single_writer: bool = False
) -> Path:
    """Write the page of a finished output. Returns its path.

    The photos are read again from where they were. Faces are cut and aligned by the values of the tables. A photo that
    cannot be read is shown as a note. Raises PreviewError if the output is not finished, and ArgumentError if the page
    cannot be written.
    """
    prepare_pillow()
    output_uri, options = parse_input_uri(str(output))
    storage = open_storage(output_uri, options)
    run = read_run(storage)
    command = f"{program('preview')} {shlex.quote(str(output))} --html {shlex.quote(str(html_path))}"
    with making("preview", [storage], single_writer=single_writer) as maker:
        records, failures, faces = read_output(storage, max_images)
        photos = list(view_photos(records, faces, run, options))
        page = render_page(storage.root, run, photos, failures)
        write_made(maker, Derived("page", str(html_path), command), page.encode())
    return Path(html_path)


def view_photos(
    records: Sequence[Row], faces: Mapping[str, Sequence[Row]], run: Run, options: StoreOptions
) -> Iterator[PhotoView]:
    """Read the photos again and cut out their faces, in the order of the records."""
    fetch = Fetch(options, image_column=run.parquet.image if run.parquet else None, max_requests=4)
    answers = fetch(locate([record["uri"] for record in records], run.parquet, options))
    for record, answer in zip(records, answers, strict=True):
        of_photo = sorted(faces.get(record["uri"], ()), key=lambda face: int(face["face_index"]))
        if isinstance(answer, FetchFailure):
            yield PhotoView(record, of_photo, note=f"The photo cannot be read now: {answer.error}")
        else:
            yield view_photo(record, of_photo, answer.content, run.settings, run.template)
