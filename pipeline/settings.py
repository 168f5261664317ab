"""The settings that can change a row, and the fingerprint by which an output accepts only one choice of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from pipeline import geometry
from pipeline.schemas import EMBEDDING_TYPES, SCHEMA_VERSION

JPEG_DECODERS = ("libjpeg", "nvjpeg")
ALIGN_BY = ("both", "eyes")
MOST_SIDE_PX = 8192      # of the detector's input: 800 MB as float32


@dataclass(frozen=True, slots=True)
class RowSettings:
    """Every setting that can change a row, with its default. Runs with equal settings and models may share an output.

    Each field is an option of `jobs.extract`. Raises ValueError naming the option if a value is out of range.
    """

    detect_px: int = 800                   # side of the detector's square input; a multiple of 32
    second_pass_px: int | None = 320       # input side of the second pass, for images without a face; None: no pass
    min_score: float = 0.35
    nms_iou: float = 0.5                   # of two boxes that overlap more, the one with the better score stays
    min_face_px: float = 0.0               # shorter side of the box, pixels of the original image
    max_faces: int | None = None           # per image, best scores first; None: no limit
    rotate_retry: bool = False             # images without a face are tried again, turned by 90, 270 and 180 degrees
    decode_scale: str = "auto"             # "auto": large JPEGs at 1/2, 1/4 or 1/8; "full": all at full size
    max_pixels: int = 200_000_000          # larger images get the status too_large
    embedding_dtype: str = "float32"
    long_pictures: str = "windows"         # pictures longer than 2:1: "windows": looked at in parts too; "whole": not
    jpeg_decoder: str = "libjpeg"          # "nvjpeg": GPUs decode common JPEGs; their colours differ a little
    align_by: str = "both"                 # "both": keypointer and detector, see `geometry.best_eyes`; "eyes": one
    find_px: int | None = None             # height of the faces to find in every picture, original pixels; see Looks

    def __post_init__(self) -> None:
        for name, side in (("detect_px", self.detect_px), ("second_pass_px", self.second_pass_px)):
            if side is not None and (not 64 <= side <= MOST_SIDE_PX or side % 32):
                off = "; 0 turns the second pass off" if name == "second_pass_px" else ""
                raise ValueError(f"{option(name)} must be a multiple of 32 from 64 to {MOST_SIDE_PX}{off}; got {side}")
        for name, share in (("min_score", self.min_score), ("nms_iou", self.nms_iou)):
            if not 0 < share < 1:
                raise ValueError(f"{option(name)} must lie between 0 and 1, got {share}")
        if not 0 <= self.min_face_px < math.inf:
            raise ValueError(f"{option('min_face_px')} must be a number and not negative, got {self.min_face_px}")
        if self.max_faces is not None and self.max_faces < 1:
            raise ValueError(f"{option('max_faces')} must be at least 1; 0 keeps all faces; got {self.max_faces}")
        if self.max_pixels < 1:
            raise ValueError(f"{option('max_pixels')} must be at least 1, got {self.max_pixels}")
        if self.decode_scale not in ("auto", "full"):
            raise ValueError(f'{option("decode_scale")} must be "auto" or "full", got {self.decode_scale!r}')
        if self.long_pictures not in ("windows", "whole"):
            raise ValueError(f'{option("long_pictures")} must be "windows" or "whole", got {self.long_pictures!r}')
        if self.jpeg_decoder not in JPEG_DECODERS:
            known = " or ".join(f'"{name}"' for name in JPEG_DECODERS)
            raise ValueError(f"{option('jpeg_decoder')} must be {known}, got {self.jpeg_decoder!r}")
        if self.align_by not in ALIGN_BY:
            raise ValueError(f'{option("align_by")} must be "both" or "eyes", got {self.align_by!r}')
        if self.find_px is not None and self.find_px < 4:
            raise ValueError(f"{option('find_px')} must be at least 4; 0 turns it off; got {self.find_px}")
        if self.embedding_dtype not in EMBEDDING_TYPES:
            known = ", ".join(EMBEDDING_TYPES)
            raise ValueError(f"{option('embedding_dtype')} must be one of {known}; got {self.embedding_dtype!r}")

    @classmethod
    def of_output(cls, begun_with: Mapping[str, Any]) -> RowSettings:
        """The settings in an output's output.json or run.json, of this version or an earlier one."""
        return cls(**{**BEFORE, **begun_with})

    def going_on(self, begun_with: Mapping[str, Any], given: Collection[str]) -> RowSettings:
        """These settings, as a run needs them that goes on with an output of an earlier version.

        begun_with: the settings in its output.json. given: the settings that the user has chosen; they stay.
        """
        changes = {name: value for name, value in BEFORE.items() if name not in given and name not in begun_with}
        return replace(self, **changes)


BEFORE: Mapping[str, Any] = MappingProxyType(
    {"long_pictures": "whole", "find_px": None, "jpeg_decoder": "libjpeg", "align_by": "eyes"}
)
"""Settings that version 0.1.0 did not have, with the value that means what it did. The fingerprint leaves them out
then, so that outputs of that version can be gone on with."""


def option(name: str) -> str:
    """The command-line option of a setting: "--min-face-px" for "min_face_px"."""
    return "--" + name.replace("_", "-")


def fingerprinted(
    settings: RowSettings, models: Mapping[str, Mapping[str, Any]], precision: str = "float32"
) -> dict[str, Any]:
    """Everything that the fingerprint covers, as plain JSON values.

    models: the fingerprint of each card, by role. precision: "float32" for all that agree with it (`models.engines`).
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": {
            name: value for name, value in asdict(settings).items() if name not in BEFORE or value != BEFORE[name]
        },
        "geometry": {
            "crop_px": geometry.CROP_PX,
            "eyes_mid_xy": list(geometry.EYES_MID_XY),
            "eye_distance_px": geometry.EYE_DISTANCE_PX,
            "chip_box_ratio": geometry.CHIP_BOX_RATIO,
            "chip_max_px": geometry.CHIP_MAX_PX,
        },
        "precision": precision,
        "models": {role: dict(model) for role, model in models.items()},
    }


def fingerprint(covered: Mapping[str, Any]) -> str:
    """The sha256 of `covered` as canonical JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The values that differ, a line each: "settings.min_score: 0.35 now, 0.5 in the output"."""
    lines = []
    for key in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(key), theirs.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            lines += differences(here, there, f"{prefix}{key}.")
        elif here != there:
            lines.append(f"{prefix}{key}: {json.dumps(here)} now, {json.dumps(there)} in the output")
    return lines
