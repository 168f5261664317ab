"""The self-check of an engine: an input that code makes, and a network's answer to it, stored with its export.

Users of engines report outputs that are all zero, and precisions that break a network on some CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.engines.engine import EngineError

SAMPLED = 64           # values of the output that are stored
TOLERANCE = {"float32": 0.002, "float16": 0.02, "bfloat16": 0.05, "int8": 0.2}
"""The largest root mean square difference, as a share of the answer's standard deviation."""


def check_input(side_px: int) -> np.ndarray:
    """A picture (side_px, side_px, 3) uint8: a pattern of whole numbers, the same on every machine."""
    y, x, channel = np.ogrid[:side_px, :side_px, :3]
    picture: np.ndarray = (x * x // 7 + y * 5 + x * y // 11 + channel * 37) % 256
    return picture.astype(np.uint8)


def sample(output: np.ndarray) -> list[float]:
    """The part of one output that is stored: values at equal distances."""
    flat = output.ravel()
    return [round(float(value), 6) for value in flat[np.linspace(0, flat.size - 1, SAMPLED).astype(int)]]


def check_answer(output: np.ndarray, answer: Sequence[float], precision: str) -> None:
    """Raises EngineError when the output to `check_input` is not the stored answer."""
    found, wanted = np.array(sample(output)), np.array(answer)
    off = float(np.sqrt(np.mean((found - wanted) ** 2)) / max(np.std(wanted), 1e-9))
    if not off <= TOLERANCE[precision]:
        raise EngineError(f"its answer to the check differs by {off:.3g} of its spread, {TOLERANCE[precision]} at most")
