"""The import rules in `pyproject.toml` (import-linter) hold, and find wrong imports."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "ultralytics", "timm"}


def lint_imports(folder):
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the code without the weights."""
    folder = tmp_path_factory.mktemp("tree")
    for package in ("jobs", "models", "pipeline"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_rules_hold(tree):
    result = lint_imports(tree)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("pipeline/output/deep/wrong.py", "from pipeline.run.plan import Plan", "pipeline.output is not allowed"),
        ("pipeline/stages/wrong.py", "def f() -> None:\n    import torch", "pipeline is not allowed to import torch"),
        ("pipeline/storage/wrong.py", "import ray", "pipeline.storage is not allowed to import ray"),
        ("models/wrong.py", "from pipeline.batch import Status", "models is not allowed to import pipeline.batch"),
        ("pipeline/nowhere.py", "", "pipeline.nowhere"),
    ],
)
def test_a_planted_wrong_import_is_found(tree, file, line, message):
    path = tree / file
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in made:
        (folder / "__init__.py").write_text("")
    path.write_text(line + "\n")
    try:
        result = lint_imports(tree)
    finally:
        path.unlink()
        for folder in made:
            shutil.rmtree(folder)
    assert result.returncode == 1
    assert message in " ".join(result.stdout.split())


def test_the_driver_imports_no_network_library():
    code = f"import sys, jobs.extract.job; print(sorted(set(sys.modules) & {HEAVY | {'ray'}!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
