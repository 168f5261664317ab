import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.pages.pictures import locate
from pipeline.batch import TodoRow
from pipeline.input.fetch import Fetch
from pipeline.input.parquet_images import ParquetColumns
from pipeline.storage.uris import FROM_ENVIRONMENT


def test_photos_in_tars_and_parquet_files_are_found_again(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for content in (b"one", b"two2"):
            member = tarfile.TarInfo(f"a b/{len(content)}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    pq.write_table(pa.table({"picture": [b"zero", b"first"], "name": ["z", "f#.tar#"]}), tmp_path / "p.parquet")
    uris = [f"{tmp_path}/s.tar#a b/4", f"{tmp_path}/p.parquet#f#.tar#", "/plain#.jpg", f"{tmp_path}/none.tar#x",
            f"{tmp_path}/s.tar#gone"]
    rows = locate(uris, ParquetColumns("picture", "name"), FROM_ENVIRONMENT)
    assert [row.uri for row in rows] == uris
    answers = Fetch(image_column="picture")(rows)
    assert [getattr(answer, "content", None) for answer in answers] == [b"two2", b"first", None, None, None]
    assert locate(uris[1:2], None, FROM_ENVIRONMENT) == [TodoRow(uris[1])]
