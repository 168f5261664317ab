"""Builds the stages of `jobs.extract` inside Ray's actors, each with its model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from jobs.extract.device import device_jpegs, device_operations
from models.engines.engine import Opened, Runtime
from models.forms import read_known
from models.store import (
    DEFAULT_WEIGHTS_DIR,
    StoredModel,
    WeightCard,
    WeightsError,
    fetch_weights,
    read_card,
)
from pipeline.geometry import AlignmentTemplate
from pipeline.input.fetch import MAX_REQUESTS, Fetch
from pipeline.run.runner import StageBuilders
from pipeline.settings import RowSettings
from pipeline.stages.align import Align
from pipeline.stages.decode import Decode
from pipeline.stages.detect import Detect, DetectModel
from pipeline.stages.embed import Embed
from pipeline.stages.image import is_too_large
from pipeline.stages.jpeg import MinSide
from pipeline.stages.keypoint import Keypoint
from pipeline.stages.looks import Looks
from pipeline.storage import open_storage
from pipeline.storage.uris import (
    BUCKET_SCHEMES,
    FROM_ENVIRONMENT,
    StoreOptions,
    is_local,
    local_path,
    parse_input_uri,
    unsupported,
    uri_scheme,
)

COMPILE_FROM_IMAGES = 100_000    # compiling takes an actor half a minute, and saves 0.1 to 0.3 ms an image on an H100
FEW_LOOKS = 8            # of a batch of further looks, which few images need: zeros pad the batch
MAX_DETECTIONS = 3000    # of one image, before --max-faces; the fullest WIDER FACE photo has 1,968 faces


@dataclass(frozen=True, slots=True)
class Models:
    """The cards of a run's three models."""

    detector: WeightCard
    keypointer: WeightCard
    embedder: WeightCard

    @property
    def by_role(self) -> dict[str, WeightCard]:
        """The cards by their role."""
        return {"detector": self.detector, "keypointer": self.keypointer, "embedder": self.embedder}


@dataclass(frozen=True, slots=True)
class Batches:
    """How much is worked on at a time. It changes the speed and the memory, not the rows.

    detect: images of a detector batch. faces: faces of a batch of the other two networks. images, mb: images and
    megabytes of decoded pixels of a batch that passes through the stages, at least one image.
    """

    detect: int
    faces: int
    images: int
    mb: int


DEFAULT_BATCHES: Mapping[str, Batches] = MappingProxyType(
    {"cpu": Batches(detect=1, faces=16, images=16, mb=64), "cuda": Batches(detect=64, faces=256, images=64, mb=256)}
)


@dataclass(frozen=True, slots=True)
class StageConfig:
    """All that the stages are built from. It is sent to every actor.

    models: as the driver found them. device: "cpu" or "cuda". engine, precision: see `Runtime`. image_column: the
    column of images, where INPUT is Parquet files. weights: a folder or a bucket URI; None is this repository's.
    opened: is told of every network that an actor opens. max_requests: files that an actor asks for at once, at most.
    compile: torch compiles the networks, on CUDA.
    """

    settings: RowSettings
    models: Models
    device: str = "cpu"
    batches: Batches = DEFAULT_BATCHES["cpu"]
    store_options: StoreOptions = FROM_ENVIRONMENT
    image_column: str | None = None
    weights: str | None = None
    engine: str = "auto"
    precision: str = "auto"
    max_requests: int = MAX_REQUESTS
    opened: Callable[[Opened], None] | None = None
    compile: bool = False


def stage_builders(config: StageConfig) -> StageBuilders:
    """The builder of every stage by its name."""
    return {
        "decode": partial(build_decode, config),
        "detect": partial(build_detect, config),
        "keypoint": partial(build_keypoint, config),
        "align": partial(build_align, config),
        "embed": partial(build_embed, config),
    }


def looks_of(settings: RowSettings) -> Looks:
    """Where the detector looks."""
    return Looks(settings.detect_px, settings.long_pictures == "windows", settings.find_px)


def min_side_of(settings: RowSettings) -> MinSide | None:
    """How small JPEGs may be decoded; None decodes all at full size."""
    return looks_of(settings).min_side_px if settings.decode_scale == "auto" else None


def build_decode(config: StageConfig, threads: int, calls: int) -> Decode:
    """Fetch and decode with that many threads."""
    max_pixels = config.settings.max_pixels
    fetch = Fetch(
        config.store_options, image_column=config.image_column, refuses=partial(is_too_large, max_pixels=max_pixels),
        max_requests=config.max_requests,
    )
    return Decode(
        fetch,
        max_pixels=max_pixels,
        min_side_px=min_side_of(config.settings),
        batch_images=config.batches.images,
        batch_bytes=config.batches.mb << 20,
        threads=threads,
        decode_on_device=device_jpegs(config.opened) if config.settings.jpeg_decoder == "nvjpeg" else None,
    )


