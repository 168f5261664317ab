"""The forms of a model that outputs know: a detector also without the points that it has learnt to find.

The points are a branch of their own, which changes no box. So the tensors without it are those of the detector before
it had points, and an output that was begun with that one goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.store import StoredModel, WeightCard, read_model, tensors_digest

POINT_BRANCH = ".cv4."      # in the names of the tensors that find the points


def forms(model: StoredModel) -> Iterator[StoredModel]:
    """The model, and a detector with points also without them."""
    yield model
    if "points" in model.card.architecture:
        yield without_points(model)


def without_points(model: StoredModel) -> StoredModel:
    """The detector without the branch for points. Its exports still have it; their points do not count."""
    import safetensors.numpy

    kept = {name: of for name, of in safetensors.numpy.load(model.content).items() if POINT_BRANCH not in name}
    content = safetensors.numpy.save(kept)
    architecture = {key: value for key, value in model.card.architecture.items() if key != "points"}
    card = replace(
        model.card, architecture=architecture, sha256=hashlib.sha256(content).hexdigest(),
        tensors_sha256=tensors_digest(content),
    )
    return StoredModel(card, content, model.folder)


def form_of(model: StoredModel, fingerprint: Mapping[str, Any]) -> StoredModel | None:
    """The form of a model that has this fingerprint of its card, if one has it."""
    return next((form for form in forms(model) if form.card.fingerprint() == fingerprint), None)


def read_known(weights_dir: Path, card: WeightCard) -> StoredModel:
    """The model of a card that was found before, in its form; as it is now where none has the card's fingerprint.

    Raises WeightsError.
    """
    model = read_model(weights_dir, card.role, card.name, known=card)
    return form_of(model, card.fingerprint()) or model
