"""Fill the template report.html."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from jobs.pages.pictures import eye_points
from jobs.pages.template import load_template, plural, visible
from jobs.report import TEMPLATES
from jobs.report.groups import Groups
from jobs.report.photos import Shown, ShownFace
from jobs.report.run import Run
from jobs.report.survey import Survey
from pipeline.batch import GOOD, Status
from pipeline.people.outputs import Output, Row

SCRIPT = "report.js"


@dataclass(frozen=True, slots=True)
class Mark:
    """A face drawn over its photo, in image pixels: box, eye points with their radius, and a label."""

    x: float
    y: float
    width: float
    height: float
    points_xy: np.ndarray
    radius: float
    label: str
    label_x: float
    label_y: float
    label_ends_at_x: bool


def render_page(
    output: Output, run: Run, found: Survey, shown: Shown, groups: Groups | None = None, *, gallery: bool
) -> str:
    """The page as HTML. Every value from a file, a name or a table is escaped.

    groups: of the faces, if they were grouped. gallery: with all faces, and the script that filters and sorts them.
    Without, the page has no script.
    """
    of_photo: dict[int, list[ShownFace]] = {}
    for face in shown.faces:
        of_photo.setdefault(face.photo, []).append(face)
    numbers = {(face.row["uri"], face.row["face_index"]): i for i, face in enumerate(shown.faces)}
    with_gallery = gallery and bool(shown.faces)
    script = (TEMPLATES / SCRIPT).read_text(encoding="utf-8") if with_gallery else ""
    counts = totals(run, found)
    return load_template(TEMPLATES, "report.html").render(
        root=output.storage.root, output=output, run=run, found=found, shown=shown, of_photo=of_photo,
        numbers=numbers, gallery=with_gallery, script=Markup(script), script_hash=script_hash(script),
        data=page_data(shown, output, groups) if with_gallery else "", groups=groups,
        counts=counts, images=sum(counts.values()),
        statuses=[(status.value, counts[status]) for status in Status if counts.get(status)],
        failed=sum(counts.values()) - sum(counts.get(status, 0) for status in GOOD),
        settings=asdict(output.settings), facts=facts, marks=marks,
        has_five=any(face.five_in_chip is not None for view in shown.views.values() for face in view.views),
    )


def totals(run: Run, found: Survey) -> Mapping[str, int]:
    """Images by status: of the whole output if its run has ended and it has not grown since, else of what was read."""
    return run.counts if run.counts and found.parts_read < found.parts else found.counts


def script_hash(script: str) -> str:
    """The script's hash as the policy of the page has it; "" without a script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'" if script else ""


def page_data(shown: Shown, output: Output, groups: Groups | None) -> Markup:
    """What the script needs of every face, as columns, in JSON that cannot end its element."""
    rows = [face.row for face in shown.faces]
    persons = groups.persons_of([record["uri"] for record in shown.records]) if groups else {}

    def column(name: str, per_unit: int = 1) -> list[int | None]:
        values = (row[name] for row in rows)
        return [round(value * per_unit) if value is not None and np.isfinite(value) else None for value in values]

    columns = {
        "photos": [[visible(record["uri"]), record["width"], record["height"]] for record in shown.records],
        "photo": [face.photo for face in shown.faces],
        "index": column("face_index"),
        "box": [[round(row[name]) for name in ("x1", "y1", "x2", "y2")] for row in rows],
        "score": column("det_score", 100),
        "person": [persons.get((row["uri"], row["face_index"])) for row in rows],
        "roll": column("roll_deg"),
        "eyes": [int(row["align_ok"]) for row in rows],
        "sharpness": column("sharpness"),
        "norm": column("embedding_norm", 100),
        "alike": base64.b64encode(shown.alike.faces.astype("<u2").tobytes()).decode(),
        "cosines": base64.b64encode(np.round(100 * shown.alike.cosines).astype(np.int8).tobytes()).decode(),
        "listed": shown.alike.faces.shape[1],
        "same": output.thresholds.get("0.001"),
    }
    return htmlsafe_json_dumps(columns, separators=(",", ":"), ensure_ascii=False)


def facts(record: Row) -> str:
    """The line below a photo's name."""
    found = [f"{record['width']:,} × {record['height']:,}", str(record["format"]), plural(record["n_faces"], "face")]
    if record["exif_orientation"] not in (None, 1):
        found.append(f"EXIF orientation {record['exif_orientation']}")
    if record["rotation_deg"]:
        found.append(f"found when turned by {record['rotation_deg']}°")
    if record["decode_scale"] not in (None, 1.0):
        found.append(f"decoded at 1/{round(1 / record['decode_scale'])}")
    if record["detect_pass"] == 2:
        found.append("found in the second pass")
    if record["faces_truncated"]:
        found.append("more faces than --max-faces")
    return " · ".join(found)


def marks(record: Row, faces: Sequence[ShownFace], letters_px: float) -> Iterator[Mark]:
    """The faces of a photo as they are drawn over it, with letters of that height."""
    for face in (shown.row for shown in faces):
        x1, y1, x2, y2 = (round(face[name], 1) for name in ("x1", "y1", "x2", "y2"))
        side = max(x2 - x1, y2 - y1)
        in_crowd = side < 2 * letters_px          # a score would hide the faces beside it
        near_right_edge = x1 >= record["width"] - 5 * letters_px
        yield Mark(
            x1, y1, x2 - x1, y2 - y1, eye_points(face), side / 70,
            label=str(face["face_index"]) if in_crowd else f"{face['face_index']} · {face['det_score']:.2f}",
            label_x=x2 if near_right_edge else x1,
            label_y=y1 - letters_px / 3 if y1 > 1.5 * letters_px else y2 + letters_px,
            label_ends_at_x=near_right_edge,
        )


