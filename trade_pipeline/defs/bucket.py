"""The client of a store's bucket: dagster-aws's `S3Resource` with our settings of the connection.

Takes a second to import, so only what has a bucket does. Start at `mirror_of`.
"""

import functools
from pathlib import Path
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from dagster_aws.s3 import S3Resource

from trade_pipeline.settings.bucket import BucketSettings
from trade_pipeline.storage.mirror import Mirror
from trade_pipeline.storage.objects import CLIENT_CONFIG, ObjectStore


class AnyS3Resource(S3Resource):
    """An S3 of AWS, of a RunPod volume, or of another; `ObjectStore` does the repeating."""

    def get_client(self) -> Any:
        """A client that asks for nothing that only AWS has."""
        config = CLIENT_CONFIG
        if self.use_unsigned_session:
            config = config.merge(Config(signature_version=UNSIGNED))
        return boto3.session.Session(profile_name=self.profile_name).client(
            "s3",
            region_name=self.region_name,
            endpoint_url=self.endpoint_url,
            use_ssl=self.use_ssl,
            verify=self.verify,
            aws_access_key_id=self.aws_access_key_id,
            aws_secret_access_key=self.aws_secret_access_key,
            aws_session_token=self.aws_session_token,
            config=config,
        )


@functools.lru_cache(maxsize=8)  # a client takes long to make, and serves all threads
def _objects(bucket: BucketSettings) -> ObjectStore:
    client = AnyS3Resource(endpoint_url=bucket.url).get_client()
    return ObjectStore(client, bucket.bucket, bucket.prefix)


def mirror_of(bucket: BucketSettings, store: Path) -> Mirror:
    """A store's folder as the cache of a bucket; asks nothing of the bucket yet."""
    return Mirror(_objects(bucket), store)
