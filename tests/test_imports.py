"""The arrows of the architecture: who may import whom, and what the driver and the stages do without."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "ultralytics", "timm"}
# the graph, the start, the metrics, the reports
RAY_FILES = {"pipeline/run/plan.py", "pipeline/run/cluster.py", "pipeline/run/telemetry.py", "pipeline/run/board.py"}


def imported(path):
    """Top-level names of all that a file imports, inside functions too; our own packages with the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[0] if name.split(".")[0] not in ("pipeline",) else ".".join(name.split(".")[:3])
            for name in names}


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources("pipeline"), ids=name)
def test_pipeline_knows_no_models_no_jobs_no_networks(path):
    assert not imported(path) & ({"models", "jobs"} | HEAVY)


@pytest.mark.parametrize("path", sources("pipeline"), ids=name)
def test_only_three_files_know_ray(path):
    assert ("ray" in imported(path)) == (name(path) in RAY_FILES)


@pytest.mark.parametrize("path", sources("models"), ids=name)
def test_models_import_neither_jobs_nor_ray_and_only_geometry_of_the_pipeline(path):
    assert not imported(path) & {"jobs", "ray"}
    assert {".".join(m.split(".")[:2]) for m in imported(path) if m.startswith("pipeline")} <= {"pipeline.geometry"}


@pytest.mark.parametrize("stage", ["decode", "detect", "keypoint", "align", "embed"])
def test_stages_know_only_values_and_geometry(stage):
    modules = imported(ROOT / f"pipeline/stages/{stage}.py")
    ours = {".".join(module.split(".")[:2]) for module in modules if module.startswith("pipeline")}
    assert ours <= {"pipeline.batch", "pipeline.geometry", "pipeline.stages"}


def test_the_driver_imports_no_network_library():
    code = f"import sys, jobs.extract.job; print(sorted(set(sys.modules) & {HEAVY | {'ray'}!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
