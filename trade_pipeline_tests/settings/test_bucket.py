"""Where a deployment's bucket is, from the environment."""

import pytest

from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.bucket import BucketSettings


def test_without_the_variable_there_is_no_bucket() -> None:
    assert BucketSettings.from_environment({}) is None
    assert BucketSettings.from_environment({"TRADE_PIPELINE_S3": ""}) is None


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix"),
    [
        ("s3://my-bucket", "my-bucket", ""),
        ("s3://my-bucket/", "my-bucket", ""),
        ("s3://my-bucket/a/b", "my-bucket", "a/b"),
    ],
)
def test_the_address_names_bucket_and_prefix(uri: str, bucket: str, prefix: str) -> None:
    found = BucketSettings.from_environment(
        {"TRADE_PIPELINE_S3": uri, "TRADE_PIPELINE_S3_URL": "https://s3api-eu-ro-1.runpod.io/"}
    )
    assert found is not None
    assert (found.bucket, found.prefix) == (bucket, prefix)
    assert found.url == "https://s3api-eu-ro-1.runpod.io/"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TRADE_PIPELINE_S3", "my-bucket/prefix"),
        ("TRADE_PIPELINE_S3", "s3://my-bucket/a//b"),
        ("TRADE_PIPELINE_S3", "s3://My_Bucket"),
        ("TRADE_PIPELINE_S3_URL", "s3api-eu-ro-1.runpod.io"),
    ],
)
def test_what_is_no_address_is_named_with_its_variable(variable: str, value: str) -> None:
    environment = {"TRADE_PIPELINE_S3": "s3://my-bucket", variable: value}
    with pytest.raises(SettingsError, match=variable):
        BucketSettings.from_environment(environment)
