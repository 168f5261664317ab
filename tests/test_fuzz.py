"""Properties that hold for any input, tested with hypothesis. No input from outside raises an unexpected error."""

import bz2
import contextlib
import csv
import glob
import gzip
import io
import json
import lzma
import math
import os
import tarfile
import unicodedata
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from jobs.extract.options import argument_parser, read_config
from jobs.preview.__main__ import main as preview
from models.store import WeightsError, read_card, tensors_digest
from pipeline import geometry
from pipeline.batch import GOOD, Fetched, FetchFailure, Status, TodoRow
from pipeline.geometry import CROP_PX, EYES_MID_XY, AlignmentTemplate
from pipeline.input.containers import kind_at, list_members
from pipeline.input.fetch import Fetch
from pipeline.input.manifest import read_manifest
from pipeline.input.names import Glob, InputError
from pipeline.input.parquet_images import ParquetColumns, row_names
from pipeline.output import lease
from pipeline.schemas import LISTING
from pipeline.stages import align, headers
from pipeline.stages.codec import DecodeError
from pipeline.stages.image import decode_image
from pipeline.stages.operations import cut_chip
from pipeline.stages.pillow import prepare_pillow
from pipeline.storage import open_storage
from pipeline.storage.uris import StoreOptions, local_path, local_uri
from pipeline.text import printable
from tests.support import corpus
from tests.support.archives import tar, zipped

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]

MAX_PIXELS = 1_000_000


def fuzz(examples):
    """Settings: the same examples in every run, none stored, no time limit."""
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),         # the phase `explain` takes minutes
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


@pytest.fixture(scope="module", autouse=True)
def pillow():
    """Set Pillow up as the job does."""
    prepare_pillow()


# --- decode


def outcome(content, min_side_px=None):
    """Status, reason, format and pixels of a file. Any other error fails the test."""
    try:
        decoded = decode_image(content, max_pixels=MAX_PIXELS, min_side_px=corpus.least_side(min_side_px))
    except DecodeError as error:
        return error.status, error.reason, error.format, None
    width, height = decoded.header.decoded_wh
    assert decoded.pixels.shape == (height, width, 3) and decoded.pixels.dtype == np.uint8
    return Status.OK, None, decoded.header.format, decoded.pixels


def assert_known(content, min_side_px=None):
    """Check that the outcome is one of the few that its format has, and that it repeats."""
    first, again = (outcome(content, min_side_px) for _ in range(2))
    assert first[:3] == again[:3] and np.array_equal(first[3], again[3])
    status, reason, format, _ = first
    if not content:
        assert (status, reason) == (Status.UNREADABLE, "empty file")
    else:
        known = corpus.any_damage(format or "none")
        limits = {(state, text and text.replace(str(corpus.MAX_PIXELS), str(MAX_PIXELS))) for state, text in known}
        assert (status, reason) in limits


MAGIC = (
    b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\0\x20Exif\0\0", b"\x89PNG\r\n\x1a\n", b"GIF89a",
    b"BM" + bytes(12) + b"\x28\0\0\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
    b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0", b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
)


@fuzz(100)
@given(content=st.binary(max_size=200))
def test_any_bytes_get_a_known_outcome(content):
    assert_known(content)


@fuzz(300)
@given(magic=st.sampled_from(MAGIC), rest=st.binary(max_size=300))
def test_any_bytes_after_the_magic_bytes_of_a_format_get_a_known_outcome(magic, rest):
    assert_known(magic + rest)


EDITS = st.one_of(
    st.tuples(st.just("set"), st.floats(0, 1), st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("remove"), st.floats(0, 1), st.integers(1, 64)),
    st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 64)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.none()),
)


def edited(content, edits):
    """The file after some edits. Half of them are in the first 256 bytes, where headers are."""
    for kind, place, how in edits:
        at = int(2 * place * min(len(content), 256) if place < 0.5 else (2 * place - 1) * len(content))
        match kind:
            case "set":
                content = content[:at] + how + content[at + len(how) :]
            case "insert":
                content = content[:at] + how + content[at:]
            case "remove":
                content = content[:at] + content[at + how :]
            case "repeat":
                content = content[:at] + content[at : at + how] * 2 + content[at + how :]
            case "cut":
                content = content[:at]
    return content


