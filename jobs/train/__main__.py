"""Train a model: `python -m jobs.train detector | eyes | embedder …`. Each has its own --help."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import cast

from jobs.options import program

MODELS = ("detector", "eyes", "embedder")


def main(argv: Sequence[str] | None = None) -> int:
    """Pass the words after the model's name to its training; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=program("train"), description=__doc__, allow_abbrev=False)
    parser.add_argument("model", choices=MODELS)
    model = parser.parse_args(words[:1]).model
    return cast(int, importlib.import_module(f"jobs.train.{model}").main(words[1:]))


if __name__ == "__main__":
    sys.exit(main())
