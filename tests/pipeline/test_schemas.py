from datetime import UTC, datetime

import pyarrow as pa
import pytest

from pipeline.batch import ImageRecord, Status
from pipeline.schemas import IMAGE_RECORD, IMAGES, faces_schema, records_to_table, table_to_records

FULL = ImageRecord(
    "s3://bucket/a.jpg", Status.OK, None, 640, 480, "jpeg", 6, 90, 0.5, 2, 3, False, 12_345, "etag",
    datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), "ab" * 32,
)
BROKEN = ImageRecord("b.png", Status.UNREADABLE, "PNG: damaged pixels")


@pytest.mark.parametrize("records", [(), (FULL,), (BROKEN, FULL)])
def test_records_survive_the_table(records):
    table = records_to_table(records)
    assert table.schema == IMAGE_RECORD
    assert table_to_records(table) == records
    assert table_to_records(table.append_column("more", pa.array([0] * len(records)))) == records


def test_a_row_of_images_is_a_record_and_its_run():
    assert IMAGES.names == [*IMAGE_RECORD.names, "run_id"]


@pytest.mark.parametrize(("dtype", "arrow_type"), [("float32", pa.float32()), ("float16", pa.float16())])
def test_embeddings_have_a_fixed_size(dtype, arrow_type):
    assert faces_schema(512, dtype).field("embedding").type == pa.list_(arrow_type, 512)
    assert faces_schema(512, dtype).field("eye_points").type == pa.list_(pa.float32(), 24)
