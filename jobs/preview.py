"""Write one self-contained HTML page that shows photos of an output, their faces, and each face before and after
alignment: `python -m jobs.preview OUTPUT [--images N] [--html FILE]`.
"""

from __future__ import annotations

import argparse
import base64
import json
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from pipeline import geometry
from pipeline.batch import GOOD, FetchFailure, Status, TodoRow
from pipeline.errors import UserError
from pipeline.geometry import AlignmentTemplate
from pipeline.input.containers import ParquetColumns, is_container, list_members
from pipeline.input.fetch import Fetch
from pipeline.output.ledger import committed_parts
from pipeline.schemas import LISTING
from pipeline.settings import RowSettings
from pipeline.stages.align import align_chip
from pipeline.stages.decode import DecodeError, decode_image, prepare_pillow
from pipeline.stages.detect import cut_chip
from pipeline.storage import Storage, open_storage
from pipeline.storage.uris import StoreOptions, parse_input_uri
from pipeline.text import printable

MAX_IMAGES = 60
MAX_FACES_OF_A_PHOTO = 40         # shown one by one; boxes are drawn for all
MAX_FAILURES = 200
_MEMBER = re.compile(r"(.*?\.(?:tar|parquet))#", re.IGNORECASE | re.DOTALL)
PHOTO_PX = 1000                   # longest side

Row = Mapping[str, Any]


class PreviewError(UserError):
    """There is nothing to show; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the page takes of run.json. models: role, identity and licence; counts: of "images" and of every status."""

    run_id: str
    finished: str
    settings: RowSettings
    template: AlignmentTemplate
    models: Sequence[tuple[str, str, str]]
    counts: Mapping[str, int]
    images_per_s: float | None
    parquet: ParquetColumns | None       # where images of Parquet files are


@dataclass(frozen=True, slots=True)
class FaceView:
    """One face as it is shown: its row, its eye points as fractions of its chip (12, 2), and its pictures as JPEG."""

    row: Row
    eyes_in_chip: np.ndarray
    chip_jpeg: bytes
    crop_jpeg: bytes


