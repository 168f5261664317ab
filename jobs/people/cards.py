"""The cards of the models that made an output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.forms import form_of
from models.store import WeightCard, read_model
from pipeline.errors import OutputError


def matching_card(weights_dir: Path, role: str, made_with: Mapping[str, Any]) -> WeightCard | None:
    """The card of the model that made an output; None if the folder does not hold it. Its name may have changed.

    A detector that has learnt points since is found without them.
    """
    models = (read_model(weights_dir, role, name) for name in _names(weights_dir, role))
    found = (form_of(model, made_with) for model in models)
    return next((form.card for form in found if form), None)


def find_card(weights_dir: Path, role: str, made_with: Mapping[str, Any]) -> WeightCard:
    """As `matching_card`. Raises OutputError where that gives None."""
    if card := matching_card(weights_dir, role, made_with):
        return card
    held = ", ".join(_names(weights_dir, role)) or "none"
    raise OutputError(
        f"the output was made with another {role}, {made_with['architecture']['network']}@"
        f"{made_with['tensors_sha256'][:12]}, than those in {weights_dir} ({held}). Vectors of "
        "two embedders cannot be compared. Name the folder of the right one with --weights"
    )


def _names(weights_dir: Path, role: str) -> list[str]:
    return sorted(path.stem.removeprefix(f"{role}-") for path in weights_dir.glob(f"{role}-*.json"))
