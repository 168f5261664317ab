"""Write the preview page of an output: the report without its gallery."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jobs.options import command_line
from jobs.report.write import SMALL, Page, write_report


def write_preview(
    output: str | Path, html_path: str | Path, *, max_images: int = SMALL.photos, single_writer: bool = False
) -> Path:
    """Write the page of an output. Returns its path. Raises as `write_report` does."""
    words = [str(output), "--html", str(html_path), "--images", str(max_images)]
    command = command_line("preview", [*words, "--single-writer"] if single_writer else words)
    page = Page(str(html_path), "preview", command, replace(SMALL, photos=max_images))
    write_report(str(output), page, single_writer=single_writer, progress=lambda line: None)
    return Path(html_path)