@pytest.mark.parametrize("extension", corpus.small_files())
@fuzz(40)
@given(edits=st.lists(EDITS, min_size=1, max_size=3), min_side_px=st.sampled_from([None, 1, 16, 60]))
def test_a_file_with_edits_gets_a_known_outcome(extension, edits, min_side_px):
    assert_known(edited(corpus.small_files()[extension][1], edits), min_side_px)


@fuzz(150)
@given(extension=st.sampled_from([*corpus.small_files()]), edits=st.lists(EDITS, max_size=3))
def test_stripping_a_file_twice_changes_nothing_more(extension, edits):
    """A stripped file holds only the parts that make pixels. All of them are kept when it is read again."""
    content = edited(corpus.small_files()[extension][1], edits)
    for read in (headers.read_jpeg, headers.read_png, headers.read_tiff):
        read(content)
    if (jpeg := headers.read_jpeg(content)) and content.startswith(b"\xff\xd8"):
        again = headers.read_jpeg(jpeg.stripped + content[jpeg.data_start :])
        assert again.stripped == jpeg.stripped
        assert (again.process, again.precision_bits, again.components, again.scans) == (
            jpeg.process, jpeg.precision_bits, jpeg.components, jpeg.scans)
    png = headers.read_png(content)
    if not png.cut_off:
        assert headers.read_png(png.stripped) == headers.PngParts(png.stripped, None, cut_off=False)


# --- geometry

COORDINATES = st.floats(-1e5, 1e5, width=32)
SIDES = st.floats(2**-10, 1e5, width=32)
POINTS = st.tuples(COORDINATES, COORDINATES).map(np.array)
BOXES = st.tuples(COORDINATES, COORDINATES, SIDES, SIDES).map(
    lambda box: np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]], np.float64)
)
TEMPLATE = AlignmentTemplate()


@fuzz(300)
@given(angle=st.floats(-10, 10), scale=st.floats(1e-3, 1e3), shift=POINTS, point=POINTS)
def test_a_transform_and_its_inverse_cancel_out(angle, scale, shift, point):
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    matrix = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])
    back = geometry.compose(geometry.invert(matrix), matrix)
    size = max(1.0, np.abs(point).max(), np.abs(shift).max() / scale)
    assert np.allclose(geometry.transform(back, point[None])[0], point, atol=1e-9 * size)


@fuzz(300)
@given(width=st.integers(1, 60_000), height=st.integers(1, 60_000), turn=st.sampled_from([0, 90, 180, 270]), box=BOXES)
def test_a_quarter_turn_keeps_the_sides_of_a_box(width, height, turn, box):
    turned = geometry.transform_boxes(geometry.quarter_turn(turn, width, height), box[None])[0]
    sides, kept = (b[2:] - b[:2] for b in (turned.astype(np.float64), box))
    expected = kept[::-1] if turn in (90, 270) else kept
    assert np.allclose(sides, expected, atol=0.05) and (sides >= 0).all()      # float32 of 160,000 px is off by 1/64


