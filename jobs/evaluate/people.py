"""`jobs.evaluate people`: do the groups that `jobs.cluster` makes agree with the people?"""

from __future__ import annotations

import argparse
from contextlib import closing

import numpy as np

from jobs.evaluate.data import card_of, is_output
from jobs.evaluate.evaluation import Evaluation, Plot
from jobs.evaluate.identity import EmbeddedFaces, embedded_crops, extracted_faces, special_settings
from pipeline.people.agreement import Agreement, agreement
from pipeline.people.gallery import gallery_of
from pipeline.people.grouping import group_faces
from pipeline.people.linkage import LinkThreshold
from pipeline.storage.scratch import ScratchFolder

PLOTTED = tuple(np.round(np.arange(0.3, 0.625, 0.025), 3).tolist())      # thresholds of two single faces


def people(args: argparse.Namespace) -> Evaluation:
    """BCubed and pairwise figures of the groups of ready-cut crops, or of the middle faces of an extract output.

    Faces are grouped as by `jobs.cluster` with its default settings, each as if it had a photo of its own. Crops are
    aligned once by our eyes (`ours`) and once by the data's (`given`); an output's faces are taken as they are
    (`pipeline`). A photo without a face is a group of its own.
    """
    faces = extracted_faces(args) if is_output(args.crops) else embedded_crops(args)
    card = faces.card or card_of(args.weights, "embedder", faces.embedder)
    threshold = LinkThreshold.of_embedder(card.thresholds, card.name)
    found = {name: grouped(vectors, faces.people, threshold) for name, vectors in faces.by_eyes.items()}
    among = f", {faces.distractors} of them distractors" if faces.distractors else ""
    return Evaluation(
        f"Groups of {len(faces.people)} faces of {len(set(faces.people))} people{among}: "
        + ", ".join([faces.embedder, *special_settings(args)]),
        {"embedder": faces.embedder, "keypointer": faces.keypointer, "crops": len(faces.people),
         "distractors": faces.distractors, "threshold": round(threshold.pair, 5),
         **{f"eyes_{name}": rounded(value) for name, value in found.items()}},
        ("eyes", "threshold of two faces", "BCubed F", "precision", "recall", "pairwise F", "precision", "recall"),
        [(name, f"{threshold.pair:.3f}", *(f"{figure:.4f}" for figure in rounded(value).values()))
         for name, value in found.items()],
        plot(faces),
    )


def grouped(vectors: np.ndarray, labels: np.ndarray, threshold: LinkThreshold) -> Agreement:
    """How far the groups of these vectors agree with the people. vectors: (n, dim), NaN for a face without one."""
    with closing(ScratchFolder()) as folder:
        gallery = gallery_of(np.nan_to_num(vectors, nan=0.0), folder.path)
        grouping = group_faces(
            gallery, folder.path, threshold, names=np.full(len(labels), -1), same_photo=False,
            progress=lambda *_: None,
        )
        return agreement(grouping.person, labels)


def rounded(value: Agreement) -> dict[str, float]:
    """The figures for a JSON file, in the order of the table."""
    figures = {
        "bcubed_f": value.bcubed_f, "bcubed_precision": value.bcubed_precision, "bcubed_recall": value.bcubed_recall,
        "pairwise_f": value.pairwise_f, "pairwise_precision": value.pairwise_precision,
        "pairwise_recall": value.pairwise_recall,
    }
    return {name: round(figure, 5) for name, figure in figures.items()}


def plot(faces: EmbeddedFaces) -> Plot:
    """F by the threshold of two faces, for the first source of eyes."""
    name, vectors = next(iter(faces.by_eyes.items()))
    found = [grouped(vectors, faces.people, LinkThreshold.of_pair(pair)) for pair in PLOTTED]
    x = np.array(PLOTTED)
    return Plot(
        "threshold of two single faces (cosine)", "F",
        {f"BCubed, eyes: {name}": (x, np.array([each.bcubed_f for each in found])),
         f"pairwise, eyes: {name}": (x, np.array([each.pairwise_f for each in found]))},
        (PLOTTED[0], PLOTTED[-1]),
    )
