"""`python -m jobs.report`: one page that shows what is in an output."""

from __future__ import annotations

from pathlib import Path

TEMPLATES = Path(__file__).parent
"""The folder with the template of the page."""