@fuzz(150)
@given(
    width=st.integers(1, 90), height=st.integers(1, 90), fractions=st.tuples(*[st.floats(0, 1)] * 4),
    at=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_points_of_a_chip_are_points_of_the_image(width, height, fractions, at):
    """Any point of the box has the same colour in the image and in the chip, and can be mapped there and back."""
    (x1, x2), (y1, y2) = sorted(fractions[:2]), sorted(fractions[2:])
    box = np.array([x1 * width, y1 * height, x2 * width, y2 * height], np.float32)
    assume(min(box[2] - box[0], box[3] - box[1]) > 0)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    pixels.flags.writeable = False
    chip, chip_to_image = cut_chip(pixels, box)
    side = chip.shape[0]
    assert chip.shape == (side, side, 3) and 1 <= side <= geometry.CHIP_MAX_PX
    point = np.array([[box[0] + at[0] * (box[2] - box[0]), box[1] + at[1] * (box[3] - box[1])]])
    in_chip = geometry.transform(geometry.invert(chip_to_image), point)
    assert np.allclose(geometry.transform(chip_to_image, in_chip), point, atol=1e-6)
    column, row = np.clip(np.floor(in_chip[0]), 0, side - 1).astype(int)
    here = np.clip(point[0], 0.5, (width - 0.5, height - 0.5)) - 0.5
    assert np.abs(chip[row, column, :2] - here).max() <= 1.0 + 1e-3


@fuzz(300)
@given(box=BOXES, left=POINTS, right=POINTS)
def test_alignment_makes_the_eyes_level_and_their_midpoint_fixed(box, left, right):
    distance = math.dist(left, right)
    assume(distance > 1e-3)
    matrix = geometry.align_matrix(box, left, right, TEMPLATE)
    assert np.isfinite(matrix).all()
    eyes = geometry.transform(matrix, np.stack([left, right]))
    off = 1e-9 * (1 + np.abs(matrix).max() * max(np.abs(left).max(), np.abs(right).max(), 1))
    assert abs(eyes[0, 1] - eyes[1, 1]) <= off and eyes[0, 0] < eyes[1, 0] + off
    assert np.allclose(eyes.mean(axis=0), EYES_MID_XY, atol=off)
    assert np.isclose(geometry.turn_deg(matrix), geometry.roll_deg(left, right), atol=1e-6) or distance < 1


@fuzz(300)
@given(left=POINTS, right=POINTS)
def test_roll_is_above_minus_180_and_at_most_180(left, right):
    assert -180 < float(geometry.roll_deg(left, right)) <= 180
    assert -180 < float(geometry.roll_deg(left, left - np.array([1.0, -0.0]))) <= 180


@fuzz(150)
@given(
    box=BOXES,
    eyes=st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=12, max_size=12),
    side=st.integers(1, 256),
)
def test_any_eyes_give_a_crop_and_a_roll(box, eyes, side):
    """Also NaN, infinite, far away, or all at one point. The crop then follows the box, and nothing is NaN."""
    chip = np.full((side, side, 3), 77, np.uint8)
    chip.flags.writeable = False
    left, top, length = geometry.chip_square(box)
    chip_to_image = geometry.scale_shift((length / side, length / side), (left, top))
    with np.errstate(all="ignore"):
        face = align.align_chip(chip, chip_to_image, box, np.array(eyes, np.float32), TEMPLATE)
    assert face.crop.shape == (CROP_PX, CROP_PX, 3) and (face.crop == 77).all()
    assert -180 < face.roll_deg <= 180
    assert math.isfinite(align.sharpness(face.crop))


# --- names

PARTS = st.text("ab.", min_size=1, max_size=3).filter(lambda part: part not in (".", ".."))
PATTERN_PARTS = st.one_of(st.just("**"), st.text("ab.*?[!]", min_size=1, max_size=4).filter(
    lambda part: part not in (".", "..") and "**" not in part))


