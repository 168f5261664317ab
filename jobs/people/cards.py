"""The cards of the models that made an output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.store import WeightCard, read_card
from pipeline.errors import OutputError


def find_card(weights_dir: Path, role: str, made_with: Mapping[str, Any]) -> WeightCard:
    """The card of the model that made an output. Its name may have changed. Raises OutputError."""
    names = sorted(path.stem.removeprefix(f"{role}-") for path in weights_dir.glob(f"{role}-*.json"))
    for name in names:
        card = read_card(weights_dir, role, name)
        if card.fingerprint() == made_with:
            return card
    raise OutputError(
        f"the output was made with another {role}, {made_with['architecture']['network']}@"
        f"{made_with['tensors_sha256'][:12]}, than those in {weights_dir} ({', '.join(names) or 'none'}). Vectors of "
        "two embedders cannot be compared. Name the folder of the right one with --weights"
    )
