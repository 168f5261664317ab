from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.input.names import InputError
from pipeline.input.places import check_places, region_lines
from pipeline.input.rules import Rules
from pipeline.storage.uris import FROM_ENVIRONMENT
from tests.support.s3_servers import REGION, regional_app, serving_s3


@pytest.mark.parametrize(
    ("uri", "output", "message"),
    [
        ("photos", "out", None),
        ("photos/*.jpg", "photos", None),
        ("no/*.jpg", "out", None),                     # found to be empty when it is listed
        ("s3://b/photos/", "s3://b/out", None),
        ("photos/", "photos", "the same folder"),
        ("link", "photos", "the same folder"),
        ("s3://b/photos/", "s3://b/photos", "the same place"),
        ("az://container/photos", "out", "cannot read az://.*blobfuse2"),
        ("s3://", "out", "no bucket or host"),
        ("none.jpg", "out", "no such file or folder: .*none.jpg; check the path"),
    ],
)
def test_places(tmp_path, monkeypatch, uri, output, message):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    rules = Rules(output if "://" in output else str(tmp_path / output))
    if message is None:
        check_places([uri], rules)
    else:
        with pytest.raises(UserError, match=message):
            check_places([uri], rules)


def test_a_bucket_in_another_region_is_said_once(aws_environment, monkeypatch):
    import boto3

    with serving_s3(regional_app("301 Moved Permanently")) as endpoint:
        for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        client = boto3.client("s3", region_name=REGION)
        if "elsewhere" not in {each["Name"] for each in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": REGION})
        uris = ["/local", "https://host/a.jpg", "s3://elsewhere/in/", "s3://elsewhere/out"]
        assert list(region_lines(dict.fromkeys(uris, FROM_ENVIRONMENT))) == [
            "s3://elsewhere is in the region eu-west-1; us-east-1 is configured"
        ]
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot list s3://no_bucket!: "):
        list(region_lines({"s3://no_bucket!/": FROM_ENVIRONMENT}))