@fuzz(300)
@given(name=st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_any_local_path_follows_from_its_uri(name):
    path = os.fsdecode(b"/" + name)
    uri = local_uri(path)
    uri.encode()                                   # a table takes only UTF-8
    assert local_path(uri) == path


@fuzz(120)
@given(
    files=st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=6),
    pattern=st.lists(PATTERN_PARTS, min_size=1, max_size=3),
    hidden=st.booleans(),
)
def test_globs_match_as_those_of_python(tmp_path_factory, files, pattern, hidden):
    root = tmp_path_factory.mktemp("tree")
    for parts in files:
        path = root.joinpath(*parts)
        if not any(parent.is_file() for parent in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    tree = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    found = glob.glob("/".join(pattern), root_dir=root, recursive=True, include_hidden=hidden)   # noqa: PTH207
    ours = Glob(f"/r/{'/'.join(pattern)}", hidden=hidden)
    matched = [path for path in tree if ours.matches(f"/r/{path}")]
    # Python returns "a/" for a/**, even if a is a file.
    assert matched == sorted({path for path in found if (root / path).is_file() and not path.endswith("/")})
    for path in matched:                           # every folder above a match is searched
        folders = Path(path).parents
        assert all(ours.may_match_below(f"/r/{folder}".removesuffix("/.")) for folder in folders)


@fuzz(300)
@given(text=st.text(max_size=60))
def test_printable_text_moves_no_cursor(text):
    shown, moving = printable(text), {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not {unicodedata.category(letter) for letter in shown} & moving
    assert (shown == text) == (not {unicodedata.category(letter) for letter in text} & moving)


# --- manifests


def manifest(folder, name, content):
    """The URIs in a manifest; None if it is refused."""
    path = folder / name
    path.write_bytes(content)
    try:
        tables = [table for table, _ in read_manifest(str(path), StoreOptions())]
    except InputError as error:
        assert "\n" not in str(error) and str(error)
        return None
    table = pa.concat_tables([LISTING.empty_table(), *tables])
    table.validate(full=True)
    assert table.schema == LISTING and not table["uri"].null_count
    return table["uri"].to_pylist()


@pytest.mark.parametrize("name", ["m.txt", "m.csv", "m.tsv", "m.json", "m.jsonl", "m.csv.gz", "m.parquet"])
@fuzz(120)
@given(content=st.one_of(
    st.binary(max_size=200),
    st.text("uri,sizeag\"'\t\n\r /:.s3\0é", max_size=80).map(str.encode),
    st.text("uri;=\"#\\|\t\n\ré", max_size=60).map(lambda text: text.encode("utf-16")),
    st.text("[]{}:,\"uri 1.e\n\\", max_size=60).map(str.encode),
    st.binary(max_size=60).map(lambda rest: b"uri,size,mtime\n" + rest),
    st.binary(max_size=60).map(gzip.compress),
    st.binary(max_size=60).map(lambda middle: b"PAR1" + middle + b"PAR1"),
))
def test_any_bytes_are_a_manifest_or_refused(tmp_path, name, content):
    manifest(tmp_path, name, content)


def parquet_manifest(uris, **columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"uri": pa.array(uris, pa.string()), **columns}), buffer)
    return buffer.getvalue()


SOUND = parquet_manifest(["/a.jpg", None, "b.jpg"], size=[1, None, 3])


@fuzz(150)
@given(edits=st.lists(EDITS, min_size=1, max_size=3))
def test_a_parquet_manifest_with_edits_is_read_or_refused(tmp_path, edits):
    manifest(tmp_path, "m.parquet", edited(SOUND, edits))


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=1, max_size=20)


@fuzz(120)
@given(names=st.lists(TEXTS, min_size=1, max_size=5))
def test_names_written_to_a_manifest_are_read_back(tmp_path, names):
    paths = [os.path.abspath(f"/folder/{name}") for name in names]   # noqa: PTH100
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["uri"], *([path] for path in paths)])
    assert manifest(tmp_path, "m.csv", text.getvalue().encode()) == paths
    assert manifest(tmp_path, "m.csv", text.getvalue().encode("utf-16")) == paths
    assert manifest(tmp_path, "m.json", json.dumps([{"path": path, "size": "x"} for path in paths]).encode()) == paths
    assert manifest(tmp_path, "m.jsonl", "\n".join(map(json.dumps, paths)).encode()) == paths
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([["who", "file_name"], *(["x;y", path] for path in paths)])
    assert manifest(tmp_path, "m.csv.gz", gzip.compress(text.getvalue().encode())) == paths
    assert manifest(tmp_path, "m.txt", "\n".join(["uri", *paths]).encode()) == paths
    assert manifest(tmp_path, "m.parquet", parquet_manifest(paths)) == paths


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 10, 13} & {*name})


@fuzz(100)
@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_any_name_in_a_text_manifest_becomes_the_uri_of_a_listing(tmp_path, names):
    lines = [b"/folder/x" + name for name in names]
    assert manifest(tmp_path, "m.txt", b"uri\n" + b"\n".join(lines)) == [
        local_uri(os.path.abspath(os.fsdecode(line))) for line in lines   # noqa: PTH100
    ]


# --- archives and Parquet files of images

PHOTOS = [(f"sub/{i}.jpg", bytes([i]) * (i * 300)) for i in range(6)]


def parquet_of(photos):
    buffer = io.BytesIO()
    images = [{"bytes": content, "path": name} for name, content in photos]
    pq.write_table(pa.table({"image": images}), buffer, row_group_size=4, compression="none")
    return buffer.getvalue()


