"""`jobs.bench pools`: the whole job in three layouts of pools."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

LAYOUTS = (
    "decode+detect+keypoint+align+embed",
    "decode/detect+keypoint+align+embed",
    "decode/detect/keypoint/align/embed",
)


def bench_pools(photos: str, device: str) -> None:
    """Print images per second of each layout. The start of Ray and of the models does not count."""
    print("| pools | images/s | against one pool |\n|---|---|---|")
    first = None
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "jobs.extract", photos, folder, "--pools", layout, "--device", device]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            rate = json.loads((Path(folder) / "run.json").read_text())["throughput"]["images_per_s_after_start"]
        first = first or rate
        print(f"| {layout} | {rate:.2f} | {rate / first:.2f} |")