def build_detect(config: StageConfig, threads: int, calls: int) -> Detect:
    """Load the detector."""
    from models.detector import load_detector

    settings, batch_size, few = config.settings, config.batches.detect, min(config.batches.detect, FEW_LOOKS)
    detector = load_detector(
        model_of(config, config.models.detector), runtime_of(config, threads, calls),
        batch_sizes={settings.detect_px: batch_size}, few_sizes=dict.fromkeys(sides_of_few(settings), few),
        min_score=settings.min_score, nms_iou=settings.nms_iou, max_detections=MAX_DETECTIONS,
    )
    return Detect(
        DetectModel(detector, batch_size), few=DetectModel(detector.few, few), looks=looks_of(settings),
        nms_iou=settings.nms_iou, second_pass_px=settings.second_pass_px, min_face_px=settings.min_face_px,
        max_faces=settings.max_faces, rotate_retry=settings.rotate_retry,
        operations=device_operations(config.opened) if config.device == "cuda" else None,
    )


def sides_of_few(settings: RowSettings) -> list[int]:
    """The sides of the detector's input for further looks at an image: windows, turns, the second pass."""
    windows = settings.long_pictures == "windows" and settings.find_px is None
    sides = [settings.detect_px] if windows or settings.rotate_retry else []
    return [*sides, settings.second_pass_px] if settings.second_pass_px else sides


def build_keypoint(config: StageConfig, threads: int, calls: int) -> Keypoint:
    """Load the eye model."""
    from models.keypointer import load_keypointer

    model = model_of(config, config.models.keypointer)
    keypointer = load_keypointer(model, runtime_of(config, threads, calls), batch_size=config.batches.faces)
    return Keypoint(keypointer.with_spreads)


def build_align(config: StageConfig, threads: int, calls: int) -> Align:
    """No model, one thread."""
    template = alignment_template(config.models.embedder)
    return Align(template, eyes_alone=config.settings.align_by == "eyes")


def build_embed(config: StageConfig, threads: int, calls: int) -> Embed:
    """Load the embedder."""
    from models.embedder import load_embedder

    model = model_of(config, config.models.embedder)
    return Embed(load_embedder(model, runtime_of(config, threads, calls), batch_size=config.batches.faces))


def runtime_of(config: StageConfig, threads: int, calls: int) -> Runtime:
    """How the networks of an actor run."""
    compile = config.compile and config.device == "cuda"
    return Runtime(config.device, threads, config.engine, config.precision, calls, config.opened, compile)


def model_of(config: StageConfig, card: WeightCard) -> StoredModel:
    """The run's model from the weights on this machine: read once and hashed once.

    card: the model as the driver found it. Raises WeightsError when the weights here are of another model: a node that
    starts late can find replaced weights in the bucket, and its rows would name the wrong model.
    """
    folder = local_weights(config.weights, f"{card.role}-{card.name}")
    model = read_known(folder, card)
    other_int8 = config.precision == "int8" and model.card.exports.get("int8") != card.exports.get("int8")
    if model.card.fingerprint() != card.fingerprint() or other_int8:
        raise WeightsError(
            f"the {card.role} of this run is {card.identity}, but {config.weights or folder} holds "
            f"{model.card.identity} now. Put the first one back, or choose another OUTPUT"
        )
    return model


def read_models(weights: str | None, names: Mapping[str, str]) -> Models:
    """The cards of the models with these names by role. Raises WeightsError."""
    folder = local_weights(weights)
    return Models(**{role: read_card(folder, role, name) for role, name in names.items()})


def local_weights(weights: str | None, model: str | None = None) -> Path:
    """The folder with the weights on this machine. Weights in a bucket are copied first, once.

    model: copy only `<role>-<name>`, else all.
    """
    if weights is None:
        return DEFAULT_WEIGHTS_DIR
    cache = Path(tempfile.gettempdir()) / f"facelake-weights-{os.getuid()}"
    if is_local(weights):
        return fetch_weights(local_path(weights), cache, model)
    if uri_scheme(weights) not in BUCKET_SCHEMES:
        raise WeightsError(f"weights: {unsupported(weights, usable='a folder, s3:// or gs://')}")
    return fetch_weights(open_storage(*parse_input_uri(weights)), cache, model)


def alignment_template(embedder: WeightCard) -> AlignmentTemplate:
    """The template that the embedder's card was calibrated with."""
    values = embedder.preprocessing["alignment"]
    return AlignmentTemplate(values["box_side_px"], tuple(values["eyes_in_box_xy"]))
