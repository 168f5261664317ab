"""Files that name faces, as users and other programs write them."""

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.options import ArgumentError
from jobs.people.face_files import FACE, read_face_file


def as_parquet(**columns):
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def as_pandas(**columns):
    out = io.BytesIO()
    pd.DataFrame(columns).to_parquet(out)
    return out.getvalue()


FILES = {
    "empty.csv": (b"uri,face_index,name\n", []),
    "one.csv": (b"uri,face_index,name\n/a.jpg,0,Ann\n", [("/a.jpg", 0, "Ann")]),
    "more columns.CSV": (
        b'\xef\xbb\xbfname,x,face_index,uri\r\nNULL,1,2,"/b, c.jpg"\r\n,z, 3,007\r\n',
        [("/b, c.jpg", 2, "NULL"), ("007", 3, "")],
    ),
    "empty.parquet": (as_parquet(uri=pa.array([], "str"), face_index=pa.array([], "i4"), name=pa.array([], "str")), []),
    "one.parquet": (as_parquet(name=["Ann", None], face_index=[0, 1], uri=["/a", "/b"], x=[1, 2]),
                    [("/a", 0, "Ann"), ("/b", 1, "")]),
    "pandas.PARQUET": (as_pandas(uri=pd.Categorical(["/a", "/a"]), face_index=[0.0, 1.0], name=[None, "Bob"]),
                       [("/a", 0, ""), ("/a", 1, "Bob")]),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_files_are_read_from_a_disk_and_from_a_bucket(name, where, tmp_path, request):
    content, rows = FILES[name]
    if where == "disk":
        place = str(tmp_path / name)
        (tmp_path / name).write_bytes(content)
    else:
        bucket = request.getfixturevalue("bucket")
        bucket.put(f"my files/{name}", content)
        place = f"{bucket.uri}/my files/{name}?endpoint_override={request.getfixturevalue('s3_endpoint')}"
    found = read_face_file(place, "name")
    assert found.schema == pa.schema([*FACE, ("name", pa.string())])
    assert [tuple(row.values()) for row in found.to_pylist()] == rows
    assert read_face_file(place).schema == FACE


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.csv", b"", "cannot be used: Empty CSV file; it must be a .csv or .parquet file with the columns uri, face_"),
    ("a.csv", b"uri;face_index\n/a;1\n", "cannot be used: it has no column uri, face_index;"),
    ("a.csv", b"uri,face_index\n/a,1,2\n", "cannot be used: "),
    ("a.csv", b"uri,face_index\n\xff,1\n", "cannot be used: "),
    ("a.csv", b"uri,face_index\n/a,\n", "has rows without uri or face_index; fill"),
    ("a.csv", b"uri,face_index\n,1\n", "has rows without uri or face_index; fill"),
    ("a.csv", b"uri,face_index\n/a,1.5\n", "face_index must be whole numbers"),
    ("a.csv", b"uri,face_index\n/a,99999999999\n", "face_index must be whole numbers"),
    ("a.parquet", b"", "cannot be used: "),
    ("a.parquet", FILES["one.parquet"][0][:-40], "cannot be used: "),
    ("a.parquet", as_parquet(uri=["/a"]), "cannot be used: it has no column face_index;"),
    ("a.parquet", as_parquet(uri=[["/a"]], face_index=[1]), "cannot be used: "),
    ("a.parquet", as_parquet(uri=["/a"], face_index=[None]), "has rows without uri or face_index; fill"),
    ("a.parquet", as_parquet(uri=["/a"], face_index=[0.5]), "face_index must be whole numbers"),
    ("a.parquet", as_parquet(uri=["/a"], face_index=["x"]), "face_index must be whole numbers"),
])
def test_what_names_no_faces_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArgumentError) as refused:
        read_face_file(str(tmp_path / name))
    assert message in str(refused.value) and str(tmp_path / name) in str(refused.value)


def test_what_is_not_there_is_refused(tmp_path, bucket, s3_endpoint):
    query = f"?endpoint_override={s3_endpoint}"
    for place, why in (
        (tmp_path / "gone.csv", "No such file or directory"), (tmp_path, "Is a directory"),
        (f"{bucket.uri}/gone.csv{query}", "Not Found"), (f"s3://no-such-bucket-here/a.csv{query}", "Not Found"),
    ):
        with pytest.raises(ArgumentError, match=f"cannot read .*: .*{why}.*; check the path"):
            read_face_file(str(place))
