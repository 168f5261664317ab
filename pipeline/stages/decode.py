"""The first stage: fetch image files and decode them, in bounded memory; every to-do row gives one record."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from pipeline.batch import NO_PIXELS, Fetched, FetchFailure, ImageBatch, ImageRecord, Pixels, Status, TodoRow
from pipeline.errors import EnvironmentFault
from pipeline.stages.codec import DecodeError
from pipeline.stages.headers import strip_metadata
from pipeline.stages.image import Header, decode_pixels, is_sound_jpeg, read_header
from pipeline.stages.jpeg import MinSide
from pipeline.stages.pillow import prepare_pillow

FetchRows = Callable[[Sequence[TodoRow]], Generator[Fetched | FetchFailure, None, None]]
"""Gives one answer per to-do row, in order. Closing the generator stops its requests."""

DecodeOnDevice = Callable[[Sequence[bytes], Sequence[int | None]], Sequence[Pixels | None]]
"""From sound JPEGs of `Header.for_device` and their EXIF orientations to upright pixels in a GPU's memory.

None for each file that it cannot decode.
"""

_MAX_SIDE_PX = 2**31 - 1          # the columns width and height are int32; a TIFF can claim more


class MemoryGate:
    """Lets threads in while their total need is within a limit; a thread that needs more enters alone."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._held_bytes = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, n_bytes: int) -> Iterator[None]:
        """Wait until n_bytes are free, and hold them inside the `with` block."""
        self.take(n_bytes)
        try:
            yield
        finally:
            self.give_back(n_bytes)

    def take(self, n_bytes: int) -> None:
        """Wait until n_bytes are free, and hold them until `give_back`, which any thread may call."""
        with self._changed:
            self._changed.wait_for(lambda: self._held_bytes == 0 or self._held_bytes + n_bytes <= self.limit_bytes)
            self._held_bytes += n_bytes

    def give_back(self, n_bytes: int) -> None:
        """Free what was taken."""
        with self._changed:
            self._held_bytes -= n_bytes
            self._changed.notify_all()


class _ImageFile(NamedTuple):
    """A fetched file: its record, its bytes and its header. Without a header there is nothing to decode."""

    record: ImageRecord
    content: bytes | None
    header: Header | None


class _ForDevice(NamedTuple):
    """A sound JPEG that the GPU may decode, without the EXIF orientation, which it would apply."""

    content: bytes
    header: Header