@dataclass(frozen=True, slots=True)
class PhotoView:
    """One photo as it is shown. note: why it is not, where its file cannot be read any more."""

    record: Row
    faces: Sequence[Row]
    photo_jpeg: bytes = b""
    face_views: Sequence[FaceView] = ()
    note: str = ""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.preview", description=__doc__.replace("\n", " "))
    parser.add_argument("output", metavar="OUTPUT", help="what jobs.extract has written: a folder or a bucket prefix")
    parser.add_argument("--images", type=int, default=MAX_IMAGES, metavar="N",
                        help="how many photos to show at most; default: %(default)s")
    parser.add_argument("--html", metavar="FILE", default="preview.html", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        print(write_preview(arguments.output, arguments.html, max_images=arguments.images))
    except (PreviewError, OSError, ValueError) as error:
        print(f"preview: {error}", file=sys.stderr)
        return 2
    return 0


def write_preview(output: str | Path, html_path: str | Path, *, max_images: int = MAX_IMAGES) -> Path:
    """Write the page for an output that is finished; returns where it is.

    Photos are read again from where they were, and faces cut and aligned again from what the tables say. A photo that
    is gone is shown by its numbers. Raises PreviewError where there is no finished output.
    """
    prepare_pillow()
    output_uri, options = parse_input_uri(str(output))
    storage = open_storage(output_uri, options)
    run = read_run(storage)
    records, failures, faces = read_output(storage, max_images)
    photos = list(view_photos(records, faces, run, options))
    page = render_page(storage.root, run, photos, failures)
    html_path = Path(html_path)
    html_path.parent.mkdir(parents=True, exist_ok=True)
    html_path.write_text(page, encoding="utf-8")
    return html_path


# --- reading


def read_run(storage: Storage) -> Run:
    """The facts of a finished output. Raises PreviewError."""
    try:
        content = storage.read("run.json")
    except FileNotFoundError:
        raise PreviewError(
            f"no run.json in {storage.root}: either no output of jobs.extract, or of a run that has not finished; the "
            "same jobs.extract command finishes it"
        ) from None
    try:
        run = json.loads(content)
        box_side_px, (x, y) = run["alignment"]["box_side_px"], run["alignment"]["eyes_in_box_xy"]
        per_s = run["throughput"]["images_per_s"]
        parquet = run.get("listing", {}).get("parquet")
        return Run(
            run_id=str(run["run_id"]),
            finished=str(run["finished"]),
            settings=RowSettings(**run["settings"]),
            template=AlignmentTemplate(float(box_side_px), (float(x), float(y))),
            models=[(role, str(model["identity"]), str(model["licence"])) for role, model in run["models"].items()],
            counts={name: int(run["output"].get(name, 0)) for name in ("images", *Status)},
            images_per_s=None if per_s is None else float(per_s),
            parquet=ParquetColumns(**parquet) if parquet else None,
        )
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        raise PreviewError(
            f"run.json in {storage.root} is damaged: delete it, and the same jobs.extract command writes it anew"
        ) from None


def read_output(storage: Storage, max_images: int) -> tuple[list[Row], list[Row], dict[str, list[Row]]]:
    """Up to max_images rows of images/ (those with faces first), up to 200 of failed images, and the faces by uri.

    Reads parts until there is enough, so that an output of any size is opened in seconds.
    """
    with_faces: list[Row] = []
    without: list[Row] = []
    failures: list[Row] = []
    faces: dict[str, list[Row]] = {}
    for part in committed_parts(storage):         # retry-… come last: they hold failures only
        if len(with_faces) >= max_images and (part.startswith("part-") or len(failures) >= MAX_FAILURES):
            continue
        for record in _read_table(storage, f"images/{part}.parquet").to_pylist():
            if record["status"] not in GOOD:
                failures.append(record)
            else:
                (with_faces if record["n_faces"] else without).append(record)
        for face in _read_table(storage, f"faces/{part}.parquet").to_pylist():
            faces.setdefault(face["uri"], []).append(face)
    shown = [*sorted(with_faces, key=_by_uri), *sorted(without, key=_by_uri)][:max_images]
    return shown, sorted(failures, key=_by_uri)[:MAX_FAILURES], faces


def _read_table(storage: Storage, path: str) -> pa.Table:
    with storage.open(path) as file:
        return pq.read_table(file)


def _by_uri(record: Row) -> str:
    return record["uri"]


# --- pictures


def locate(uris: Sequence[str], parquet: ParquetColumns | None, options: StoreOptions) -> list[TodoRow]:
    """Where the images lie; those in tars and Parquet files are looked up in the index of their container."""
    found: dict[str, TodoRow] = {}
    containers = {match[1] for uri in uris if (match := _MEMBER.match(uri))}
    for container in sorted(each for each in containers if is_container(each, parquet)):
        row = dict.fromkeys(LISTING.names) | {"uri": container}
        members = list_members(row, options, parquet, all_files=True)
        found |= {row["uri"]: TodoRow(**row) for row in members.rows.to_pylist()}
    return [found.get(uri, TodoRow(uri)) for uri in uris]


def view_photos(
    records: Sequence[Row], faces: Mapping[str, Sequence[Row]], run: Run, options: StoreOptions
) -> Iterator[PhotoView]:
    """The photos with their faces cut out, in the order of the records."""
    fetch = Fetch(options, image_column=run.parquet.image if run.parquet else None, threads=4)
    answers = fetch(locate([record["uri"] for record in records], run.parquet, options))
    for record, answer in zip(records, answers, strict=True):
        of_photo = sorted(faces.get(record["uri"], ()), key=lambda face: face["face_index"])
        if isinstance(answer, FetchFailure):
            yield PhotoView(record, of_photo, note=f"The photo cannot be read now: {answer.error}")
            continue
        try:
            decoded = decode_image(
                answer.content, max_pixels=run.settings.max_pixels, min_side_px=run.settings.decode_min_side_px
            )
        except DecodeError as error:
            yield PhotoView(record, of_photo, note=f"The photo cannot be read now: {error.reason}")
            continue
        if (decoded.header.width, decoded.header.height) != (record["width"], record["height"]):
            yield PhotoView(record, of_photo, note="The photo has changed since.")
            continue
        views = [view_face(face, record, decoded.pixels, run.template) for face in of_photo[:MAX_FACES_OF_A_PHOTO]]
        yield PhotoView(record, of_photo, _jpeg(_shrunk(decoded.pixels, PHOTO_PX), 82), views)


def view_face(face: Row, record: Row, pixels: np.ndarray, template: AlignmentTemplate) -> FaceView:
    """Cut a face out of its photo's decoded pixels and align it, as the pipeline did."""
    height, width = pixels.shape[:2]
    rotation_deg = record["rotation_deg"] or 0
    pixels_to_image = geometry.scale_shift((record["width"] / width, record["height"] / height), (0.0, 0.0))
    turned_to_image = geometry.compose(pixels_to_image, geometry.quarter_turn(rotation_deg, width, height))
    box_xyxy = np.array([face["x1"], face["y1"], face["x2"], face["y2"]], np.float32)
    box_turned = geometry.transform_boxes(geometry.invert(turned_to_image), box_xyxy[None])[0]
    chip, chip_to_turned = cut_chip(np.rot90(pixels, -(rotation_deg // 90)), box_turned)
    chip_to_image = geometry.compose(turned_to_image, chip_to_turned)
    aligned = align_chip(chip, chip_to_image, box_xyxy, _eye_points(face), template)
    eyes_in_chip = geometry.transform(geometry.invert(chip_to_image), _eye_points(face).astype(np.float64)) / len(chip)
    return FaceView(face, eyes_in_chip, _jpeg(_shrunk(chip, 2 * geometry.CROP_PX), 85), _jpeg(aligned.crop, 92))


def _eye_points(face: Row) -> np.ndarray:
    """(12, 2) float32, image pixels; NaN where the row has none."""
    points = face["eye_points"]
    return np.full((12, 2), np.nan, np.float32) if points is None else np.array(points, np.float32).reshape(12, 2)


def _shrunk(pixels: np.ndarray, longest_px: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return pixels
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality)


def likest_faces(photos: Sequence[PhotoView]) -> dict[tuple[str, int], tuple[FaceView, float]]:
    """For each face shown, by uri and face_index, the likest one that is shown of another photo, and the cosine."""
    views = [view for photo in photos for view in photo.face_views]
    if not views:
        return {}
    vectors = np.array([view.row["embedding"] for view in views], np.float32)
    photo_of = np.array([i for i, photo in enumerate(photos) for _ in photo.face_views])
    likest = {}
    for i, view in enumerate(views):
        cosines = np.where(photo_of == photo_of[i], -np.inf, vectors @ vectors[i])
        best = int(cosines.argmax())
        if np.isfinite(cosines[best]):
            likest[view.row["uri"], view.row["face_index"]] = (views[best], float(cosines[best]))
    return likest


# --- the page


def render_page(root: str, run: Run, photos: Sequence[PhotoView], failures: Sequence[Row]) -> str:
    """The page as HTML; all that comes from files or tables is escaped."""
    likest = likest_faces(photos)
    shown_faces = sum(len(photo.faces) for photo in photos)
    models = "".join(
        f"<li><b>{_text(role)}</b> {_text(identity)} <span class=dim>{_text(licence)}</span></li>"
        for role, identity, licence in run.models
    )
    head = (
        f"<h1>Faces</h1><p class=dim>{_text(root)} · run {_text(run.run_id)}, {_text(run.finished)}</p>"
        f"<ul class=totals>{''.join(_totals(run))}</ul><ul class=models>{models}</ul>"
        f"<p class=dim>Shown here: {len(photos):,} of {_count(run.counts['images'], 'image')}, with "
        f"{_count(shown_faces, 'face')}. Each face as it lies in the photo, and as the embedder sees it, turned and "
        "scaled by the eyes; below it the likest face shown of another photo, with the cosine between the two.</p>"
    )
    body = "".join(_photo(photo, likest) for photo in photos)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        f"<title>Faces: {_text(root)}</title><style>{STYLE}</style>"
        f"<header>{head}</header><main>{body}</main>{_failures(failures, run)}</html>\n"
    )


def _totals(run: Run) -> Iterator[str]:
    yield f"<li><b>{run.counts['images']:,}</b> images</li>"
    for status in Status:
        if run.counts[status]:
            yield f"<li class={status.value}><b>{run.counts[status]:,}</b> {status.value}</li>"
    if run.images_per_s:
        yield f"<li><b>{run.images_per_s:,}</b> images/s in this run</li>"


def _photo(photo: PhotoView, likest: Mapping[tuple[str, int], tuple[FaceView, float]]) -> str:
    record = photo.record
    facts = [f"{record['width']:,} × {record['height']:,}", record["format"], _count(len(photo.faces), "face")]
    if record["exif_orientation"] not in (None, 1):
        facts.append(f"EXIF orientation {record['exif_orientation']}")
    if record["rotation_deg"]:
        facts.append(f"found when turned by {record['rotation_deg']}°")
    if record["decode_scale"] not in (None, 1.0):
        facts.append(f"decoded at 1/{round(1 / record['decode_scale'])}")
    if record["detect_pass"] == 2:
        facts.append("found in the second pass")
    if record["faces_truncated"]:
        facts.append("more faces than --max-faces")
    picture = f"<p class=note>{_text(photo.note)}</p>" if photo.note else _picture(photo)
    cards = "".join(_face(view, likest.get((record["uri"], view.row["face_index"]))) for view in photo.face_views)
    hidden = len(photo.faces) - len(photo.face_views)
    more = f"<p class=dim>and {_count(hidden, 'face')} more, not cut out here</p>" if hidden and not photo.note else ""
    return (
        f"<article><h2>{_text(_name(record['uri']))}</h2>"
        f"<p class=dim>{_text(' · '.join(facts))}<br>{_text(record['uri'])}</p>"
        f"{picture}<div class=faces>{cards}</div>{more}</article>"
    )


def _picture(photo: PhotoView) -> str:
    """The photo with boxes, numbers, scores and eye points drawn over it, in its own pixels."""
    width, height = photo.record["width"], photo.record["height"]
    letters_px = max(width, height) / 55
    marks = []
    for face in photo.faces:
        x1, y1, x2, y2 = (round(face[name], 1) for name in ("x1", "y1", "x2", "y2"))
        marks.append(f"<rect x={x1} y={y1} width={x2 - x1:.1f} height={y2 - y1:.1f} />")
        radius = max(x2 - x1, y2 - y1) / 70
        marks += _dots(_eye_points(face), radius)
        above = y1 - letters_px / 3 if y1 > 1.5 * letters_px else y2 + letters_px
        label = f"{face['face_index']} · {face['det_score']:.2f}"
        if max(x2 - x1, y2 - y1) < 2 * letters_px:       # a crowd: scores would hide the faces
            label = str(face["face_index"])
        at = f"x={x1}" if x1 < width - 5 * letters_px else f"x={x2} text-anchor=end"
        marks.append(f"<text {at} y={above:.1f} font-size={letters_px:.1f}>{label}</text>")
    height_px = 680 if photo.faces else 240
    width_px = min(height_px * width / height, 2 * width)
    return (
        f"<figure style='aspect-ratio:{width}/{height};max-width:min(100%,{width_px:.0f}px)'>"
        f"<img alt='' src='{_data_uri(photo.photo_jpeg)}'>"
        f"<svg viewBox='0 0 {width} {height}' preserveAspectRatio=none>{''.join(marks)}</svg></figure>"
    )


def _dots(points_xy: np.ndarray, radius: float) -> list[str]:
    """A dot for every point that there is."""
    return [f"<circle cx={x:.2f} cy={y:.2f} r={radius:.2f} />" for x, y in points_xy if np.isfinite(x + y)]


def _face(view: FaceView, likest: tuple[FaceView, float] | None) -> str:
    face = view.row
    facts = [f"score <b>{face['det_score']:.2f}</b>", f"roll <b>{_number(face['roll_deg'], 0)}°</b>",
             f"eyes <b>{_number(face['eye_distance_px'], 0)} px</b>", f"sharp <b>{_number(face['sharpness'], 0)}</b>"]
    if not face["align_ok"]:
        facts.append("<span class=warn>aligned by its box</span>")
    other = ""
    if likest:
        likest_view, cosine = likest
        whose = f"{_text(_name(likest_view.row['uri']))} #{likest_view.row['face_index']}"
        other = (
            f"<div class=likest><img alt='' src='{_data_uri(likest_view.crop_jpeg)}'>"
            f"<span>cosine <b>{_number(cosine, 2)}</b><br>{whose}</span></div>"
        )
    return (
        f"<section><span class=index>{face['face_index']}</span><div class=pair>"
        f"<span class=chip><img alt='in the photo' src='{_data_uri(view.chip_jpeg)}'>"
        f"<svg viewBox='0 0 100 100'>{''.join(_dots(100 * view.eyes_in_chip, 1))}</svg></span><i>→</i>"
        f"<img alt='aligned' src='{_data_uri(view.crop_jpeg)}'></div>"
        f"<p>{' '.join(f'<span>{fact}</span>' for fact in facts)}</p>{other}</section>"
    )


def _failures(failures: Sequence[Row], run: Run) -> str:
    if not failures:
        return ""
    total = run.counts["images"] - sum(run.counts[status] for status in GOOD)
    rows = "".join(
        f"<tr><td><span class='{_text(record['status'])}'>{_text(record['status'])}</span><td>{_text(record['error'])}"
        f"<td>{_text(record['uri'])}"
        for record in failures
    )
    return (
        f"<footer><h2>Not read: {len(failures):,} of {_count(total, 'image')}</h2>"
        f"<table><tr><th>status<th>why<th>file{rows}</table></footer>"
    )


def _text(value: object) -> str:
    """Escaped, with control characters made visible: a file's name may have any, also such that turn what follows."""
    visible = {code: chr(0x2400 + code) for code in range(32)}
    return escape(printable(str(value).translate(visible)))


def _name(uri: str) -> str:
    return posixpath.basename(uri)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


STYLE = """
:root{--ink:#1c1e21;--dim:#6b7280;--paper:#f6f6f4;--card:#fff;--line:#e3e3df;--mark:#19c37d;--warn:#b45309;--bad:#b42318;
color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e9e9e7;--dim:#9aa0a8;--paper:#161718;--card:#1f2123;--line:#34373a;
--warn:#f2b04c;--bad:#ff8a7d}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:28px 24px 60px;background:var(--paper);color:var(--ink);
font:15px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:26px;margin:0}h2{font-size:17px;margin:0}p{margin:4px 0}
.dim,footer th{color:var(--dim);font-size:13px;font-weight:400}
ul{list-style:none;display:flex;flex-wrap:wrap;gap:8px;padding:0;margin:14px 0}
.totals li{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:6px 12px}
.totals b{font-size:19px}
.models{gap:4px 22px;font-size:13px}
article{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px;margin-top:20px}
figure{position:relative;margin:12px 0;border-radius:8px;overflow:hidden;background:#8883}
figure img,figure svg{position:absolute;inset:0;width:100%;height:100%}
rect{fill:none;stroke:var(--mark);stroke-width:2;vector-effect:non-scaling-stroke}
circle{fill:#ffd43b}
text{fill:#fff;paint-order:stroke;stroke:#000a;stroke-width:.22em;font-weight:600}
.faces{display:grid;grid-template-columns:repeat(auto-fill,minmax(262px,1fr));gap:12px}
section{position:relative;border:1px solid var(--line);border-radius:10px;padding:10px;font-size:13px}
.pair{display:flex;align-items:center;gap:6px}
.pair img{width:104px;height:104px;border-radius:6px;object-fit:cover}
.chip{position:relative}.chip svg{position:absolute;inset:0;width:104px;height:104px}.chip img{display:block}
.pair i{color:var(--dim);font-style:normal}
section p{display:flex;flex-wrap:wrap;gap:0 9px;font-size:12.5px;margin:8px 0 0;color:var(--dim)}
section p b{color:var(--ink);font-weight:600}
.index{position:absolute;left:14px;top:14px;background:#000a;color:#fff;border-radius:5px;padding:0 6px}
.likest{display:flex;gap:8px;align-items:center;border-top:1px solid var(--line);margin-top:8px;padding-top:8px;
color:var(--dim)}
.likest span{min-width:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.likest img{width:38px;height:38px;border-radius:5px}.likest b{color:var(--ink)}
.note,.warn{color:var(--warn)}
footer{margin-top:30px}table{border-collapse:collapse;width:100%;margin-top:8px;font-size:13px}
td,th{text-align:left;padding:5px 14px 5px 0;border-top:1px solid var(--line);vertical-align:top}
td:first-child{white-space:nowrap}
.unreadable,.failed,.fetch_failed,.unsupported,.too_large{color:var(--bad)}
"""

if __name__ == "__main__":
    sys.exit(main())
