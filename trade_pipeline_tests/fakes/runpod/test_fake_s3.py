"""The S3 of a fake volume: what comes back, and what RunPod's refuses."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError, HTTPClientError, ResponseStreamingError

from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.fakes.runpod.account import FakeVolume
from trade_pipeline_tests.fakes.runpod.clients import bucket


def refusal(call: Callable[..., Any], **values: Any) -> tuple[str, int]:
    """Code and status with which a call is refused."""
    with pytest.raises(ClientError) as caught:
        call(**values)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


@pytest.mark.parametrize("key", ["a", "deep/er/x", "spa ce/ü+&=%.txt", "a//b"[:1] + "~-_.!*'()"])
def test_objects_come_back_as_they_went(fake: FakeRunPod, key: str) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    s3.put_object(Bucket=volume.id, Key=key, Body=b"0123456789")
    assert (volume.path / key).read_bytes() == b"0123456789"
    assert s3.head_object(Bucket=volume.id, Key=key)["ContentLength"] == 10
    part = s3.get_object(Bucket=volume.id, Key=key, Range="bytes=2-4")
    assert (part["Body"].read(), part["ContentRange"]) == (b"234", "bytes 2-4/10")
    listed = s3.list_objects_v2(Bucket=volume.id)["Contents"]
    assert [one["Key"] for one in listed] == [key]
    s3.delete_object(Bucket=volume.id, Key=key)
    s3.delete_object(Bucket=volume.id, Key=key)
    assert refusal(s3.head_object, Bucket=volume.id, Key=key)[1] == 404
    assert refusal(s3.get_object, Bucket=volume.id, Key=key) == ("NoSuchKey", 404)


def test_only_the_right_keys_and_region_are_accepted(fake: FakeRunPod) -> None:
    volume = fake.add_volume("EU-RO-1")
    where = {"Bucket": volume.id, "Key": "x"}
    wrong = bucket(fake, aws_secret_access_key="guess")
    assert refusal(wrong.put_object, Body=b"x", **where) == ("SignatureDoesNotMatch", 403)
    unknown = bucket(fake, aws_access_key_id="who")
    assert refusal(unknown.put_object, Body=b"x", **where)[0] == "InvalidAccessKeyId"
    elsewhere = bucket(fake, region_name="us-ks-2")
    assert refusal(elsewhere.put_object, Body=b"x", **where)[0] == "AuthorizationHeaderMalformed"
    bucket(fake, region_name="EU-RO-1").put_object(Body=b"x", **where)
    missing = refusal(bucket(fake).get_object, Bucket="none", Key="x")
    assert missing == ("NoSuchBucket", 404)
    assert httpx.get(f"{fake.s3_url}/{volume.id}/x").status_code == 403


def test_what_runpods_s3_lacks_is_refused(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    where = {"Bucket": volume.id, "Key": "x"}
    s3.put_object(Body=b"x", **where)
    many = {"Bucket": volume.id, "Delete": {"Objects": [{"Key": "x"}]}}
    assert refusal(s3.delete_objects, **many)[1] == 501
    assert refusal(s3.get_bucket_versioning, Bucket=volume.id)[1] == 501
    assert refusal(s3.list_object_versions, Bucket=volume.id)[1] == 501
    assert refusal(s3.get_object_tagging, **where)[1] == 501
    assert refusal(s3.put_object, Body=b"x", Tagging="a=b", **where)[1] == 501
    assert refusal(s3.put_object, Body=b"x", IfNoneMatch="*", **where)[1] == 501
    assert refusal(s3.put_object, Body=b"x", ChecksumAlgorithm="SHA256", **where)[1] == 501
    sums = bucket(fake, config={"request_checksum_calculation": "when_supported"})
    assert refusal(sums.put_object, Body=b"x", **where)[1] == 501
    signed = s3.generate_presigned_url("get_object", Params=where)
    assert httpx.get(signed).status_code == 501
    fake.put_limit_bytes = 3
    assert refusal(s3.put_object, Body=b"1234", **where) == ("EntityTooLarge", 413)
    assert (volume.path / "x").read_bytes() == b"x"
    for key in ("../x", "a/./b", ".s3compat_uploads/x"):
        assert refusal(s3.put_object, Bucket=volume.id, Key=key, Body=b"")[1] in (400, 403)
    assert not (volume.path.parent / "x").exists()


def test_listing_comes_in_pages_and_shows_empty_directories(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    keys = ["a/1", "a/2", "a/b/3", "a.txt", "z"]
    for key in keys:
        s3.put_object(Bucket=volume.id, Key=key, Body=b"")
    (volume.path / "empty/inner").mkdir(parents=True)
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=volume.id, PaginationConfig={"PageSize": 2}
    )
    found = [one["Key"] for page in pages for one in page["Contents"]]
    assert found == sorted([*keys, "empty/inner/"])
    inside = s3.list_objects_v2(Bucket=volume.id, Prefix="a/", Delimiter="/")
    assert [one["Key"] for one in inside["Contents"]] == ["a/1", "a/2"]
    assert inside["CommonPrefixes"] == [{"Prefix": "a/b/"}]


def multipart(s3: Any, volume: FakeVolume, key: str, *parts: bytes) -> Callable[[], Any]:
    """Upload the parts; what comes back completes the object."""
    where = {"Bucket": volume.id, "Key": key}
    upload = {**where, "UploadId": s3.create_multipart_upload(**where)["UploadId"]}
    done = [
        {"PartNumber": n, "ETag": s3.upload_part(PartNumber=n, Body=part, **upload)["ETag"]}
        for n, part in enumerate(parts, 1)
    ]
    return lambda: s3.complete_multipart_upload(MultipartUpload={"Parts": done}, **upload)


def test_an_upload_in_parts_appears_at_once_and_whole(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    complete = multipart(s3, volume, "big", b"one", b"two")
    assert refusal(s3.head_object, Bucket=volume.id, Key="big")[1] == 404
    assert "Contents" not in s3.list_objects_v2(Bucket=volume.id)
    etag = complete()["ETag"]
    assert etag.endswith('-2"')
    assert (volume.path / "big").read_bytes() == b"onetwo"
    assert s3.head_object(Bucket=volume.id, Key="big")["ETag"] == etag
    assert [file.name for file in volume.path.iterdir()] == ["big"]
    with pytest.raises(ClientError, match="NoSuchUpload"):
        complete()


def test_files_of_many_parts_go_both_ways_by_boto3s_own_transfer(
    fake: FakeRunPod, tmp_path: Path
) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    fake.put_limit_bytes = 6_000_000
    parts = TransferConfig(multipart_threshold=5_500_000, multipart_chunksize=5_500_000)
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(12_000_000))
    s3.upload_file(str(there), volume.id, "a/b", Config=parts)
    s3.download_file(volume.id, "a/b", str(back), Config=parts)
    assert back.read_bytes() == there.read_bytes()
    assert len(fake.operations("s3:UploadPart")) == len(fake.operations("s3:GetObject")) == 3


@pytest.mark.parametrize("status", [502, 524])
@pytest.mark.parametrize("done", [True, False])
def test_completion_may_fail_whether_it_was_done_or_not(
    fake: FakeRunPod, status: int, done: bool
) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    complete = multipart(s3, volume, "big", b"one")
    fake.faults.plan("complete_fails", status=status, done=done)
    with pytest.raises(ClientError) as caught:
        complete()
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert (volume.path / "big").exists() is done
    if not done:
        complete()
        assert (volume.path / "big").read_bytes() == b"one"


def test_a_full_volume_takes_no_more(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(limit_bytes=10), bucket(fake)
    s3.put_object(Bucket=volume.id, Key="x", Body=b"123456")
    more = {"Bucket": volume.id, "Key": "y", "Body": b"12345"}
    assert refusal(s3.put_object, **more) == ("InsufficientStorage", 507)
    volume.limit_bytes = 11
    s3.put_object(**more)
    fake.faults.plan("volume_full", on="s3:PutObject")
    assert refusal(s3.put_object, Bucket=volume.id, Key="z", Body=b"")[1] == 507
    assert sorted(file.name for file in volume.path.iterdir()) == ["x", "y"]


def test_transfers_break_off_and_leave_nothing_half_done(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    content = os.urandom(300_000)
    where = {"Bucket": volume.id, "Key": "x"}
    fake.faults.plan("upload_cut", bytes=100_000)
    with pytest.raises(HTTPClientError):
        s3.put_object(Body=content, **where)
    assert list(volume.path.iterdir()) == []
    s3.put_object(Body=content, **where)
    fake.faults.plan("download_cut", bytes=100_000)
    with pytest.raises((ResponseStreamingError, HTTPClientError)):
        s3.get_object(**where)["Body"].read()
    assert s3.get_object(**where)["Body"].read() == content
    fake.faults.plan("slow", on="s3:HeadObject", seconds=0.2)
    began = time.monotonic()
    s3.head_object(**where)
    assert time.monotonic() - began >= 0.2
    fake.faults.plan("server_error", on="s3:GetObject", status=503)
    assert refusal(s3.get_object, **where)[1] == 503
