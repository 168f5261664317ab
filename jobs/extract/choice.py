"""Which models a run uses: those that the user names, else those that OUTPUT was begun with, else the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.extract.stages import Models, local_weights
from jobs.options import DEFAULT_MODELS
from jobs.people.cards import matching_card
from models.forms import form_of
from models.store import WeightCard, read_card, read_model


def choose_models(
    weights: str | None, named: Mapping[str, str | None], begun_with: Mapping[str, Mapping[str, Any]]
) -> Models:
    """The cards of a run's models.

    named: by role, None where the user names none. begun_with: the fingerprints of OUTPUT's models by role; empty for a
    new output. Where no model of `weights` has that fingerprint the default is taken, which OUTPUT then refuses.
    Raises WeightsError.
    """
    folder = local_weights(weights)
    return Models(**{role: _choose(folder, role, named.get(role), begun_with.get(role)) for role in DEFAULT_MODELS})


def _choose(folder: Path, role: str, name: str | None, begun_with: Mapping[str, Any] | None) -> WeightCard:
    if name is None and begun_with is not None and (card := matching_card(folder, role, begun_with)):
        return card
    if name and begun_with is not None and (form := form_of(read_model(folder, role, name), begun_with)):
        return form.card
    return read_card(folder, role, name or default_name(folder, role))


def default_name(folder: Path, role: str) -> str:
    """The default model of a role, or the only one that a folder of the user's own holds."""
    held = [path.stem.removeprefix(f"{role}-") for path in folder.glob(f"{role}-*.json")]
    return held[0] if len(held) == 1 else DEFAULT_MODELS[role]


def begun_lines(
    models: Models, named: Mapping[str, str | None], begun_with: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """A line for each model that is not the default, or not in its present form, because OUTPUT was begun with it."""
    lines = [
        f"OUTPUT was begun with the {role} {card.name}, so this run goes on with it"
        for role, card in models.by_role.items()
        if named.get(role) is None and card.name != DEFAULT_MODELS[role] and card.fingerprint() == begun_with.get(role)
    ]
    detector = models.detector
    if detector.name == DEFAULT_MODELS["detector"] and "points" not in detector.architecture and begun_with:
        lines.append(f"OUTPUT was begun with the detector {detector.name} without points, so this run has none")
    return lines
