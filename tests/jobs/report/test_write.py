"""The page of jobs.report, of outputs that are written by code."""

import json
import re

import pytest

from jobs.pages.marks import is_page
from jobs.report.__main__ import main
from jobs.report.survey import survey
from jobs.report.write import LARGE
from pipeline.batch import FaceBatch, ImageRecord, Status
from pipeline.output.derived import records
from pipeline.storage import open_storage
from tests.jobs.preview.test_write import FakeDetector, Page, aligned, photo, process, write_output, write_photo
from tests.support.browser import HOSTILE


def report(tmp_path, *options):
    """The page of the output in tmp_path/out, read as HTML, and its text."""
    place = tmp_path / "report.html"
    assert main([str(tmp_path / "out"), str(place), *options]) == 0
    return Page(place), place.read_text(encoding="utf-8")


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1])


def failures(number, error="cut off"):
    return FaceBatch.without_faces(tuple(
        ImageRecord(f"/x/{error[:3]}{i}.jpg", Status.UNREADABLE, error) for i in range(number)
    ))


def test_an_output_without_images(tmp_path):
    write_output(tmp_path / "out")
    page, html = report(tmp_path)
    assert "0 images" in page.text and "script" not in page.tags and is_page(html.encode())


def test_a_page_with_everything(tmp_path, capsys):
    names = ["a.jpg", "b.jpg", "c.jpg"]
    for name in names:
        write_photo(tmp_path, name, photo(ord(name[0])))
    write_output(tmp_path / "out", aligned(tmp_path, names), failures(5), failures(2, "empty file"))
    page, html = report(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"
    for text in ("Not read: 7 of 10 images", "5", "cut off", "/x/cut2.jpg", "/x/emp1.jpg", "detector@1", "AGPL-3.0",
                 "Size: the longer side of the box", "min_score", "3 faces of 3 photos in the gallery"):
        assert text in page.text, text
    assert "/x/cut3.jpg" not in page.text                                   # three examples are enough
    assert page.text.index("cut off") < page.text.index("empty file")       # the most frequent reason first
    data = data_of(html)
    assert [name for name, *_ in data["photos"]] == [f"{tmp_path}/{name}" for name in names]
    assert data["photo"] == [0, 1, 2] and data["score"] == [90] * 3 and data["listed"] == 2
    assert html.count("data:image/webp;base64,") == 3 + 3        # the gallery, and the most alike face of each
    (_, made), = records(open_storage(str(tmp_path / "out")))
    assert made.place.endswith("report.html") and list(made.files)


def test_photos_that_are_gone_leave_their_faces_without_pictures(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        write_photo(tmp_path, name, photo(1))
    write_output(tmp_path / "out", aligned(tmp_path, ["a.jpg", "b.jpg"]))
    (tmp_path / "a.jpg").unlink()
    page, html = report(tmp_path)
    assert "cannot be read now: no such file or directory" in page.text
    assert html.count("<li><button") == 2 and html.count("<li><button type=\"button\" title=\"b.jpg #0\"><img") == 1


def test_names_cannot_leave_the_data_of_the_script(tmp_path):
    for name in HOSTILE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_photo(tmp_path, name, photo(len(name), 300, 200))
    write_output(tmp_path / "out", process(tmp_path, HOSTILE)[1])
    _, html = report(tmp_path, "--photos", "2")
    assert sorted(name for name, *_ in data_of(html)["photos"])[0].startswith(str(tmp_path))
    assert html.count("<script") == html.count("</script>") == 2
    assert not re.search("[\u202e\x1b\x7f]", html)


def test_an_output_whose_run_has_not_ended(tmp_path):
    write_photo(tmp_path, "a.jpg", photo(1))
    write_output(tmp_path / "out", aligned(tmp_path, ["a.jpg"]))
    for content in (None, b"{", b'{"output": 3}'):
        place = tmp_path / "out" / "run.json"
        place.write_bytes(content) if content else place.unlink()
        page, _ = report(tmp_path)
        assert "no run has ended yet" in page.text and "detector@111111111111" in page.text and "1 ok" in page.text


def test_a_sample_of_many_parts_says_so(tmp_path):
    write_output(tmp_path / "out", *(failures(1, f"{i:03}") for i in range(7)))
    found = survey(
        open_storage(str(tmp_path / "out")), photos=2, faces=0, max_parts=3, progress=lambda line: None
    )
    assert (found.parts, found.parts_read, found.counts.total()) == (7, 3, 3)


@pytest.mark.parametrize(("faces", "shown"), [("1", 1), ("2", 2), ("50", 3)])
def test_no_more_faces_than_asked_for_beyond_the_photos(tmp_path, faces, shown):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_photo(tmp_path, name, photo(1, 300, 200))
    without = aligned(tmp_path, ["a.jpg"], FakeDetector(from_look=99))
    write_output(tmp_path / "out", aligned(tmp_path, ["a.jpg", "b.jpg", "c.jpg"]))
    assert len(without) == 0
    _, html = report(tmp_path, "--photos", "0", "--faces", faces)
    assert html.count("<li><button") == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/none", "{folder}/p.html"], "not an output of jobs.extract"),
        (["{folder}/damaged", "{folder}/p.html"], "is damaged"),
        (["{folder}/out", "{folder}/"], "names a folder"),
        (["{folder}/out", "{folder}/out/run.json/p.html"], "cannot write"),
        (["{folder}/out/run.json", "{folder}/p.html"], "not an output of jobs.extract"),
        (["", "{folder}/p.html"], "a path is empty, perhaps because a variable is not set"),
        (["{folder}/out", "{folder}/out/run.json"], "exists, and is not a page of facelake: choose another file"),
        (["{folder}/out", "/dev/null"], "exists, and is not a page of facelake"),
    ],
)
def test_refusals_end_with_2_and_a_sentence(tmp_path, capsys, arguments, message):
    write_output(tmp_path / "out")
    write_output(tmp_path / "damaged", failures(1))
    for part in (tmp_path / "damaged" / "images").glob("*.parquet"):
        part.write_bytes(part.read_bytes()[:-20])
    assert main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


@pytest.mark.parametrize("options", [["--faces", "0"], ["--faces", "50001"], ["--photos", "-1"], ["--face", "3"]])
def test_wrong_arguments(tmp_path, options):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["out", "p.html", *options])


def test_the_lists_of_alike_faces_can_number_all():
    assert LARGE.faces <= 50_000 < 0xFFFF
