"""Runs killed by kill -9 with input and output on a server that behaves like Google Cloud Storage."""

from __future__ import annotations

from pipeline.output import ledger
from tests.faults.harness import IMAGES, STUB_ARGUMENTS, Place, assert_exact, photos, read_tables, wait_until
from tests.faults.stub_job import Faults


def test_a_run_is_killed_twice_and_resumed(google_uri, bucket, shared_ray, own_ray, tmp_path, figures):
    for name, content in photos():
        bucket.client.put_object(Bucket=bucket.name, Key=f"in/{name}", Body=content, ACL="public-read")
    root, _, query = google_uri.partition("?")
    place = Place(f"{root}/in/?{query}", f"{root}/undisturbed?{query}", IMAGES, STUB_ARGUMENTS)
    shared_ray.run(place)
    expected = read_tables(place.storage)
    assert {uri.rpartition("/")[0] for uri in expected.images["uri"].to_pylist()} == {f"{root}/in"}

    place = place.with_output(f"{root}/killed?{query}")
    for parts in (2, 6):
        job = own_ray.start(place, faults=Faults(image_s=0.1, marks=str(tmp_path)))
        assert wait_until(lambda parts=parts: len(ledger.committed_parts(place.storage)) >= parts, job), job.printed()
        job.kill_all()
    assert ledger.committed_parts(place.storage)
    shared_ray.run(place)
    assert_exact(place, expected)
    figures("driver killed (Google's storage)", kills=2, survived=2, rows_lost=0)
