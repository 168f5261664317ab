"""The documents: their links, commands, options and messages exist, and README stays short."""

import ast
import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from functools import cache

import pytest

from pipeline.run.cluster import REPOSITORY

DOCS = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([
        REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", REPOSITORY / "models/README.md",
        REPOSITORY / "notebooks/README.md",
        *(REPOSITORY / "docs").glob("*.md"),
    ])
}
OPERATIONS = "docs/operations.md"
README_WORDS = 1300
WITH_SUBCOMMANDS = ("jobs.bench", "jobs.evaluate", "jobs.train")
COMMANDS = ("jobs.extract", "jobs.manifest", "jobs.erase", "jobs.preview", "jobs.report", "jobs.compare", "jobs.search",
            "jobs.cluster", "jobs.blur", "jobs.duplicates", "jobs.preflight", "jobs.convert_weights",
            "jobs.calibrate_alignment",
            *WITH_SUBCOMMANDS)
COMMAND = re.compile(r"(?<![\w/.])(?:(jobs\.\w+)|facelake(?= [a-z]))(?: +([a-z][a-z-]*)(?![\w/.=]))?([^|;&]*)")

# Refusals of these have a row in the table; those of jobs/train and jobs/evaluate are only named there.
DOCUMENTED = ("pipeline", "jobs/extract", "jobs/manifest.py", "jobs/erase", "jobs/preview", "jobs/report",
              "jobs/people", "jobs/compare", "jobs/search", "jobs/cluster", "jobs/blur", "jobs/duplicates.py",
              "models/store.py")


# --- links and length


def anchors(text: str) -> set[str]:
    """The names that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCS)
def test_relative_links_exist(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", DOCS[name]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((REPOSITORY / name).parent / path).resolve() if path else REPOSITORY / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_readme_is_short():
    assert len(DOCS["README.md"].split()) < README_WORDS


def test_figures_in_readme_are_those_of_the_results():
    section = DOCS["README.md"].split("## How good, how fast")[1].split("\nTried:")[0]
    figures = re.findall(r"\d+\.\d+", section)
    results = re.findall(r"\d+\.\d+", DOCS["docs/results.md"])
    rounded = {f"{float(figure):.1f}" for figure in results} | {f"{float(figure) * 100:.1f}" for figure in results}
    assert figures and set(figures) <= {*results, *rounded}


def test_words_that_readme_explains_are_in_the_glossary():
    explained = set(re.findall(r"(?<!\*)\*([a-z]+)\*(?!\*)", DOCS["README.md"]))
    assert {"part", "pool", "chip", "ledger", "lease"} <= explained
    assert explained <= set(re.findall(r"^\| ([a-z]+) \|", DOCS["docs/glossary.md"], re.MULTILINE))


# --- commands and options


def code(text: str) -> Iterator[str]:
    """Every line of a code block, without its comment, and every code span."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield from (re.sub(r" {2,}#.*", "", line) for line in block.replace("\\\n", " ").splitlines())
    without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks))


def used_commands(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Commands in the code of a document: module or "facelake", the word after it, and the options of the line."""
    for line in code(text):
        for module, word, rest in COMMAND.findall(line):
            yield module or "facelake", word, re.findall(r"(?<!\S)(--[a-z][\w-]*)", rest)


@cache
def help_text(module: str, *words: str) -> str | None:
    """What the command prints for --help after these words; None if it refuses them."""
    if module == "facelake":
        name = "jobs.cli"
    else:
        name = f"{module}.__main__" if hasattr(importlib.import_module(module), "__path__") else module
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = importlib.import_module(name).main([*words, "--help"])
        except SystemExit as end:
            code = end.code
    return None if code else printed.getvalue()


def options(text: str) -> set[str]:
    """The options that a help text lists."""
    return set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", text, re.MULTILINE))


@cache
def all_options() -> set[str]:
    """The options of all commands."""
    found = set()
    for module in COMMANDS:
        for words in [(word,) for word in subcommands(module)] if module in WITH_SUBCOMMANDS else [()]:
            found |= options(help_text(module, *words))
    return found


def subcommands(module: str) -> list[str]:
    """The subcommands that a help text names, as {a,b} or by an example each."""
    text = help_text(module)
    listed = re.search(r"\{([a-z,-]+)\}", text)
    return listed[1].split(",") if listed else re.findall(rf"{re.escape(module)} ([a-z-]+)", text)


@pytest.mark.parametrize("name", DOCS)
def test_commands_and_their_options_exist(name):
    for module, word, used in used_commands(DOCS[name]):
        needs_word = module == "facelake" or (module in WITH_SUBCOMMANDS and word)
        text = help_text(module, *([word] if needs_word else []))
        assert text, f"there is no {module} {word}"
        assert set(used) <= options(text), f"{module} {word}"


@pytest.mark.parametrize("name", DOCS)
def test_options_named_alone_exist(name):
    named = {match[0] for span in code(DOCS[name]) if (match := re.match(r"--[a-z][\w-]*", span))}
    assert named <= all_options()


@pytest.mark.parametrize("name", DOCS)
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for line in code(DOCS[name]) for word in re.findall(r"^\s*make ([a-z-]+)", line)}
    assert named <= targets


def test_the_commands_of_the_readme_are_found():
    """Else the tests above would hold of nothing."""
    found = {(module, word) for module, word, _ in used_commands(DOCS["README.md"])}
    assert {("facelake", "extract"), ("facelake", "manifest"), ("facelake", "erase"), ("jobs.extract", "")} <= found


# --- messages


def sources(places: tuple[str, ...]) -> Iterator[ast.Module]:
    for place in places:
        path = REPOSITORY / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield ast.parse(file.read_text(encoding="utf-8"))


def literal(node: ast.AST) -> str | None:
    """A string in the source, with "\\0" for every value put into it; None for anything else."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(value.value if isinstance(value, ast.Constant) else "\0" for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return f"{literal(left) or chr(0)}{literal(right) or chr(0)}"
    return None


def refusals() -> Iterator[str]:
    """The messages of the errors that end a command with exit code 2."""
    modules = list(sources(DOCUMENTED))
    classes = [node for module in sources(("pipeline", "jobs", "models")) for node in ast.walk(module)
               if isinstance(node, ast.ClassDef)]
    errors = {"UserError"}
    while more := {each.name for each in classes if {ast.unparse(base) for base in each.bases} & errors} - errors:
        errors |= more
    for module in modules:
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in errors and node.args:
                text = literal(node.args[0])
                if text and text.strip("\0 :"):
                    yield text


def messages(text: str) -> list[str]:
    """The messages in the tables of the section "Messages", as written: "…" stands for what differs."""
    section = text.split("\n## Messages\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


def pattern(message: str) -> re.Pattern[str]:
    """What a message of the table matches in the source."""
    return re.compile(".*".join(re.escape(piece) for piece in message.split("…")), re.DOTALL)


def test_messages_of_the_table_stand_in_the_code():
    texts = [text for module in sources(("pipeline", "jobs", "models")) for node in ast.walk(module)
             if (text := literal(node))]
    table = messages(DOCS[OPERATIONS])
    assert len(table) > 50
    assert [each for each in table if not any(map(pattern(each).search, texts))] == []


def test_every_refusal_has_a_row_in_the_table():
    table = list(map(pattern, messages(DOCS[OPERATIONS])))
    found = list(refusals())
    assert len(found) > 50
    assert [text for text in found if not any(each.search(text) for each in table)] == []
