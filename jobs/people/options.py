"""Options that the commands for people share."""

from __future__ import annotations

import argparse

from jobs.options import DEFAULT_MODELS, number


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The models that find the faces of photos."""
    parser.add_argument("--weights", metavar="DIR|URI", help=(
        "the folder of the weights; default: models/weights of this repository"))
    for role, name in DEFAULT_MODELS.items():
        parser.add_argument(f"--{role}", metavar="NAME", help=(
            f"the {role} that reads the photos; default: that of the output that is named, else {name}"))


def rate(text: str) -> float:
    """A false positive rate, between 0 and 1."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate between 0 and 1")
    return value


def positive_cosine(text: str) -> float:
    """A cosine above 0."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return value
