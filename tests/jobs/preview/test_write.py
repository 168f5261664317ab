import base64
import io
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jobs.extract.stages import min_side_of
from jobs.options import ArgumentError
from jobs.preview.write import write_preview
from jobs.report.__main__ import main as report_main
from pipeline.batch import FaceBatch, ImageRecord, Status, TodoRow
from pipeline.errors import OutputError
from pipeline.geometry import AlignmentTemplate, no_points
from pipeline.input.fetch import Fetch
from pipeline.output import claim, ledger, sink
from pipeline.settings import RowSettings, fingerprinted
from pipeline.stages.align import Align
from pipeline.stages.decode import Decode
from pipeline.stages.detect import Detect, DetectModel
from pipeline.stages.keypoint import Keypoint
from pipeline.stages.looks import Looks
from pipeline.storage import open_storage
from tests.support import corpus
from tests.support.browser import HOSTILE, PWN

SETTINGS = RowSettings(rotate_retry=True)
TEMPLATE = AlignmentTemplate(104.0, (0.5, 0.42))
MODELS = sink.ModelNames("detector@1", "keypointer@2", "embedder@3")
CARDS = {
    role: {"architecture": {"network": role}, "tensors_sha256": digit * 64, "preprocessing": {}}
    for role, digit in (("detector", "1"), ("keypointer", "2"), ("embedder", "3"))
}
CARDS["embedder"]["preprocessing"] = {"alignment": asdict(TEMPLATE)}
ODD_NAME = "<img src=x onerror=alert(1)> & 'q\"\n.jpg"


class FakeDetector:
    """Finds one face of 160 by 200 px in the middle of every canvas, from its call number `from_look` on."""

    def __init__(self, from_look=1, points5=None):
        self.looks = 0
        self.from_look = from_look
        self.points5 = no_points(1) if points5 is None else points5

    def __call__(self, canvases):
        self.looks += 1
        if self.looks < self.from_look:
            return [(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), no_points(0)) for _ in canvases]
        box, score = np.array([[240, 220, 400, 420]], np.float32), np.array([0.9], np.float32)
        return [(box, score, self.points5) for _ in canvases]


def fake_eyes(chips):
    """Eyes that slope down to the right by a tenth of their distance."""
    ring = np.array([[-0.04, 0], [-0.02, -0.02], [0.02, -0.02], [0.04, 0], [0.02, 0.02], [-0.02, 0.02]])
    points = np.concatenate([ring + np.array([0.4, 0.42]), ring + np.array([0.6, 0.44])])
    return np.array([points * len(chip) for chip in chips], np.float32).reshape(-1, 12, 2)


def aligned(folder, names, detector=None):
    """The aligned faces alone."""
    return process(folder, names, detector)[1]


def lost_eyes(chips):
    """Both eyes in the same corner, which is not plausible."""
    return np.ones((len(chips), 12, 2), np.float32)


def photo(seed, width=900, height=700):
    """Soft blotches: every shift or turn of a crop changes it."""
    blotches = np.random.default_rng(seed).integers(0, 256, (58, 75, 3), dtype=np.uint8)
    return cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)


def process(folder, names, detector=None, eyes=fake_eyes, spread_px=np.nan):
    """The chips and the aligned faces of files, from the real stages with fake models."""
    model = DetectModel(detector or FakeDetector(), 1)
    detect = Detect(
        model, few=model, looks=Looks(640), nms_iou=0.5, second_pass_px=320, min_face_px=0, max_faces=None,
        rotate_retry=True,
    )
    decode = Decode(
        Fetch(), max_pixels=SETTINGS.max_pixels, min_side_px=min_side_of(SETTINGS), threads=1, batch_images=64,
        batch_bytes=256 << 20,
    )
    (decoded,) = decode([TodoRow(f"{folder}/{name}") for name in names])
    found = Keypoint(lambda chips: (eyes(chips), np.full((len(chips), 2), spread_px, np.float32)))(detect(decoded))
    return found.chips, Align(TEMPLATE, eyes_alone=False)(found)


