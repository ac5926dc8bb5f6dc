"""Buckets for tests: one of AWS's S3 (moto) and a RunPod volume's, each behind a `Front`."""

import functools
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from trade_pipeline.storage.objects import PART_BYTES, ObjectStore
from trade_pipeline_tests.fakes.s3 import Front, front, moto_url

REGION = "us-east-1"
SMALLEST_PART = 5 * 2**20  # that S3 takes, the last one excepted


@dataclass
class Bucket:
    """An empty bucket, and what a client needs to know of it."""

    front: Front
    name: str
    region: str
    keys: tuple[str, str]
    uploads: Callable[[], list[str]]  # those that were begun and neither ended nor aborted

    def objects(
        self, prefix: str = "some/prefix", part_bytes: int = PART_BYTES, attempts: int = 3
    ) -> ObjectStore:
        """What production connects, with smaller parts and no time between attempts."""
        waits = (0.0,) * (attempts - 1)
        return ObjectStore(self._client, self.name, prefix, part_bytes=part_bytes, waits_s=waits)

    @functools.cached_property
    def _client(self) -> Any:
        return ObjectStore.connect(
            self.name,
            "",
            url=self.front.url,
            region=self.region,
            access_key_id=self.keys[0],
            secret_access_key=self.keys[1],
        ).client

    def environment(self) -> dict[str, str]:
        """The key pair as boto3 finds it by itself."""
        return {
            "AWS_ACCESS_KEY_ID": self.keys[0],
            "AWS_SECRET_ACCESS_KEY": self.keys[1],
            "AWS_DEFAULT_REGION": self.region,
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def uri(self) -> str:
        """Where a store may be, as settings name it."""
        return f"s3://{self.name}/some/prefix"


@contextmanager
def aws_bucket() -> Iterator[Bucket]:
    def uploads() -> list[str]:
        listed = bucket.objects().client.list_multipart_uploads(Bucket=bucket.name)
        return [one["Key"] for one in listed.get("Uploads", ())]

    with front(moto_url()) as passing:
        name, keys = f"tests-{secrets.token_hex(6)}", ("AKIDTEST", "sEcReT")
        bucket = Bucket(passing, name, REGION, keys, uploads)
        bucket.objects().client.create_bucket(Bucket=bucket.name)
        passing.seen.clear()
        yield bucket


@contextmanager
def runpod_bucket() -> Iterator[Bucket]:
    from trade_pipeline_tests.fakes.runpod.server import FakeRunPod

    with FakeRunPod() as fake:
        volume = fake.add_volume("EU-RO-1")

        def uploads() -> list[str]:
            return [path.name for path in volume.path.glob(".s3compat_uploads/*")]

        with front(fake.s3_url) as passing:
            region = volume.data_center.lower()
            yield Bucket(passing, volume.id, region, fake.s3_keys, uploads)
        assert not fake.unexpected, f"no route of RunPod's: {fake.unexpected}"


KINDS = {"aws": aws_bucket, "runpod": runpod_bucket}