class Decode:
    """Decode the images of to-do rows with threads, one sub-batch ahead of the caller (prefetch).

    A sub-batch has at most batch_images images, and at most batch_bytes of files and pixels together; a larger image
    is a sub-batch of its own. Memory holds the sub-batch of the caller, the next one, and the working memory of the
    decoders: at most batch_bytes, or that of one image if it needs more.
    With decode_on_device common JPEGs are only checked here, and decoded by the GPU, a sub-batch at a time.
    The watchdog reads `files_read`, the number of files that have arrived, and `reading`, the uri of the file that the
    stage waits for.
    """

    def __init__(
        self,
        fetch: FetchRows,
        *,
        max_pixels: int,
        min_side_px: MinSide | None,
        threads: int,
        batch_images: int,
        batch_bytes: int,
        decode_on_device: DecodeOnDevice | None = None,
    ) -> None:
        self._fetch = fetch
        self._max_pixels = max_pixels
        self._min_side_px = min_side_px
        self._threads = threads
        self._batch_images = batch_images
        self._batch_bytes = batch_bytes
        self._decode_on_device = decode_on_device
        self.files_read = 0
        self.reading: str | None = None
        prepare_pillow()

    def __call__(self, rows: Sequence[TodoRow]) -> Generator[ImageBatch, None, None]:
        """One record per row, in the order of the rows. Closing the generator ends its threads."""
        gate = MemoryGate(self._batch_bytes)

        def next_batch() -> list[ImageBatch]:
            _, files = next(batches, (0, ()))
            # Each file is decoded as soon as it has arrived, and freed after that.
            futures = [threads.submit(self._decode_one, file, gate) for _, file in files]
            if not futures:
                return []
            images = self._decoded_on_device([future.result() for future in futures], gate, threads)
            return [ImageBatch(tuple(record for record, _ in images), tuple(pixels for _, pixels in images))]

        with (
            closing(self._numbered(rows)) as numbered,
            ThreadPoolExecutor(self._threads, "decode") as threads,
            ThreadPoolExecutor(1, "decode-ahead") as ahead,
        ):
            batches = groupby(numbered, key=lambda each: each[0])
            try:
                pending = ahead.submit(next_batch)
                while held := pending.result():
                    pending = ahead.submit(next_batch)
                    yield held.pop()      # no name of it here: the caller frees its pixels after their last use
            finally:
                threads.shutdown(wait=False, cancel_futures=True)     # cancel the prefetch if closed early

    def _numbered(self, rows: Sequence[TodoRow]) -> Generator[tuple[int, _ImageFile], None, None]:
        """The files as they arrive, each with the number of its sub-batch: the sizes in the headers decide."""
        number = images = held_bytes = 0
        with closing(self._fetch(rows)) as answers:
            for row, answer in zip(self._noting_reads(rows), answers, strict=True):
                self.files_read += 1
                file = self._read_header(row, answer)
                n_bytes = len(file.content or b"") + (file.header.decoded_bytes if file.header else 0)
                if images and (images == self._batch_images or held_bytes + n_bytes > self._batch_bytes):
                    number, images, held_bytes = number + 1, 0, 0
                images, held_bytes = images + 1, held_bytes + n_bytes
                yield number, file

    def _noting_reads(self, rows: Sequence[TodoRow]) -> Generator[TodoRow, None, None]:
        for row in rows:
            self.reading = row.uri
            yield row
        self.reading = None

    def _read_header(self, row: TodoRow, answer: Fetched | FetchFailure) -> _ImageFile:
        record = ImageRecord(row.uri, etag=row.etag, mtime=row.mtime, file_bytes=row.size)
        if isinstance(answer, FetchFailure):
            return _ImageFile(replace(record, status=answer.status, error=answer.error), None, None)
        content = answer.content
        # The listing's etag and mtime win: a file that changed after the listing must count as changed next time.
        record = replace(
            record, etag=row.etag or answer.etag, mtime=row.mtime or answer.mtime,
            file_bytes=answer.file_bytes or len(content),
        )
        try:
            header = read_header(content, max_pixels=self._max_pixels, min_side_px=self._min_side_px)
        except Exception as error:        # no content if only the beginning was fetched: its sha256 would be wrong
            return _ImageFile(_failed(record, error), None if answer.file_bytes else content, None)
        record = replace(
            record, width=header.width, height=header.height, format=header.format,
            exif_orientation=header.exif_orientation, decode_scale=header.decode_scale,
        )
        return _ImageFile(record, content, header)

    def _decode_one(self, file: _ImageFile, gate: MemoryGate) -> tuple[ImageRecord, Pixels | _ForDevice]:
        if file.content is None:
            return file.record, NO_PIXELS
        record = replace(file.record, sha256=hashlib.sha256(file.content).hexdigest())
        if file.header is None:
            return record, NO_PIXELS
        try:
            if self._decode_on_device and file.header.for_device and is_sound_jpeg(file.content):
                return record, _ForDevice(strip_metadata(file.content, "jpeg"), file.header)
        except Exception as error:
            return _failed(record, error), NO_PIXELS
        return self._decode_here(record, file.content, file.header, gate)

    def _decode_here(
        self, record: ImageRecord, content: bytes, header: Header, gate: MemoryGate
    ) -> tuple[ImageRecord, Pixels]:
        try:
            with gate.hold(header.work_bytes):
                return record, decode_pixels(content, header)
        except Exception as error:
            return _failed(record, error), NO_PIXELS

    def _decoded_on_device(
        self, images: Sequence[tuple[ImageRecord, Pixels | _ForDevice]], gate: MemoryGate, threads: ThreadPoolExecutor
    ) -> list[tuple[ImageRecord, Pixels]]:
        """The images with their pixels; those for the GPU are decoded there, or here where it cannot."""
        waiting = [each for _, each in images if isinstance(each, _ForDevice)]
        if not waiting or not self._decode_on_device:
            return list(images)
        contents, headers = zip(*waiting, strict=True)
        decoded = iter(self._decode_on_device(contents, [header.exif_orientation for header in headers]))
        finished = list[tuple[ImageRecord, Pixels] | Future[tuple[ImageRecord, Pixels]]]()
        for record, each in images:
            pixels = next(decoded) if isinstance(each, _ForDevice) else each
            if pixels is None:
                finished.append(threads.submit(self._decode_here, record, each.content, each.header, gate))
            else:
                finished.append((record, pixels))
        return [each.result() if isinstance(each, Future) else each for each in finished]


def _failed(record: ImageRecord, error: Exception) -> ImageRecord:
    """The record of an image that could not be decoded; an error of ours gives the status `failed`.

    Raises EnvironmentFault where no image is at fault, such as a full disk for temporary files.
    """
    if fault := EnvironmentFault.of(error):
        raise fault from error
    if not isinstance(error, DecodeError):
        reason = " ".join(str(error).split())[:300]
        return replace(record, status=Status.FAILED, error=f"decode: {type(error).__name__}: {reason}")
    record = replace(record, status=error.status, error=error.reason, format=error.format or record.format)
    if error.size_wh and max(error.size_wh) <= _MAX_SIDE_PX:
        record = replace(record, width=error.size_wh[0], height=error.size_wh[1])
    return record
