import argparse

import pytest

from jobs.options_table import PARSERS, argument, cell, options_markdown
from pipeline.run.cluster import REPOSITORY


def test_the_file_is_what_the_parsers_say():
    assert (REPOSITORY / "docs/options.md").read_text(encoding="utf-8") == options_markdown(), "run `make options`"


@pytest.mark.parametrize("name", PARSERS)
def test_every_option_is_in_it(name):
    section = options_markdown().split(f"## `facelake {name}`")[1].split("\n## ")[0]
    for action in PARSERS[name]()._actions:
        for option in action.option_strings:
            assert (f"| `{option}" in section) == (option not in ("-h", "--help")), option


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        (["output"], {"metavar": "OUTPUT"}, "OUTPUT"),
        (["--all"], {"action": "store_true"}, "--all"),
        (["--size"], {"metavar": "N"}, "--size N"),
        (["--device"], {"choices": ("cpu", "cuda")}, "--device cpu|cuda"),
        (["--uri"], {"nargs": "+", "metavar": "URI"}, "--uri URI …"),
    ],
)
def test_arguments_as_they_are_written(words, options, expected):
    assert argument(argparse.ArgumentParser().add_argument(*words, **options)) == expected


def test_text_in_a_cell():
    assert cell("a|b <file>") == r"a\|b \<file>"
