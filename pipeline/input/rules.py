"""Which names a listing skips, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.input.containers import ParquetColumns, is_container
from pipeline.input.names import MARKER, OTHER_EXTENSION, OUTPUT, Glob, may_be_image, skip_reason
from pipeline.storage.uris import FROM_ENVIRONMENT, StoreOptions

KeyRule = Callable[[str, int | None], str | None]   # of an object's key and size: why it is skipped; None if it is not


@dataclass(frozen=True, slots=True)
class Rules:
    """What is listed of an INPUT.

    output: the output's `Storage.root`. It is skipped where it is inside INPUT; "" for none.
    all_files: list hidden names and every extension. Rows of a manifest and single files are never skipped. Matches of
    a glob are not skipped by extension if the glob names one.
    parquet: where the images in Parquet files are. With None a single Parquet file is a manifest, and others are
    skipped.
    """

    output: str = ""
    all_files: bool = False
    parquet: ParquetColumns | None = None
    options: StoreOptions = FROM_ENVIRONMENT

    def skips(self, relative: str) -> str | None:
        """Why a name is skipped, by its path below INPUT; None if it is listed."""
        reason = skip_reason(relative, self.all_files)
        return None if reason == OTHER_EXTENSION and is_container(relative, self.parquet) else reason

    def skips_match(self, glob: Glob, name: str) -> str | None:
        """Why a name that the glob matches is skipped; None if it is listed."""
        if self.all_files or glob.names_extension or may_be_image(name) or is_container(name, self.parquet):
            return None
        return OTHER_EXTENSION

    def key_rule(self, bucket_uri: str, folder: str, glob: Glob | None = None) -> KeyRule:
        """The rule for the objects whose key begins with `folder`, or those that the glob matches."""
        output = self._output_in(bucket_uri, glob.beginning if glob else folder)

        def skips(key: str, size: int | None) -> str | None:
            if key.endswith("/") and not size:
                return MARKER
            if output and key.startswith(output):
                return OUTPUT
            return self.skips_match(glob, key) if glob else self.skips(key[len(folder) :])

        return skips

    def _output_in(self, bucket_uri: str, beginning: str) -> str | None:
        """What the keys of the output begin with, if the output is in this bucket and INPUT is not inside it."""
        if not self.output.startswith(bucket_uri + "/"):
            return None
        prefix = self.output.removeprefix(bucket_uri + "/") + "/"
        return prefix if prefix.startswith(beginning.rpartition("/")[0]) else None
