"""The page of a comparison: each pair of faces before and after alignment, and the matrix of cosines."""

from __future__ import annotations

from jobs.compare.comparison import Comparison, verdict
from jobs.pages.template import load_template
from jobs.people import TEMPLATES

SHOWN_PAIRS = 60
MATRIX_FACES = 24


def render_page(comparison: Comparison) -> str:
    """The page as HTML. Every value from a file or a name is escaped. Each face is in it once."""
    pairs = comparison.pairs()
    shown = pairs[:SHOWN_PAIRS]
    in_matrix = range(len(comparison.faces)) if 2 < len(comparison.faces) <= MATRIX_FACES else range(0)
    drawn = sorted({*in_matrix, *(number for pair in shown for number in (pair.first, pair.second))})
    return load_template(TEMPLATES, "compare.html").render(
        comparison=comparison, pairs=shown, hidden=len(pairs) - len(shown), in_matrix=in_matrix, drawn=drawn,
        verdict=verdict,
    )
