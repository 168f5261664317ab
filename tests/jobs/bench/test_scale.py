import json

import pyarrow as pa
import pytest

from jobs.bench import __main__ as bench
from jobs.bench import scale as bench_scale
from pipeline.output import ledger
from pipeline.stages.image import decode_image
from pipeline.storage import open_storage


def test_a_simulated_bucket_is_listed_whole(capsys):
    assert bench.main(["manifest", "--keys", "2500", "--threads", "2", "--latency-ms", "0"]) == 0
    assert "exit code 0, 2,500 rows of 2,500 keys in 1 parts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("after", "expected"),
    [("", range(0, 5)), ("photos/", range(0, 5)), (bench_scale._simulated_key(7), range(8, 10)), ("q", range(10, 10))],
)
def test_a_simulated_bucket_goes_on_after_any_key(after, expected):
    assert bench_scale._simulated_keys(f"https://s3/b?max-keys=5&start-after={after}", 10) == expected


def test_the_grey_pixel_is_one():
    assert decode_image(bench_scale.GREY_PNG, max_pixels=1, min_side_px=None).pixels.shape == (1, 1, 3)


def test_what_images_come_to_is_reckoned_from_an_output(tmp_path, capsys):
    storage = open_storage(str(tmp_path))
    for i in range(2):     # two parts of 3 images and 6 faces
        images, faces = (pa.table({"uri": [f"{i}-{j}" for j in range(n)]}) for n in (3, 6))
        ledger.write_pair(storage, ledger.part_name("part", "r", [str(i)]), faces, images, check=lambda: None)
    run = {"throughput": {"images_per_s_after_start": None, "images_per_s": 10.0}}
    storage.write("run.json", json.dumps(run).encode())
    assert bench.main(["scale", str(tmp_path), "--images", "36000000"]) == 0
    said = capsys.readouterr().out
    assert "36,000,000 images and 72,000,000 faces, as 6 images with 12 faces were" in said
    for line in ("| requests to list them | 36,000 |", "| parts of 2,000 images, each two files | 18,000 |",
                 "| images that one block of the to-do has | 3,600 |", "| machine hours at 10.0 images/s | 1,000 |"):
        assert line in said
    whole = pa.table({"uri": [f"{i}-{j}" for i in range(2) for j in range(3)]})
    assert f"| images/ (the ledger) | {len(ledger.to_parquet(whole)) / 6 * 36e6 / 1e9:,.0f} GB |" in said
