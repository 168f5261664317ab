"""Listing, reading and writing reach S3 by one configuration."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest

from pipeline.batch import TodoRow
from pipeline.errors import EnvironmentFault
from pipeline.input.buckets import list_objects
from pipeline.input.fetch import Fetch
from pipeline.storage import open_storage
from pipeline.storage.aws import AwsCredentials, BucketAddress, bucket_address, for_actors
from pipeline.storage.clients import forget_clients, open_bucket
from pipeline.storage.uris import FROM_ENVIRONMENT, StoreOptions, UriError
from tests.support.s3_servers import REGION, make_certificates, regional_app, serving_s3

KEYS = "aws_access_key_id = k\naws_secret_access_key = s\n"


def make_bucket(endpoint: str, region: str = "us-east-1", name: str = "photos", **arguments: object) -> None:
    """A bucket with one object. All servers of a process share their buckets."""
    client = boto3.client("s3", endpoint_url=endpoint, region_name=region, aws_access_key_id="k",
                          aws_secret_access_key="s", **arguments)
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    if name not in {each["Name"] for each in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=name, **place)
    client.put_object(Bucket=name, Key="in/a.jpg", Body=b"photo")


def reach_everything(options: StoreOptions = FROM_ENVIRONMENT, name: str = "photos") -> None:
    """List, read by either client, and write."""
    assert [found.key for found in list_objects(f"s3://{name}", "in/", options)] == ["in/a.jpg"]
    [fetched] = Fetch(options)([TodoRow(f"s3://{name}/in/a.jpg")])
    assert fetched.content == b"photo"
    storage = open_storage(f"s3://{name}/out", options)
    assert storage.create("x", b"1") and storage.create("x", b"2") is None
    assert storage.read("x") == b"1"
    storage.delete("x")


def write_profile(home: Path, config: str, credentials: str = "") -> None:
    (home / ".aws").mkdir()
    (home / ".aws/config").write_text(config)
    (home / ".aws/credentials").write_text(credentials)


@pytest.mark.parametrize(
    "config",
    [
        "[default]\nregion = us-east-1\nendpoint_url = {endpoint}\n",
        "[default]\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = {endpoint}\n",
        "[default]\nendpoint_url = {endpoint}\ncredential_process = {python} -c \"print('{process}')\"\n",
    ],
    ids=["endpoint_url", "services", "credential_process"],
)
def test_a_profile_is_enough(aws_environment, config):
    process = r'{\"Version\":1,\"AccessKeyId\":\"k\",\"SecretAccessKey\":\"s\"}'
    with serving_s3() as endpoint:
        make_bucket(endpoint)
        config = config.replace("{endpoint}", endpoint).replace("{python}", sys.executable)
        write_profile(aws_environment, config.replace("{process}", process), f"[default]\n{KEYS}")
        reach_everything()


def test_a_named_profile_assumes_its_role(aws_environment, monkeypatch):
    with serving_s3() as endpoint:
        make_bucket(endpoint)
        write_profile(
            aws_environment,
            "[profile work]\nrole_arn = arn:aws:iam::123456789012:role/reader\nsource_profile = base\n"
            f"region = us-east-1\nendpoint_url = {endpoint}\n[profile base]\nregion = us-east-1\n"
            f"endpoint_url = {endpoint}\n",
            f"[base]\n{KEYS}",
        )
        monkeypatch.setenv("AWS_PROFILE", "work")
        reach_everything()
        assert AwsCredentials(FROM_ENVIRONMENT)()["token"]


def test_the_environment_wins_over_the_profile_and_the_uri_over_both(aws_environment, monkeypatch):
    with serving_s3() as endpoint:
        make_bucket(endpoint)
        write_profile(aws_environment, "[default]\nendpoint_url = http://127.0.0.1:9\n", f"[default]\n{KEYS}")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8")
        reach_everything(StoreOptions(endpoint))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        reach_everything()


@pytest.mark.parametrize("status", ["301 Moved Permanently", "400 Bad Request"])
def test_a_bucket_in_another_region_is_followed_there(aws_environment, monkeypatch, status):
    with serving_s3(regional_app(status)) as endpoint:
        make_bucket(endpoint, REGION, "abroad")
        for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "us-west-2"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        reach_everything(name="abroad")
        assert bucket_address("abroad") == BucketAddress(endpoint, False, REGION, "us-west-2")


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "profile"])
def test_the_certificate_of_a_private_authority(aws_environment, monkeypatch, tmp_path, variable):
    authority, tls = make_certificates(tmp_path)
    with serving_s3(tls=tls) as endpoint:
        make_bucket(endpoint, verify=str(authority))
        in_profile = f"ca_bundle = {authority}\n" if variable == "profile" else ""
        write_profile(aws_environment, f"[default]\nendpoint_url = {endpoint}\n{in_profile}", f"[default]\n{KEYS}")
        if not in_profile:
            monkeypatch.setenv(variable, str(authority))
        reach_everything()


def test_an_unknown_certificate_is_a_fault_of_the_environment(aws_environment, tmp_path):
    _, tls = make_certificates(tmp_path)
    with serving_s3(tls=tls) as endpoint:
        write_profile(aws_environment, f"[default]\nendpoint_url = {endpoint}\n", f"[default]\n{KEYS}")
        with pytest.raises(EnvironmentFault, match=r"s3://photos: its certificate is not trusted; set AWS_CA_BUNDLE"):
            list(Fetch()([TodoRow("s3://photos/in/a.jpg")]))


@pytest.mark.parametrize(
    ("region", "bucket", "endpoint", "virtual"),
    [
        ("us-east-1", "photos", "https://photos.s3.amazonaws.com", True),
        ("eu-west-1", "photos", "https://photos.s3.eu-west-1.amazonaws.com", True),
        ("cn-north-1", "photos", "https://photos.s3.cn-north-1.amazonaws.com.cn", True),
        ("us-gov-west-1", "photos", "https://photos.s3.us-gov-west-1.amazonaws.com", True),
        ("eu-west-1", "my.photos", "https://s3.eu-west-1.amazonaws.com", False),     # no certificate has two dots
    ],
)
def test_addresses_are_those_of_the_partition(aws_environment, monkeypatch, region, bucket, endpoint, virtual):
    monkeypatch.setattr("pipeline.storage.aws._ask_region", lambda name, options: None)
    assert bucket_address(bucket, StoreOptions(region=region)) == BucketAddress(endpoint, virtual, region, region)


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({}, FROM_ENVIRONMENT, FROM_ENVIRONMENT),
        ({"AWS_REGION": "eu-west-1"}, FROM_ENVIRONMENT, StoreOptions(region="eu-west-1")),
        ({"AWS_ENDPOINT_URL": "http://minio:9000"}, FROM_ENVIRONMENT, StoreOptions(s3_endpoint="http://minio:9000")),
        ({"AWS_ENDPOINT_URL": "http://minio:9000", "AWS_DEFAULT_REGION": "eu-west-1"},
         StoreOptions("http://other", "us-west-2", anonymous=True),
         StoreOptions("http://other", "us-west-2", anonymous=True)),
        ({"AWS_ENDPOINT_URL": "http://minio:9000", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, FROM_ENVIRONMENT,
         FROM_ENVIRONMENT),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, FROM_ENVIRONMENT, FROM_ENVIRONMENT),
    ],
)
def test_actors_get_the_drivers_endpoint_and_region(aws_environment, monkeypatch, settings, given, expected):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert for_actors(given) == expected


def test_an_actor_without_the_drivers_environment_reaches_its_bucket(aws_environment, monkeypatch):
    with serving_s3() as endpoint:
        make_bucket(endpoint)
        write_profile(aws_environment, f"[default]\nendpoint_url = {endpoint}\n")
        options = for_actors(FROM_ENVIRONMENT)
        (aws_environment / ".aws/config").unlink()
        for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        forget_clients()
        reach_everything(options)


def test_missing_credentials_are_explained(aws_environment):
    with pytest.raises(UriError, match=r"no AWS credentials found: set AWS_ACCESS_KEY_ID.*\?anonymous=true"):
        open_bucket("s3://bucket-without-credentials")
    with pytest.raises(EnvironmentFault, match="no AWS credentials found"):
        list(Fetch()([TodoRow("s3://bucket-without-credentials/a.jpg")]))


@pytest.mark.parametrize(
    ("profile", "config", "message"),
    [
        ("missing", "", r"the config profile \(missing\) could not be found"),
        ("default", "[default\n", "Unable to parse config file"),
        ("default", "[default]\nendpoint_url = nonsense\n", "Invalid endpoint: nonsense"),
        ("default", "[default]\ncredential_process = false\n", "credential"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(aws_environment, monkeypatch, profile, config, message):
    write_profile(aws_environment, config)
    monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(UriError, match=rf"(?i)the AWS configuration cannot be used: .*{message}.*Check AWS_PROFILE"):
        open_bucket("s3://photos")


def test_credentials_are_renewed(aws_environment):
    """obstore asks for credentials that end soon again, and botocore renews its own."""
    with serving_s3() as endpoint:
        make_bucket(endpoint)
        count = aws_environment / "count"
        script = aws_environment / "credentials.py"
        soon = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        script.write_text(f"""
open({str(count)!r}, "a").write("x")
print('{{"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": "{soon}"}}')
""")
        write_profile(aws_environment, f"[default]\nendpoint_url = {endpoint}\n"
                                       f"credential_process = {sys.executable} {script}\n")
        reach_everything()
        before = len(count.read_text())
        AwsCredentials(FROM_ENVIRONMENT)()
        assert len(count.read_text()) > before
