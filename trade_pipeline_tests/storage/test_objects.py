"""Objects in AWS's S3 and in a RunPod volume's, with real clients over loopback."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from trade_pipeline.storage.location import StorageError
from trade_pipeline.storage.objects import (
    ABANDONED,
    ObjectStore,
    ObjectStoreError,
    ObjectStoreFull,
)
from trade_pipeline_tests.buckets import KINDS, SMALLEST_PART, Bucket

LARGE = bytes(range(256)) * 4096 * 11  # 11 MiB, three parts
KEY = "aapl_ppo/dataset/bars.npy"


@pytest.fixture(params=sorted(KINDS))
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with KINDS[request.param]() as made:
        yield made


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"", b"a few bytes", LARGE], ids=["empty", "small", "large"])
def test_a_file_comes_back_as_it_went(bucket: Bucket, tmp_path: Path, content: bytes) -> None:
    objects = bucket.objects(part_bytes=SMALLEST_PART)
    path = file_of(tmp_path, content)
    objects.put_file(KEY, path)
    assert objects.size(KEY) == len(content)
    assert objects.get_bytes(KEY) == content
    objects.get_file(KEY, tmp_path / "new" / "back")
    assert (tmp_path / "new" / "back").read_bytes() == content
    assert bucket.uploads() == []


def test_what_is_not_there_has_no_size_and_no_content(bucket: Bucket, tmp_path: Path) -> None:
    objects = bucket.objects()
    assert (objects.size(KEY), objects.get_bytes(KEY)) == (None, None)
    objects.delete(KEY)
    with pytest.raises(ObjectStoreError, match=rf"{bucket.name}/some/prefix/{KEY}: there is no"):
        objects.get_file(KEY, tmp_path / "got")
    assert list(tmp_path.iterdir()) == []


def test_keys_are_listed_below_a_folder_and_below_the_prefix(bucket: Bucket) -> None:
    objects = bucket.objects()
    for key in ("a/two", "a/one", "ab/three", "four"):
        objects.put_bytes(key, key.encode())
    bucket.objects("some/prefixed").put_bytes("a/foreign", b"")
    assert objects.keys("a") == ["a/one", "a/two"]
    assert objects.keys("") == ["a/one", "a/two", "ab/three", "four"]
    objects.delete("a/one")
    assert objects.keys("a") == ["a/two"]
    assert bucket.objects("").size("some/prefix/a/two") == 5


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/./b", "a b", "a\\b", "a/"])
def test_a_key_that_is_none_of_the_store_is_refused_before_any_request(
    bucket: Bucket, tmp_path: Path, key: str
) -> None:
    objects = bucket.objects()
    for use in (
        lambda: objects.put_bytes(key, b""),
        lambda: objects.put_file(key, file_of(tmp_path, b"")),
        lambda: objects.get_bytes(key),
        lambda: objects.get_file(key, tmp_path / "got"),
        lambda: objects.size(key),
        lambda: objects.delete(key),
    ):
        with pytest.raises(StorageError, match="is not allowed"):
            use()
    assert bucket.front.seen == []


def test_nothing_is_asked_that_a_network_volume_does_not_understand(
    bucket: Bucket, large: Path, tmp_path: Path
) -> None:
    objects = bucket.objects(part_bytes=SMALLEST_PART)
    objects.put_file(KEY, large)
    objects.put_bytes("small", b"bytes")
    objects.get_file(KEY, tmp_path / "got")
    objects.delete(KEY)
    for method, target, headers in bucket.front.seen:
        assert target.startswith(f"/{bucket.name}"), "not path style"
        assert "delete" not in target.partition("?")[2]
        sent = " ".join(f"{name}:{value}" for name, value in headers.items()).lower()
        for foreign in ("x-amz-checksum", "x-amz-trailer", "aws-chunked", "x-amz-meta", "tagging"):
            assert foreign not in sent, (method, target)
    sizes = [int(headers.get("Content-Length", 0)) for _, _, headers in bucket.front.seen]
    assert max(sizes) == SMALLEST_PART


def test_the_bucket_is_in_the_path_since_a_volume_has_no_host_of_its_own() -> None:
    objects = ObjectStore.connect(
        "volume",
        "",
        url="https://s3api-eu-ro-1.runpod.io/",
        region="eu-ro-1",
        access_key_id="AKIDTEST",
        secret_access_key="sEcReT",
    )
    address = objects.client.generate_presigned_url("get_object", {"Bucket": "volume", "Key": "k"})
    assert address.startswith("https://s3api-eu-ro-1.runpod.io/volume/k?")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 524])
def test_an_answer_that_says_nothing_is_asked_again(bucket: Bucket, status: int) -> None:
    objects = bucket.objects()
    bucket.front.break_next("refuse", "PUT", KEY, status, times=2)
    bucket.front.break_next("refuse", "GET", KEY, status, times=2)
    objects.put_bytes(KEY, b"content")
    assert objects.get_bytes(KEY) == b"content"


def test_attempts_are_bounded_and_the_error_names_the_object(bucket: Bucket) -> None:
    objects = bucket.objects(attempts=4)
    bucket.front.break_next("refuse", "PUT", KEY, 502, times=4)
    with pytest.raises(ObjectStoreError, match=f"s3://{bucket.name}/some/prefix/{KEY}.* 4 attempt"):
        objects.put_bytes(KEY, b"content")
    assert len(bucket.front.targets("PUT")) == 4


def test_a_broken_connection_is_asked_again(bucket: Bucket) -> None:
    objects = bucket.objects()
    bucket.front.break_next("cut", "PUT", KEY)
    objects.put_bytes(KEY, b"content")
    assert objects.get_bytes(KEY) == b"content"


def test_a_download_that_breaks_off_starts_again(
    bucket: Bucket, large: Path, tmp_path: Path
) -> None:
    objects = bucket.objects()
    objects.put_file(KEY, large)
    bucket.front.break_next("cut", "GET", KEY, times=2)
    objects.get_file(KEY, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == LARGE


def test_a_download_that_never_ends_leaves_the_old_file_and_nothing_else(
    bucket: Bucket, large: Path, tmp_path: Path
) -> None:
    objects = bucket.objects()
    objects.put_file(KEY, large)
    target = tmp_path / "folder" / "got"
    target.parent.mkdir()
    target.write_text("old")
    bucket.front.break_next("cut", "GET", KEY, times=3)
    with pytest.raises(ObjectStoreError, match=f"{KEY}: cannot be read"):
        objects.get_file(KEY, target)
    assert [path.name for path in target.parent.iterdir()] == ["got"]
    assert target.read_text() == "old"


def test_no_more_is_taken_than_was_allowed(bucket: Bucket, tmp_path: Path) -> None:
    objects = bucket.objects()
    objects.put_bytes(KEY, b"0123456789")
    objects.get_file(KEY, tmp_path / "got", limit_bytes=10)
    (tmp_path / "got").unlink()
    for take in (
        lambda: objects.get_file(KEY, tmp_path / "got", limit_bytes=9),
        lambda: objects.get_bytes(KEY, limit_bytes=9),
    ):
        with pytest.raises(ObjectStoreError, match="holds 10 bytes, more than the 9"):
            take()
    assert list(tmp_path.iterdir()) == []


def test_a_full_volume_says_what_to_do_and_is_not_asked_again(bucket: Bucket) -> None:
    objects = bucket.objects()
    bucket.front.break_next("refuse", "PUT", KEY, 507)
    with pytest.raises(ObjectStoreFull, match="enlarge the network volume"):
        objects.put_bytes(KEY, b"content")
    assert len(bucket.front.targets("PUT")) == 1


def test_an_upload_that_finds_the_volume_full_leaves_no_parts(bucket: Bucket, large: Path) -> None:
    objects = bucket.objects(part_bytes=SMALLEST_PART)
    objects.put_bytes(KEY, b"old")
    bucket.front.break_next("refuse", "PUT", "partNumber=3", 507)
    with pytest.raises(ObjectStoreFull):
        objects.put_file(KEY, large)
    assert bucket.uploads() == []
    assert objects.get_bytes(KEY) == b"old"


@pytest.mark.parametrize("status", [502, 524])
def test_an_upload_that_ended_in_spite_of_its_answer_is_there(
    bucket: Bucket, large: Path, status: int
) -> None:
    objects = bucket.objects(part_bytes=SMALLEST_PART)
    bucket.front.break_next("answer_wrongly", "POST", "uploadId=", status)
    objects.put_file(KEY, large)
    assert objects.get_bytes(KEY) == LARGE
    assert len(bucket.front.targets("POST")) == 2, "begun again, though it was there"


def test_an_upload_whose_end_was_cut_off_is_there(bucket: Bucket, large: Path) -> None:
    objects = bucket.objects(part_bytes=SMALLEST_PART)
    bucket.front.break_next("cut", "POST", "uploadId=")
    objects.put_file(KEY, large)
    assert objects.get_bytes(KEY) == LARGE


@pytest.mark.parametrize("status", [502, 524])
def test_an_upload_that_did_not_end_is_ended_by_asking_again(
    bucket: Bucket, large: Path, status: int
) -> None:
    objects = bucket.objects(part_bytes=SMALLEST_PART)
    bucket.front.break_next("refuse", "POST", "uploadId=", status, times=2)
    objects.put_file(KEY, large)
    assert objects.get_bytes(KEY) == LARGE


def test_an_upload_that_never_ends_is_aborted_and_the_old_object_stays(
    bucket: Bucket, large: Path
) -> None:
    objects = bucket.objects(part_bytes=SMALLEST_PART)
    old = LARGE[::-1]  # of the same size: size alone shows nothing
    objects.put_bytes(KEY, old)
    bucket.front.break_next("refuse", "POST", "uploadId=", 524, times=3)
    with pytest.raises(ObjectStoreError, match=f"{KEY}: cannot be written"):
        objects.put_file(KEY, large)
    assert bucket.uploads() == []
    assert objects.get_bytes(KEY) == old
    objects.put_file(KEY, large)
    assert objects.get_bytes(KEY) == LARGE


def test_what_was_taken_but_is_not_there_is_no_success(bucket: Bucket) -> None:
    objects = bucket.objects()
    bucket.front.break_next("swallow", "PUT", KEY, 200)
    with pytest.raises(ObjectStoreError, match=r"7 bytes were sent and taken, but .* nothing"):
        objects.put_bytes(KEY, b"content")


def test_an_upload_that_a_killed_process_left_is_aborted_once_it_is_old() -> None:
    with KINDS["aws"]() as bucket:
        objects = bucket.objects()
        for key in (KEY, f"{KEY}2"):
            objects.client.create_multipart_upload(Bucket=bucket.name, Key=f"some/prefix/{key}")
        listed = objects.client.list_multipart_uploads(Bucket=bucket.name)["Uploads"]
        began = max(one["Initiated"] for one in listed)
        assert objects.abort_abandoned(KEY, began + ABANDONED) == 0, "it may be one at work"
        assert objects.abort_abandoned(KEY, began + ABANDONED + timedelta(minutes=1)) == 1
        assert bucket.uploads() == [f"some/prefix/{KEY}2"]


def test_bytes_are_known_by_their_etag_however_they_went(bucket: Bucket, large: Path) -> None:
    for part_bytes in (SMALLEST_PART, len(LARGE)):
        objects = bucket.objects(part_bytes=part_bytes)
        objects.put_file(KEY, large)
        assert objects.holds(KEY, large)
        other = large.with_name("other")
        other.write_bytes(LARGE[::-1])
        assert not objects.holds(KEY, other)
    assert not objects.holds("absent", large)


def test_a_refused_key_pair_is_named_without_its_secret(bucket: Bucket) -> None:
    objects = bucket.objects()
    bucket.front.break_next("refuse", "GET", KEY, 403)
    with pytest.raises(ObjectStoreError, match="see that the key pair") as refused:
        objects.get_bytes(KEY)
    assert bucket.keys[1] not in str(refused.value)
    assert len(bucket.front.seen) == 1
