"""Train a model: `python -m jobs.train detector | eyes | embedder …`. Each has its own --help.

label-eyes, agree-eyes and eyes-consensus, in this order, train an eye-point network that says how sure it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import cast

from jobs.command import run_process
from jobs.options import command_parser

MODELS = ("detector", "eyes", "embedder", "label-eyes", "agree-eyes", "eyes-consensus", "points")


def main(argv: Sequence[str] | None = None) -> int:
    """Pass the words after the model's name to its training; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = command_parser("train", str(__doc__))
    parser.add_argument("model", choices=MODELS)
    model = parser.parse_args(words[:1]).model
    return cast(int, importlib.import_module(f"jobs.train.{model.replace('-', '_')}").main(words[1:]))


if __name__ == "__main__":
    run_process(main)
