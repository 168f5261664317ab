"""`ray job submit`, nodes on demand, and the IAM policy of `cluster.yaml`, with real Rays on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path

import boto3
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.run.cluster import REPOSITORY
from tests.faults.harness import (
    IMAGES,
    STUB_ARGUMENTS,
    JobRunner,
    Place,
    Tables,
    assert_exact,
    committed,
    photos,
    read_tables,
    wait_until,
)
from tests.faults.stub_job import Faults
from tests.support.photos import ASSETS
from tests.support.ray_head import AUTHENTICATED, Head, Metric, free_port, scrape, start_head, totals

pytestmark = pytest.mark.timeout(600)
# It starts raylets on this machine.
FAKE_NODES = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


@pytest.fixture(scope="module")
def head():
    """Two CPUs and a dashboard. Metrics every second; a stopped job gets as much time to end as in cluster.yaml."""
    with start_head("--num-cpus=2", RAY_metrics_report_interval_ms="1000", RAY_JOB_STOP_WAIT_TIME_S="30") as head:
        yield head


@pytest.fixture(scope="module")
def undisturbed(ray_address, tmp_path_factory) -> tuple[Place, Tables]:
    """A folder of images, and the tables of a run on it without faults."""
    folder = tmp_path_factory.mktemp("submit")
    (folder / "in").mkdir()
    for name, content in photos():
        (folder / "in" / name).write_bytes(content)
    place = Place(str(folder / "in"), str(folder / "undisturbed"), IMAGES, STUB_ARGUMENTS)
    JobRunner(folder, environment={"RAY_ADDRESS": ray_address}).run(place)
    return place, read_tables(place.storage)


def stub_job(place: Place, *arguments: object) -> list[str]:
    return ["tests.faults.stub_job", place.input, place.output, *map(str, (*place.arguments, *arguments))]


def run(command: list[str], **environment: str) -> str:
    """Run a command, which must succeed; returns what it printed."""
    result = subprocess.run(command, cwd=REPOSITORY, env=os.environ | AUTHENTICATED | environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=280)
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout


def submitted(
    head: Head, name: str, place: Place, *arguments: object, faults: Faults | None = None, code_travels: bool = True
) -> list[str]:
    """The command that submits the stub job. code_travels: send the code; `.rayignore` leaves out the tests."""
    variables = {"PYTHONPATH": str(REPOSITORY), "STUB_FAULTS": json.dumps(asdict(faults or Faults()))}
    environment = {"env_vars": variables} | ({"working_dir": str(REPOSITORY)} if code_travels else {})
    return head.job("submit", "--submission-id", name, "--runtime-env-json", json.dumps(environment), "--",
                    sys.executable, "-m", *stub_job(place, *arguments))


def of_last_driver(metrics: list[Metric]) -> list[Metric]:
    """The metrics of the latest driver. Ray numbers the drivers; the ids of other processes are random."""
    drivers = {each.labels["WorkerId"] for each in metrics if re.fullmatch(r"\d{2}0{6}f{48}", each.labels["WorkerId"])}
    return [each for each in metrics if each.labels["WorkerId"] == max(drivers)]


def test_a_job_is_submitted_stopped_and_resumed(head, undisturbed, tmp_path, figures):
    """Its logs are followed until it stops. The metrics of the second job agree with `run.json`."""
    place, expected = undisturbed
    place = place.with_output(str(tmp_path / "out"))
    faults = Faults(image_s=0.1, block="40.png")         # so it does not end before it is stopped
    following = subprocess.Popen(submitted(head, "first", place, faults=faults), env=os.environ | AUTHENTICATED,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: len(committed(place.storage)) >= IMAGES // 4, seconds=240)
    queues = {"run", "decode+detect+keypoint+align+embed"}
    wait_until(lambda: queues <= totals(scrape(head.metrics), "queue").keys())     # Ray exports them now and then
    waiting = totals(scrape(head.metrics), "queue")
    stop = time.monotonic()
    run(head.job("stop", "first"))
    printed = following.communicate(timeout=60)[0]
    stop = time.monotonic() - stop
    done = committed(place.storage)
    assert f"{IMAGES} to do" in printed
    assert "interrupted. Committed images are kept. To resume, run:" in printed, printed
    assert "Job 'first' was stopped" in run(head.job("status", "first"))
    assert IMAGES // 4 <= len(done) < IMAGES and not (tmp_path / "out" / "run.json").exists()

    printed = run(submitted(head, "second", place))
    assert "Job 'second' succeeded" in printed and f"{len(done)} done before; {IMAGES - len(done)} to do" in printed
    assert_exact(place, expected)
    assert "nothing to do" in run(submitted(head, "third", place))

    assert 0 < waiting["run"] <= IMAGES and 0 <= waiting["decode+detect+keypoint+align+embed"] <= IMAGES
    this_run = json.loads((tmp_path / "out" / "run.json").read_text())["this_run"]
    wait_until(lambda: totals(of_last_driver(scrape(head.metrics)), "name")["images_total"] == IMAGES - len(done))
    second = of_last_driver(scrape(head.metrics))
    statuses = {name: count for name, count in this_run.items() if name in totals(second, "status")}
    assert statuses == totals(second, "status") and sum(statuses.values()) == this_run["images"]
    assert totals(second, "name")["faces_total"] == this_run["faces"]
    left = expected.images.filter(pc.invert(pc.is_in(expected.images["uri"], pc.pa.array(sorted(done)))))
    assert totals(second, "name")["bytes_total"] == pc.sum(left["file_bytes"]).as_py()
    seconds = totals(scrape(head.metrics), "stage")
    assert set(seconds) == {"decode", "detect", "keypoint", "align", "embed"}
    assert seconds["detect"] >= 0.1 * len(done) > seconds["align"]
    figures("submit", images=IMAGES, committed_when_stopped=len(done), seconds_to_stop=round(stop, 1), rows_lost=0)


def test_submitted_with_the_repository_as_working_dir(head, tmp_path):
    """With the shipped models, as the documentation shows it."""
    run([sys.executable, "-m", "jobs.preflight"])
    printed = run(head.job("submit", "--working-dir", REPOSITORY, "--", sys.executable, "-m", "jobs.extract", ASSETS,
                        tmp_path / "out"))
    assert "ok 2" in printed
    assert json.loads((tmp_path / "out" / "run.json").read_text())["output"]["ok"] == 2
    assert pq.read_table(tmp_path / "out" / "faces").num_rows >= 4


def test_joining_the_cluster_ships_the_code(head, tmp_path):
    """The job starts in another folder, so the workers have the code only if it was sent."""
    command = [sys.executable, "-m", "jobs.extract", str(ASSETS / "zidane.jpg"), str(tmp_path / "out")]
    environment = os.environ | AUTHENTICATED | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert pq.read_table(tmp_path / "out" / "images")["status"].to_pylist() == ["ok"]


def on_demand(port: int, file: Path) -> dict[str, str]:
    """Write a small autoscaler configuration like that of cluster.yaml. Its nodes are raylets on this machine.

    Returns the variables that the head needs. The GPU exists only as a number. `make` hides the GPUs, and then Ray
    refuses it, unless CUDA_VISIBLE_DEVICES is 0.
    """
    head_id = f"{0:05}".rjust(56, "f")
    kinds = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
             "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
             "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1}}
    nothing = {name: [] for name in (
        "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands",
        "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")}
    file.write_text(json.dumps({
        "cluster_name": "on-demand", "max_workers": 2, "upscaling_speed": 100, "idle_timeout_minutes": 5,
        "provider": {"type": "external", "module": FAKE_NODES, "gcs_address": f"127.0.0.1:{port}",
                     "head_node_id": head_id, "launch_multiple": True},
        "available_node_types": kinds, "head_node_type": "ray.head.default", "file_mounts": {},
        "file_mounts_sync_continuously": False, "auth": {}, **nothing,
    }))
    return {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1",
            "CUDA_VISIBLE_DEVICES": "0", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id, "RAY_CLOUD_INSTANCE_ID": head_id}


def test_nodes_come_when_the_job_asks(undisturbed, tmp_path, figures):
    """The head has no CPU, as in cluster.yaml and rayjob.yaml. One pool starts a CPU node, the other a GPU node."""
    place, expected = undisturbed
    place, port, file = place.with_output(str(tmp_path / "out")), free_port(), tmp_path / "autoscaling.json"
    variables = on_demand(port, file)
    with start_head("--num-cpus=0", "--num-gpus=0", f"--autoscaling-config={file}", port=port, **variables) as head:
        wait_until(lambda: nodes_of(head) == [{}])
        printed = run(submitted(
            head, "scaled", place, "--device", "cuda", "--gpus", 1, "--num-cpus", 3, "--shared-filesystem",
            "--pools", "decode:1/detect+keypoint+align+embed",
            code_travels=False,      # all nodes would unpack it into the same folder
        ))
        assert "Planned for 3 CPUs and 1 GPUs." in printed
        assert {"CPU": 1.0, "GPU": 1.0} in nodes_of(head)
        figures("nodes on demand", images=IMAGES, nodes_started=len(nodes_of(head)) - 1, rows_lost=0)
    assert_exact(place, expected)


def nodes_of(head: Head) -> list[dict[str, float]]:
    """CPUs and GPUs of each live node, from the dashboard."""
    request = urllib.request.Request(f"{head.dashboard}/api/v0/nodes",
                                     headers={"Authorization": f"Bearer {AUTHENTICATED['RAY_AUTH_TOKEN']}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        nodes = json.load(answer)["data"]["result"]["result"]
    return [{name: node["resources_total"][name] for name in ("CPU", "GPU") if node["resources_total"].get(name)}
            for node in nodes if node["state"] == "ALIVE"]


def test_the_policy_of_cluster_yaml_is_enough(s3_endpoint, undisturbed, figures):
    """The S3 server enforces it. A run and a resume succeed; writes to the photos and reads elsewhere are denied."""
    text = (REPOSITORY / "cluster.yaml").read_text()
    shown = re.search(r"^# facelake-worker:\n((?:#.*\n)+?)#\n", text, re.MULTILINE)[1]
    client, iam = (boto3.client(name, endpoint_url=s3_endpoint) for name in ("s3", "iam"))
    bucket = f"test{time.time_ns():x}"
    client.create_bucket(Bucket=bucket)
    for name, content in photos():
        client.put_object(Bucket=bucket, Key=f"photos/{name}", Body=content)
    iam.create_user(UserName=bucket)
    policy = json.loads(re.sub(r"^# ?", "", shown, flags=re.MULTILINE).replace("BUCKET", bucket))
    # For a DeleteObjects request moto, unlike S3, wants s3:DeleteObject on the bucket itself.
    policy["Statement"].append({"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{bucket}"})
    iam.put_user_policy(UserName=bucket, PolicyName="worker", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=bucket)["AccessKey"]
    credentials = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    place = Place(f"s3://{bucket}/photos/", f"s3://{bucket}/faces", IMAGES, STUB_ARGUMENTS)
    enforce(s3_endpoint, True)
    try:
        printed = run([sys.executable, "-m", *stub_job(place)], **credentials)
        assert f"{IMAGES} to do" in printed
        assert "nothing to do" in run([sys.executable, "-m", *stub_job(place)], **credentials)
        allowed = boto3.client("s3", endpoint_url=s3_endpoint, aws_access_key_id=key["AccessKeyId"],
                               aws_secret_access_key=key["SecretAccessKey"])
        for refused in (
            lambda: allowed.put_object(Bucket=bucket, Key="photos/00.png", Body=b""),
            lambda: allowed.delete_object(Bucket=bucket, Key="photos/00.png"),
            lambda: allowed.get_object(Bucket=bucket, Key="elsewhere/a"),
        ):
            with pytest.raises(allowed.exceptions.ClientError, match=r"Access ?Denied"):
                refused()
    finally:
        enforce(s3_endpoint, False)
    assert len(read_tables(place.storage).images) == IMAGES
    figures("least permissions", images=IMAGES, rows_lost=0)


def enforce(s3_endpoint: str, policies: bool) -> None:
    """Switch moto's check of policies on or off."""
    urllib.request.urlopen(urllib.request.Request(
        f"{s3_endpoint}/moto-api/reset-auth", data=b"0" if policies else b"inf", headers={"Content-Type": "text/plain"},
    )).close()
