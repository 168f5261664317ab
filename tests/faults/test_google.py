"""Photos and tables on Google's storage, behind a server that keeps generations as Google's does."""

from __future__ import annotations

from pipeline.output import ledger
from tests.faults.harness import IMAGES, SMALL, Place, assert_exact, photos, read_tables, wait_until
from tests.faults.stub_job import Faults


def test_killed_and_gone_on_with(google_uri, bucket, starter, tmp_path, figures):
    for name, content in photos():
        bucket.client.put_object(Bucket=bucket.name, Key=f"in/{name}", Body=content, ACL="public-read")
    root, _, query = google_uri.partition("?")
    place = Place(f"{root}/in/?{query}", f"{root}/undisturbed?{query}", IMAGES, (*SMALL, "--rows-per-file", 4))
    starter.run(place)
    expected = read_tables(place.storage)
    assert {uri.rpartition("/")[0] for uri in expected.images["uri"].to_pylist()} == {f"{root}/in"}

    place = place.at(f"{root}/killed?{query}")
    for parts in (2, 6):
        job = starter.start(place, faults=Faults(image_s=0.1, marks=str(tmp_path)))
        assert wait_until(lambda parts=parts: len(ledger.committed_parts(place.storage)) >= parts, job), job.said()
        job.kill_all()
    assert ledger.committed_parts(place.storage)
    starter.run(place)
    assert_exact(place, expected)
    figures("driver killed (Google's storage)", kills=2, survived=2, rows_lost=0)
