"""Fill the template page.html with photos, faces and failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.pages.pictures import FaceView, PhotoView, eye_points
from jobs.pages.template import load_template, plural
from jobs.preview.output import Row, Run
from pipeline.batch import GOOD, Status


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


def render_page(root: str, run: Run, photos: Sequence[PhotoView], failures: Sequence[Row]) -> str:
    """The page as HTML. Every value from a file, a name or a table is escaped."""
    return load_template(Path(__file__).parent, "page.html").render(
        root=root,
        run=run,
        photos=photos,
        failures=failures,
        statuses=[(status.value, run.counts[status]) for status in Status if run.counts[status]],
        failed=run.counts["images"] - sum(run.counts[status] for status in GOOD),
        shown_faces=sum(len(photo.faces) for photo in photos),
        most_similar=most_similar_faces(photos),
        facts=_facts,
        marks=_marks,
    )


def most_similar_faces(photos: Sequence[PhotoView]) -> dict[tuple[str, int], tuple[FaceView, float]]:
    """For each face on the page, by uri and face_index: the most similar face of another photo, and the cosine."""
    views = [view for photo in photos for view in photo.face_views]
    if not views:
        return {}
    vectors = np.array([view.row["embedding"] for view in views], np.float32)
    photo_of = np.array([i for i, photo in enumerate(photos) for _ in photo.face_views])
    found = {}
    for i, view in enumerate(views):
        cosines = np.where(photo_of == photo_of[i], -np.inf, vectors @ vectors[i])
        best = int(cosines.argmax())
        if np.isfinite(cosines[best]):
            found[view.row["uri"], view.row["face_index"]] = (views[best], float(cosines[best]))
    return found


def _facts(record: Row, faces: int) -> str:
    """The line below a photo's name."""
    facts = [f"{record['width']:,} × {record['height']:,}", str(record["format"]), plural(faces, "face")]
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
    return " · ".join(facts)


def _marks(photo: PhotoView, letters_px: float) -> Iterator[Mark]:
    """The faces of a photo as they are drawn over it, with letters of that height."""
    image_width = photo.record["width"]
    for face in photo.faces:
        x1, y1, x2, y2 = (round(face[name], 1) for name in ("x1", "y1", "x2", "y2"))
        side = max(x2 - x1, y2 - y1)
        in_crowd = side < 2 * letters_px          # a score would hide the faces beside it
        near_right_edge = x1 >= image_width - 5 * letters_px
        yield Mark(
            x1, y1, x2 - x1, y2 - y1, eye_points(face), side / 70,
            label=str(face["face_index"]) if in_crowd else f"{face['face_index']} · {face['det_score']:.2f}",
            label_x=x2 if near_right_edge else x1,
            label_y=y1 - letters_px / 3 if y1 > 1.5 * letters_px else y2 + letters_px,
            label_ends_at_x=near_right_edge,
        )
