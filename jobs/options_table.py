"""`python -m jobs.options_table > docs/options.md`: the options of the users' commands as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from jobs.blur.__main__ import argument_parser as blur
from jobs.cluster.__main__ import argument_parser as cluster
from jobs.compare.__main__ import argument_parser as compare
from jobs.duplicates import argument_parser as duplicates
from jobs.erase.__main__ import argument_parser as erase
from jobs.extract.options import argument_parser as extract
from jobs.index.__main__ import argument_parser as index
from jobs.manifest import argument_parser as manifest
from jobs.preview.__main__ import argument_parser as preview
from jobs.report.__main__ import argument_parser as report
from jobs.search.__main__ import argument_parser as search

PARSERS = {
    "extract": extract, "manifest": manifest, "preview": preview, "report": report, "compare": compare,
    "search": search, "index": index, "cluster": cluster, "blur": blur, "duplicates": duplicates, "erase": erase,
}


def options_markdown() -> str:
    """The content of docs/options.md."""
    lines = [
        "# Options", "",
        "`make options` writes this file. `facelake COMMAND --help` prints the same. Options cannot be abbreviated.",
        "`facelake extract --config FILE.yaml` reads options from a file, with lines as `min-score: 0.4`.",
    ]
    for name, argument_parser in PARSERS.items():
        lines += ["", f"## `facelake {name}`", *parser_lines(argument_parser())]
    return "\n".join(lines) + "\n"


def parser_lines(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table for each group of a command's arguments."""
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            title = str(group.title).removeprefix("positional ")
            yield from ("", f"| {title} | |", "|---|---|")
            for action in actions:
                yield f"| `{cell(argument(action))}` | {cell(formatter._expand_help(action))} |"


def argument(action: argparse.Action) -> str:
    """An argument as it is written on the command line."""
    if not action.option_strings:
        return str(action.metavar)
    if action.nargs == 0:
        return action.option_strings[0]
    value = action.metavar or "|".join(action.choices or ())
    return f"{action.option_strings[0]} {value}" + (" …" if action.nargs == "+" else "")


def cell(text: str) -> str:
    """Text as the cell of a Markdown table."""
    return text.replace("|", r"\|").replace("<", r"\<")


if __name__ == "__main__":
    print(options_markdown(), end="")
