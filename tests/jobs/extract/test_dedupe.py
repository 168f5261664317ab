"""--dedupe finds equal images wherever they are, also where a listing knows neither size nor etag."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.extract.dedupe import Dedupe
from pipeline.input.fetch import Fetch
from pipeline.input.listing import list_inputs
from pipeline.input.parquet_images import ParquetColumns
from pipeline.input.rules import Rules
from pipeline.output.duplicates import Duplicates
from pipeline.output.todo import TodoJoin
from pipeline.storage import open_storage
from pipeline.storage.uris import parse_input_uri

FILES = {"1.png": b"ann", "2.png": b"bob", "3.png": b"ann", "4.png": b"zoe, by size"}


def in_a_folder(tmp_path, request) -> str:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return str(tmp_path)


def in_parquet(tmp_path, request) -> str:
    """The last one but one is beside the file, which only names it."""
    (tmp_path / "3.png").write_bytes(FILES["3.png"])
    images = [{"bytes": None if name == "3.png" else content, "path": name} for name, content in FILES.items()]
    pq.write_table(pa.table({"image": images}), tmp_path / "in.parquet")
    return str(tmp_path / "in.parquet")


def on_the_web(tmp_path, request) -> str:
    web = request.getfixturevalue("web")
    web.files.update({f"/{name}": content for name, content in FILES.items()})
    (tmp_path / "list.txt").write_text("\n".join(f"{web.url}/{name}" for name in FILES))
    return str(tmp_path / "list.txt")


def in_google_storage(tmp_path, request) -> str:
    uri = request.getfixturevalue("google_uri")
    for name, content in FILES.items():
        request.getfixturevalue("bucket").put(name, content)
    return uri


@pytest.mark.parametrize("place", [in_a_folder, in_parquet, on_the_web, in_google_storage])
def test_equal_images_are_found(place, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    uri, options = parse_input_uri(place(inputs, request))
    rules = Rules(parquet=ParquetColumns("image", "image.path") if uri.endswith(".parquet") else None, options=options)
    with TodoJoin() as join:
        list_inputs([uri], join.add_listing, rules)
        join.compute(redo_changed=False)
        dedupe = Dedupe(
            open_storage(str(tmp_path / "out")), "run", "fingerprint", lambda: None, lambda images: images,
            Duplicates(join),
        )
        dedupe.find(Fetch(options, image_column="image"))
        left = [uri for table in join.rows(10) for uri in table["uri"].to_pylist()]
    assert dedupe.found == 1
    assert [uri[-5:] for uri in left] == ["1.png", "2.png", "4.png"]