def write_output(folder, *batches, embeddings=((1.0, 0.0), (0.6, 0.8), (0.0, 1.0))):
    """Write an output with a part for each batch. The faces get the embeddings in turn."""
    storage = open_storage(str(folder))
    claim.claim(storage, fingerprinted(SETTINGS, CARDS))
    records, used = [], 0
    for batch in batches:
        vectors = np.array([embeddings[(used + i) % len(embeddings)] for i in range(len(batch))], np.float32)
        used += len(batch)
        embedded = batch.with_embeddings(vectors.reshape(-1, 2), np.ones(len(batch), np.float32))
        name = ledger.part_name("part", "run-1", [record.uri for record in batch.records])
        ledger.write_pair(
            storage, name, sink.faces_table(embedded, MODELS, 2, "float32"), sink.images_table(embedded, "run-1"),
            check=lambda: None,
        )
        records += batch.records
    counts = {status.value: sum(record.status is status for record in records) for status in Status}
    run = {
        "run_id": "run-1",
        "finished": "2026-11-24T06:00:00+00:00",
        "models": {"detector": {"identity": "detector@1", "licence": "AGPL-3.0", "commercial_use": True}},
        "output": {"images": len(records), **counts},
        "throughput": {"images_per_s": None},
    }
    storage.write("run.json", json.dumps(run).encode())


class Page(HTMLParser):
    """The elements of a page, its text, and its pictures by their description."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.pictures, self.links, self.text = [], {}, [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append("bar" if "class" in attributes and tag == "rect" else tag)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            content = base64.b64decode(attributes["src"].partition(";base64,")[2])
            picture = np.asarray(Image.open(io.BytesIO(content)))
            self.pictures.setdefault(attributes["alt"], []).append(picture)

    def handle_data(self, text):
        self.text += text


def test_an_output_without_images(tmp_path):
    write_output(tmp_path / "out")
    page = Page(write_preview(tmp_path / "out", tmp_path / "p.html"))
    assert "0 images" in page.text
    assert page.pictures == {}


def test_without_an_output_there_is_nothing_to_show(tmp_path):
    with pytest.raises(OutputError, match=r"no output\.json in"):
        write_preview(tmp_path / "nothing", tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


def write_photo(folder, name, pixels, **options):
    (folder / name).write_bytes(corpus.encode(pixels, "JPEG", quality=95, **options))


@pytest.mark.parametrize(
    ("size_wh", "orientation", "from_look", "eyes", "fact"),
    [
        ((900, 700), 1, 1, fake_eyes, "900 × 700"),
        ((900, 700), 6, 1, fake_eyes, "EXIF orientation 6"),
        ((3400, 2400), 1, 1, fake_eyes, "decoded at 1/2"),
        ((900, 700), 1, 2, fake_eyes, "found in the second pass"),
        ((900, 700), 1, 3, fake_eyes, "found when turned by 90°"),
        ((900, 700), 1, 5, fake_eyes, "found when turned by 180°"),
        ((900, 700), 1, 1, lost_eyes, "eyes not sure"),
        ((900, 700), 1, 4, lost_eyes, "found when turned by 270°"),
    ],
)
def test_the_page_shows_the_chips_and_crops_of_the_networks(
    tmp_path, size_wh, orientation, from_look, eyes, fact
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_photo(tmp_path, "a.jpg", photo(1, *size_wh), exif=exif)
    (chip,), batch = process(tmp_path, ["a.jpg"], FakeDetector(from_look), eyes)
    write_output(tmp_path / "out", batch)
    page = Page(write_preview(tmp_path / "out", tmp_path / "p.html"))
    assert fact in page.text

    # JPEG costs up to 3; a shift by one pixel costs more.
    (shown,) = page.pictures["aligned"]
    assert differ(shown, batch.crops[0]) < 3 < 4 < differ(np.roll(shown, 1, axis=0), batch.crops[0])
    (shown,) = page.pictures["in the photo"]
    assert differ(shown, cv2.resize(chip, (224, 224), interpolation=cv2.INTER_AREA)) < 3


def differ(shown, seen):
    return np.abs(shown.astype(int) - seen).mean()


def test_the_crop_of_unsure_eyes_is_by_both_sources(tmp_path):
    """On both pages. The detector's eyes are lower by a twentieth of the face."""
    write_photo(tmp_path, "a.jpg", photo(1))
    points5 = np.array([[[288, 304], [352, 311], [320, 340], [300, 370], [340, 370]]], np.float32)
    _, batch = process(tmp_path, ["a.jpg"], FakeDetector(points5=points5), spread_px=25.0)
    _, by_eyes = process(tmp_path, ["a.jpg"], spread_px=25.0)
    write_output(tmp_path / "out", batch)
    pages = write_preview(tmp_path / "out", tmp_path / "p.html"), tmp_path / "r.html"
    assert report_main([str(tmp_path / "out"), str(pages[1])]) == 0
    for page in pages:
        (shown,) = Page(page).pictures["aligned"]
        assert differ(shown, batch.crops[0]) < 3 < 4 < differ(shown, by_eyes.crops[0])
        assert re.search(r"spread\s+0\.\d{3}", Page(page).text)
        assert "the five points of the detector" in Page(page).text and "class=\"five\"" in page.read_text("utf-8")