CONTAINERS = {
    "a.tar": tar(*PHOTOS), "gnu.tar": tar(*PHOTOS, format=tarfile.GNU_FORMAT), "a.tgz": gzip.compress(tar(*PHOTOS)),
    "a.tar.bz2": bz2.compress(tar(*PHOTOS)), "a.tar.xz": lzma.compress(tar(*PHOTOS)),
    "a.tar.zst": pa.compress(tar(*PHOTOS), codec="zstd", asbytes=True), "a.zip": zipped(*PHOTOS),
    "stored.zip": zipped(*PHOTOS, method=zipfile.ZIP_STORED), "a.parquet": parquet_of(PHOTOS),
}
COLUMNS = ParquetColumns("image", "image.path")


def contents_of(path):
    """The content of each image of a container, or why it has none, by its uri; None for the container's own row.

    An InputError gives nothing. Any other error fails the test.
    """
    container = {"uri": str(path), "container": None, "offset": None, "size": 1, "etag": None, "mtime": None}
    try:
        members = list_members(container, StoreOptions(), COLUMNS, lambda name: None)
    except InputError as error:
        assert "\n" not in str(error)
        return None, "refused"
    members.rows.validate(full=True)
    rows = [TodoRow(**row) for row in members.rows.to_pylist()]
    answers = list(Fetch(image_column="image", max_file_bytes=10_000)(rows))
    found = {}
    for row, answer in zip(rows, answers, strict=True):
        assert row.uri not in found
        if isinstance(answer, FetchFailure):
            assert answer.error and "\n" not in answer.error and answer.status not in GOOD
        found[row.uri] = answer.content if isinstance(answer, Fetched) else answer
    assert (str(path) in found) == bool(members.damage)
    return found, members.damage


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_sound_container_gives_its_images(tmp_path, name):
    (tmp_path / name).write_bytes(CONTAINERS[name])
    expected = {f"{tmp_path / name}#{member}": content for member, content in PHOTOS}
    assert contents_of(tmp_path / name) == (expected, None)


@pytest.mark.parametrize("name", CONTAINERS)
@fuzz(60)
@given(edits=st.lists(EDITS, min_size=1, max_size=3))
def test_a_container_with_edits_gives_rows_or_is_refused(tmp_path, name, edits):
    (tmp_path / name).write_bytes(edited(CONTAINERS[name], edits))
    contents_of(tmp_path / name)


@pytest.mark.parametrize("name", CONTAINERS)
@fuzz(40)
@given(end=st.floats(0, 1))
def test_a_container_that_is_cut_off_loses_no_image_in_silence(tmp_path, name, end):
    whole = CONTAINERS[name]
    (tmp_path / name).write_bytes(whole[: int(end * (len(whole) - 1))])
    found, damage = contents_of(tmp_path / name)
    if not damage:        # only what comes after the last image is missing
        assert list(found.values()) == [content for _, content in PHOTOS]
    elif damage != "refused":
        for member, content in PHOTOS:      # what is listed before the damage is right, or says that it is not
            got = found.get(f"{tmp_path / name}#{member}", content)
            assert got == content or isinstance(got, FetchFailure)


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.tgz", "x.parquet"])
@fuzz(100)
@given(magic=st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08\0", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd",
                              b"\x50\x2a\x4d\x18", b"PAR1", b"7z\xbc\xaf\x27\x1c", bytes(257) + b"ustar\x0000"]),
       rest=st.binary(max_size=600))
def test_any_bytes_are_a_container_or_damaged(tmp_path, name, magic, rest):
    path = tmp_path / name
    path.write_bytes(magic + rest)
    contents_of(path)
    with contextlib.suppress(InputError):
        kind_at(str(path), StoreOptions())


@fuzz(100)
@given(names=st.lists(st.none() | TEXTS | st.sampled_from(["a", "a~1", "a~2", "0", "1", "2"]), max_size=8))
def test_every_row_of_a_parquet_file_has_a_uri_of_its_own(names):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"1"] * len(names), "name": pa.array(names, pa.string())}), buffer)
    found, renamed = row_names(buffer, "x", ParquetColumns("image", "name"))
    assert len(found) == len(set(found)) == len(names)
    if not renamed:
        assert found == [str(i) if name is None else name for i, name in enumerate(names)]


