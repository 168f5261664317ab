"""Faces for the commands that compare and search: of photos, found in this process, or of rows of an output."""

from __future__ import annotations

from pathlib import Path

TEMPLATES = Path(__file__).parent
"""The folder with the templates of the pages."""