def test_the_page_loads_nothing_and_shows_names_as_text(tmp_path):
    for name in ("a.jpg", ODD_NAME):
        write_photo(tmp_path, name, photo(len(name)))
    write_output(tmp_path / "out", aligned(tmp_path, ["a.jpg", ODD_NAME]))
    path = write_preview(tmp_path / "out", tmp_path / "deep" / "p.html")
    page = Page(path)
    assert "<img src=x onerror=alert(1)> & 'q\"␊.jpg" in page.text
    assert "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith("data:image/") for link in page.links)
    assert not re.search(r"https?:|url\(", path.read_text(encoding="utf-8"))
    # Two photos, each with twelve eye points over the photo and twelve over the chip.
    assert page.tags.count("rect") == 2
    assert page.tags.count("circle") == 48
    assert [picture.shape for picture in page.pictures["in the photo"]] == [(224, 224, 3)] * 2


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_hostile_names_are_text_in_a_real_browser(tmp_path, browse):
    """Names, reasons, models and the path of the output are escaped. The page's policy forbids scripts too."""
    folder = tmp_path / f"<b title='{PWN}'>"
    for name in HOSTILE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_photo(folder, name, photo(len(name)))
    batch = aligned(folder, HOSTILE)
    failed = tuple(ImageRecord(f"{folder}/failed/{name}", Status.FAILED, name) for name in HOSTILE)
    output = folder / "<script>" / "out"
    write_output(output, batch, FaceBatch.without_faces(failed))
    run = json.loads((output / "run.json").read_text())
    run["models"][HOSTILE[0]] = {"identity": HOSTILE[1], "licence": HOSTILE[3]}
    (output / "run.json").write_text(json.dumps(run | {"run_id": HOSTILE[2], "finished": HOSTILE[4]}))
    html = write_preview(output, tmp_path / "p.html").read_text(encoding="utf-8")
    policy = re.search(r"<meta http-equiv=Content-Security-Policy [^>]*>", html)[0]
    assert "default-src 'none'" in policy

    shows_that_it_could_fail = browse(f"<!doctype html><title>safe</title>{HOSTILE[0]}")
    assert shows_that_it_could_fail.title == "pwned"
    assert browse(f"<!doctype html>{policy}<title>safe</title>{HOSTILE[0]}<script>{PWN}</script>").title == "safe"

    for page in (browse(html), browse(html.replace(policy, ""))):       # escaping alone is enough
        assert page.title == f"Faces: {output}"
        assert not page.tags & {"script", "iframe", "a", "object", "embed", "form", "base", "link"}
        assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "srcdoc")]
        sources = [value for name, value in page.attributes if name == "src"]
        assert sources and all(value.startswith("data:image/") for value in sources)
        for name in HOSTILE[:-1]:
            assert f"{folder}/{name}" in page.text and f"{folder}/failed/{name}" in page.text, name
        assert page.text.count(r"\u202egnp.exe␛[2J\x7f.jpg") >= 4       # heading, place, reason, and its place
        assert not re.search("[\u202e\x1b\x7f]", page.text)


