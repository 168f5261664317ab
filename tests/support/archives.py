"""Archives and Parquet files of images, made in code."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def tar(*members: tarfile.TarInfo | tuple[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of members, each (name, content) or a TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    """A member that is a link to a.jpg, or a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "a.jpg"
    return info


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of members, each (name, content)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def write_images(path: Path, values: Any, type: pa.DataType | None = None, rows: int = 3, **columns: Any) -> str:
    """Write a Parquet file with a column `image` in row groups of `rows`; returns its path."""
    table = pa.table({"image": pa.array(values, type or pa.binary()), **columns})
    pq.write_table(table, path, row_group_size=rows)
    return str(path)
