import json

import pyarrow as pa

from jobs.bench.__main__ import main
from pipeline.output import ledger
from pipeline.storage import open_storage


def test_an_output_gives_an_estimate_for_more_images(tmp_path, capsys):
    storage = open_storage(str(tmp_path))
    for i in range(2):     # two parts of 3 images and 6 faces
        images, faces = (pa.table({"uri": [f"{i}-{j}" for j in range(n)]}) for n in (3, 6))
        ledger.write_pair(storage, ledger.part_name("part", "r", [str(i)]), faces, images, check=lambda: None)
    run = {"throughput": {"images_per_s_after_start": None, "images_per_s": 10.0}}
    storage.write("run.json", json.dumps(run).encode())
    assert main(["scale", str(tmp_path), "--images", "36000000"]) == 0
    said = capsys.readouterr().out
    assert "36,000,000 images and 72,000,000 faces, as 6 images with 12 faces were" in said
    for line in ("| requests to list them | 36,000 |", "| parts of 2,000 images, each two files | 18,000 |",
                 "| images that one block of the to-do has | 3,600 |", "| machine hours at 10.0 images/s | 1,000 |"):
        assert line in said
    whole = pa.table({"uri": [f"{i}-{j}" for i in range(2) for j in range(3)]})
    assert f"| images/ (the ledger) | {len(ledger.to_parquet(whole)) / 6 * 36e6 / 1e9:,.0f} GB |" in said