def test_each_face_has_the_most_similar_one_of_another_photo(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_photo(tmp_path, name, photo(ord(name[0])))
    write_output(tmp_path / "out", aligned(tmp_path, ["a.jpg", "b.jpg", "c.jpg"]))
    page = Page(write_preview(tmp_path / "out", tmp_path / "p.html"))
    # (1, 0), (0.6, 0.8) and (0, 1): a is most similar to b, b to c, c to b.
    assert re.findall(r"cosine ([−\d.]+)(\w+\.jpg)", page.text) == [
        ("0.60", "b.jpg"), ("0.80", "c.jpg"), ("0.80", "b.jpg")
    ]


def test_photos_that_fail_are_listed_with_their_reason(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "<b>.jpg").write_text("<i>no image</i>")
    write_photo(tmp_path, "a.jpg", photo(1))
    batch = aligned(tmp_path, ["empty.jpg", "<b>.jpg", "gone.jpg", "a.jpg"])
    odd = ImageRecord("/x.jpg", Status.FAILED, "detect: <script>")
    write_output(tmp_path / "out", batch, FaceBatch.without_faces((odd,)))
    page = Page(write_preview(tmp_path / "out", tmp_path / "p.html"))
    assert "Not read: 4 of 5 images" in page.text
    for text in ("empty file", f"{tmp_path}/<b>.jpg", "no such file or directory", "detect: <script>"):
        assert text in page.text
    assert "1 ok" in page.text and "1 fetch_failed" in page.text and "1 unsupported" in page.text
    assert "b" in page.tags and "script" not in page.tags and page.tags.count("i") == 1     # the one arrow


def test_missing_and_changed_photos_are_shown_as_notes(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_photo(tmp_path, name, photo(1))
    write_output(tmp_path / "out", aligned(tmp_path, ["a.jpg", "b.jpg", "c.jpg"]))
    (tmp_path / "a.jpg").unlink()
    write_photo(tmp_path, "b.jpg", photo(1, 300, 200))
    (tmp_path / "c.jpg").write_bytes(b"")
    page = Page(write_preview(tmp_path / "out", tmp_path / "p.html"))
    assert "cannot be read now: no such file or directory" in page.text
    assert "The photo has changed since the run." in page.text
    assert "cannot be read now: empty file" in page.text
    assert page.pictures == {}


@pytest.mark.parametrize(("max_images", "shown"), [(0, []), (2, ["a.jpg", "c.jpg"]), (9, ["a.jpg", "c.jpg", "b.jpg"])])
def test_no_more_photos_than_asked_for_those_with_faces_first(tmp_path, max_images, shown):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_photo(tmp_path, name, photo(1))
    without = aligned(tmp_path, ["b.jpg"], FakeDetector(from_look=99))
    write_output(tmp_path / "out", aligned(tmp_path, ["a.jpg", "c.jpg"]), without)
    page = Page(write_preview(tmp_path / "out", tmp_path / "p.html", max_images=max_images))
    names = re.findall(rf"{tmp_path}/(\w\.jpg)", page.text)
    assert names == shown
    assert f"Shown here: {len(shown)} of 3 images" in page.text


def test_a_half_that_was_not_committed_is_not_shown(tmp_path):
    write_photo(tmp_path, "a.jpg", photo(1))
    write_output(tmp_path / "out", aligned(tmp_path, ["a.jpg"]))
    (half,) = Path(tmp_path / "out" / "faces").glob("*.parquet")
    half.unlink()
    assert Page(write_preview(tmp_path / "out", tmp_path / "p.html")).pictures == {}


def test_an_output_and_photos_in_a_bucket(bucket, s3_endpoint, tmp_path):
    bucket.put("photos/a b.jpg", corpus.encode(photo(1), "JPEG", quality=95))
    batch = aligned(f"{bucket.uri}/photos", ["a b.jpg"])
    write_output(f"{bucket.uri}/out", batch)
    page = Page(write_preview(f"{bucket.uri}/out?endpoint={s3_endpoint}", tmp_path / "p.html"))
    assert f"{bucket.uri}/photos/a b.jpg" in page.text
    assert len(page.pictures["aligned"]) == 1


def test_a_page_that_cannot_be_written_is_refused(tmp_path):
    write_output(tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match=r"cannot write .*file/p\.html: .*; choose another file"):
        write_preview(tmp_path / "out", tmp_path / "file/p.html")
