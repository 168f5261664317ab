"""Run notebooks from start to end. Nothing is written into them, unless --refresh puts the new outputs there.

    python notebooks/run.py
    DATA=folder python notebooks/run.py --refresh train_embedder eye_points

PHOTOS and DATA in the environment are folders of the reader's own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent
CELL_LIMIT_S = 3600


def prepare_environment(scratch: Path) -> None:
    """Let the kernels import this repository, and write settings and caches into the folder instead of the home."""
    for name in ("PHOTOS", "DATA"):      # kernels have another working directory
        if folder := os.environ.get(name):
            os.environ[name] = str(Path(folder).expanduser().resolve())
    kinds = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR",
             "YOLO_CONFIG_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    os.environ.update({kind: str(scratch / kind.lower()) for kind in kinds})
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"      # tqdm misses widgets that nothing here uses
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))


def run(file: Path, scratch: Path) -> nbformat.NotebookNode:
    """The notebook with its new outputs, without times. Raises CellExecutionError."""
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_LIMIT_S, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(scratch)}},
    )
    kernel = client.create_kernel_manager()
    kernel.transport, kernel.ip = "ipc", str(scratch / "kernel")      # TCP would let others on the machine listen
    before = dict(notebook.metadata)
    client.execute()
    notebook.metadata = nbformat.from_dict(before)      # the kernel's Python is no part of the notebook
    return notebook


def main(argv: Sequence[str] | None = None) -> int:
    """Run the notebooks; 0, or 1 at the first cell that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a notebook's name or path (default: all three)")
    parser.add_argument("--refresh", action="store_true", help="write the new outputs into the notebooks")
    arguments = parser.parse_args(argv)
    files = [FOLDER / Path(name).with_suffix(".ipynb") for name in arguments.names] or sorted(FOLDER.glob("*.ipynb"))
    with tempfile.TemporaryDirectory(prefix="facelake-notebooks-") as scratch:
        prepare_environment(Path(scratch))
        for file in files:
            started = time.monotonic()
            try:
                notebook = run(file, Path(scratch))
            except CellExecutionError as error:
                print(f"{file.name}: {error}", file=sys.stderr)
                return 1
            if arguments.refresh:
                nbformat.write(notebook, file)
            print(f"{file.name}: {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