# --- configuration and small JSON files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OPTIONS = st.sampled_from(
    ["min-score", "max_faces", "device", "rotate-retry", "pools", "help", "config", "batch-mb", "x"]
)
RUN_KEYS = st.sampled_from(["run_id", "finished", "settings", "alignment", "models", "output", "throughput"])


@fuzz(200)
@given(content=st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
    JSON.map(lambda value: yaml.safe_dump(value).encode()),
    st.dictionaries(OPTIONS, JSON, max_size=3).map(lambda value: yaml.safe_dump(value).encode()),
    st.just(b"[" * 1500),
    st.just(b"x: &a [" + b"0" * 99 + b"]\n" + b"".join(b"x: &%c [*%c, *%c]\n" % (c + 1, c, c) for c in range(97, 121))
            + b"min-score: *y\n"),                    # would expand to sixteen million items
))
def test_any_configuration_gives_options_or_is_refused(tmp_path, capsys, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    parser = argument_parser()
    try:
        options = read_config(str(path), parser)
    except SystemExit as end:
        printed = capsys.readouterr().err
        assert end.code == 2 and "--config" in printed and "Traceback" not in printed
    else:
        assert options.keys() <= {action.dest for action in parser._actions}
        assert all(isinstance(value, str | int | float) for value in options.values())
        parser.set_defaults(**options)
        parser.parse_args(["in", "out"])


HOLDER = lease.Holder("run", "host", "boot", 1, 2, "2026-01-01T00:00:00+00:00", "command")


@fuzz(200)
@given(content=st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from([*asdict(HOLDER)]), JSON).map(
        lambda change: json.dumps(asdict(HOLDER) | dict([change])).encode()),
    st.just(b"[" * 100_000),
))
def test_any_lease_gives_a_holder_or_none(content):
    holder = lease.Holder.from_json(content)
    if holder is not None:
        assert isinstance(lease.process_lives(holder), bool) and math.isfinite(lease._age_s(holder))
        assert lease.Holder.from_json(holder.to_json()) == holder


CARD = {
    "name": "x", "role": "detector", "architecture": {"network": "yolov8n"},
    "preprocessing": {"input_px": 640, "mean": [0], "std": [1], "colour_order": "RGB"}, "licence": "none",
    "commercial_use": False, "started_from": "", "data": [{"name": "a", "licence": "b"}], "metrics": {}, "command": "",
    "sha256": "0" * 64, "tensors_sha256": "0" * 64,
}


@fuzz(200)
@given(content=st.one_of(
    JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from([*CARD]), JSON).map(lambda change: json.dumps(CARD | dict([change])).encode()),
    st.just(b"[" * 100_000),
))
def test_any_card_is_refused_with_one_line(tmp_path, content):
    """Also a valid one, because its weights are missing."""
    (tmp_path / "detector-x.json").write_bytes(content)
    with pytest.raises(WeightsError) as refused:
        read_card(tmp_path, "detector", "x")
    assert "\n" not in str(refused.value)


@fuzz(200)
@given(header=st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.text(max_size=3), st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}))
    .map(lambda value: json.dumps(value).encode()),
    st.just(b"[" * 100_000),
), length=st.none() | st.integers(0, 2**64 - 1), rest=st.binary(max_size=20))
def test_any_bytes_have_a_tensors_digest_or_are_refused(header, length, rest):
    content = (len(header) if length is None else length).to_bytes(8, "little") + header + rest
    try:
        assert len(tensors_digest(content)) == 64
    except WeightsError as error:
        assert "not a safetensors file" in str(error)


@fuzz(150)
@given(content=st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(RUN_KEYS, JSON).map(lambda value: json.dumps(value).encode()),
    st.just(b"[" * 100_000),
))
def test_any_run_json_of_an_output_without_tables_is_refused(tmp_path, capsys, content):
    storage = open_storage(str(tmp_path / "out"))
    storage.write("run.json", content)
    code = preview([str(tmp_path / "out"), "--html", str(tmp_path / "p.html")])
    printed = capsys.readouterr().err
    assert code == 2 and printed.startswith("preview: ") and printed.count("\n") == 1
