"""What can change a row, and the fingerprint that keeps an output to one such choice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import geometry
from pipeline.schemas import EMBEDDING_TYPES, SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class RowSettings:
    """Every setting that can change a row. Two runs that share these and the models may share an output."""

    detect_px: int = 800                   # side of the detector's square input; a multiple of 32
    second_pass_px: int | None = 320       # looked at again at this size where nothing was found; None: not
    min_score: float = 0.35
    nms_iou: float = 0.5                   # of two boxes that overlap more, the better stays
    min_face_px: float = 0.0               # shorter box side, original pixels
    max_faces: int | None = None           # of one image, best scores first
    rotate_retry: bool = False             # also look at the image turned, where nothing was found
    decode_scale: str = "auto"             # "auto": JPEGs at 1/2, 1/4, 1/8 where that is enough; "full": never
    max_pixels: int = 200_000_000          # larger images are too_large
    embedding_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("detect_px", "second_pass_px"):
            side = getattr(self, name)
            if side is not None and (side < 64 or side % 32):
                raise ValueError(f"{name} must be a multiple of 32 and at least 64, got {side}")
        for name in ("min_score", "nms_iou"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.min_face_px < math.inf:
            raise ValueError(f"min_face_px must be a number and not negative, got {self.min_face_px}")
        for name in ("max_faces", "max_pixels"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1, got {limit}")
        if self.decode_scale not in ("auto", "full"):
            raise ValueError(f'decode_scale must be "auto" or "full", got {self.decode_scale!r}')
        if self.embedding_dtype not in EMBEDDING_TYPES:
            known = ", ".join(EMBEDDING_TYPES)
            raise ValueError(f"embedding_dtype must be one of {known}, got {self.embedding_dtype!r}")

    @property
    def decode_min_side_px(self) -> int | None:
        """The longest side that a reduced JPEG keeps at least; None never reduces."""
        return 2 * self.detect_px if self.decode_scale == "auto" else None


def fingerprinted(settings: RowSettings, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that the fingerprint covers, as plain JSON values; `models` maps roles to what their cards cover."""
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": asdict(settings),
        "geometry": {
            "crop_px": geometry.CROP_PX,
            "eyes_mid_xy": list(geometry.EYES_MID_XY),
            "eye_distance_px": geometry.EYE_DISTANCE_PX,
            "chip_box_ratio": geometry.CHIP_BOX_RATIO,
            "chip_max_px": geometry.CHIP_MAX_PX,
        },
        "precision": "float32",
        "models": {role: dict(model) for role, model in models.items()},
    }


def fingerprint(covered: Mapping[str, Any]) -> str:
    """The sha256 of canonical JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The leaves in which two such values differ, as lines "settings.min_score: 0.35 here, 0.5 there"."""
    lines = []
    for key in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(key), theirs.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            lines += differences(here, there, f"{prefix}{key}.")
        elif here != there:
            lines.append(f"{prefix}{key}: {json.dumps(here)} now, {json.dumps(there)} in the output")
    return lines
