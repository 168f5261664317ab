"""Builds the stages of `jobs.extract` inside Ray's actors, each with its model."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models.store import DEFAULT_WEIGHTS_DIR, StoredModel, WeightCard, WeightsError, fetch_weights, read_model
from pipeline.geometry import AlignmentTemplate
from pipeline.input.fetch import Fetch
from pipeline.run.runner import StageBuilders
from pipeline.settings import RowSettings
from pipeline.stages.align import Align
from pipeline.stages.decode import Decode
from pipeline.stages.detect import Detect
from pipeline.stages.embed import Embed
from pipeline.stages.image import is_too_large
from pipeline.stages.keypoint import Keypoint
from pipeline.storage.uris import StoreOptions, local_path

MAX_DETECTIONS = 3000    # of one image, before --max-faces; the fullest WIDER FACE photo has 1,968 faces


@dataclass(frozen=True, slots=True)
class StageConfig:
    """All that the stages are built from; travels to every actor.

    image_column: of Parquet files that hold images. weights: a folder or a bucket URI, None for the weights of this
    repository. detector, keypointer, embedder: the models as the driver found them there. device: "cpu" or "cuda".
    detect_batch, face_batch: images and faces that a network takes at a time. batch_images, batch_bytes: images and
    decoded bytes that pass through the stages together.
    """

    settings: RowSettings
    store_options: StoreOptions
    image_column: str | None
    weights: str | None
    detector: WeightCard
    keypointer: WeightCard
    embedder: WeightCard
    template: AlignmentTemplate
    device: str
    detect_batch: int
    face_batch: int
    batch_images: int
    batch_bytes: int


def stage_builders(config: StageConfig) -> StageBuilders:
    """The builder of every stage by its name."""
    return {
        "decode": partial(build_decode, config),
        "detect": partial(build_detect, config),
        "keypoint": partial(build_keypoint, config),
        "align": partial(build_align, config),
        "embed": partial(build_embed, config),
    }


def build_decode(config: StageConfig, threads: int) -> Decode:
    """Fetch and decode with that many threads."""
    return Decode(
        Fetch(
            config.store_options, image_column=config.image_column,
            refuses=partial(is_too_large, max_pixels=config.settings.max_pixels),
        ),
        max_pixels=config.settings.max_pixels,
        min_side_px=config.settings.decode_min_side_px,
        batch_images=config.batch_images,
        batch_bytes=config.batch_bytes,
        threads=threads,
    )


def build_detect(config: StageConfig, threads: int) -> Detect:
    """Load the detector. torch is imported here and below only, so that an actor that just decodes does without."""
    from models.detector import load_detector
    from models.device import set_threads

    set_threads(threads)
    settings = config.settings
    detector = load_detector(
        model_of(config, config.detector), device=config.device, min_score=settings.min_score,
        nms_iou=settings.nms_iou, batch_size=config.detect_batch, max_detections=MAX_DETECTIONS,
    )
    return Detect(
        detector, input_px=settings.detect_px, second_pass_px=settings.second_pass_px,
        min_face_px=settings.min_face_px, max_faces=settings.max_faces, rotate_retry=settings.rotate_retry,
        batch_size=config.detect_batch,
    )


def build_keypoint(config: StageConfig, threads: int) -> Keypoint:
    """Load the eye-point network."""
    from models.device import set_threads
    from models.eyes import load_keypointer

    set_threads(threads)
    model = model_of(config, config.keypointer)
    return Keypoint(load_keypointer(model, device=config.device, batch_size=config.face_batch))


def build_align(config: StageConfig, threads: int) -> Align:
    """No model, one thread."""
    return Align(config.template)


def build_embed(config: StageConfig, threads: int) -> Embed:
    """Load the embedder."""
    from models.device import set_threads
    from models.embedder import load_embedder

    set_threads(threads)
    model = model_of(config, config.embedder)
    return Embed(load_embedder(model, device=config.device, batch_size=config.face_batch))


def model_of(config: StageConfig, card: WeightCard) -> StoredModel:
    """The run's model from the weights on this machine: read once and hashed once.

    card: the model as the driver found it. Raises WeightsError when the weights here are of another model: a node that
    starts late can find replaced weights in the bucket, and its rows would name the wrong model.
    """
    folder = local_weights(config.weights, f"{card.role}-{card.name}")
    model = read_model(folder, card.role, card.name, known=card)
    if model.card.fingerprint() != card.fingerprint():
        raise WeightsError(
            f"the {card.role} of this run is {card.identity}, but {config.weights or folder} holds "
            f"{model.card.identity} now; put the first back, or give another output"
        )
    return model


def local_weights(weights: str | None, model: str | None = None) -> Path:
    """The folder with the weights on this machine. Weights in a bucket are copied first, once.

    model: copy only `<role>-<name>`, else all.
    """
    if weights is None:
        return DEFAULT_WEIGHTS_DIR
    return fetch_weights(local_path(weights), Path(tempfile.gettempdir()) / f"facelake-weights-{os.getuid()}", model)


def alignment_template(embedder: WeightCard) -> AlignmentTemplate:
    """The template that the embedder's card was calibrated with."""
    values = embedder.preprocessing["alignment"]
    return AlignmentTemplate(values["box_side_px"], tuple(values["eyes_in_box_xy"]))
