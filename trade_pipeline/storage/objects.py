"""Objects of one bucket: AWS's S3, the S3 of a RunPod network volume, or any other.

Only what all of them have is used: no DeleteObjects, presigned URLs, tags, metadata or versions.
An answer that leaves open what happened (5xx, a broken connection) is asked again, and a multipart
upload whose end is unclear is looked at before it counts as done or as failed.

    StorageError
      ObjectStoreError      the bucket cannot be reached, refuses, or holds something wrong
        ObjectStoreFull     it has no room left

Knows nothing of bundles and frames; those travel with `storage.s3`. Start at `ObjectStore.connect`.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple

import boto3
from botocore import exceptions
from botocore.config import Config
from botocore.parsers import ResponseParserError

from trade_pipeline.storage.location import ArtifactLocation, StorageError, replacing

# Larger files go in parts. RunPod takes 500 MB at once and in a part; smaller parts lose less.
PART_BYTES = 64 * 2**20
WAITS_S = (0.5, 2.0, 5.0, 10.0, 20.0)  # before an unclear answer is asked for again
ABANDONED = timedelta(days=1)  # an upload that began so long ago belongs to nobody
_MOST_PARTS = 10_000
_CHUNK_BYTES = 2**20
_FULL = {"InsufficientStorage", "EDQUOT", "ENOSPC", "QuotaExceeded", "XMinioStorageFull"}
_AGAIN = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling"}
_TRANSIENT = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.IncompleteReadError,
    ResponseParserError,
)
_FAILURES = (exceptions.ClientError, exceptions.BotoCoreError, ResponseParserError)
# Newer checksums and virtual hosts are AWS's own; retries are `ObjectStore`'s, which knows more.
CLIENT_CONFIG = Config(
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    s3={"addressing_style": "path"},
    retries={"mode": "standard", "total_max_attempts": 1},
    connect_timeout=10,
    read_timeout=120,
)


class ObjectStoreError(StorageError):
    """The bucket cannot be reached, refuses, or holds something else; the message names the key."""


class ObjectStoreFull(ObjectStoreError):  # noqa: N818 - named after what happened
    """The bucket or volume has no room left (507)."""


class Stored(NamedTuple):
    """What a bucket says of an object; `etag` is opaque except as `ObjectStore.holds` reads it."""

    size: int
    etag: str


class ObjectStore:
    """One bucket and prefix; safe to share between threads.

    Keys are those of `ArtifactLocation`, below the prefix.

    Args:
        client: a boto3 client for S3, of `connect` or of dagster-aws.
        bucket: name of the bucket; the id of a network volume.
        prefix: key prefix without slashes around it; may be empty.
        part_bytes: size of the parts of an upload; a file that is larger goes in parts.
        waits_s: seconds to wait before each further attempt.
        sleep: waits.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str,
        *,
        part_bytes: int = PART_BYTES,
        waits_s: Sequence[float] = WAITS_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if prefix:
            ArtifactLocation(Path(), prefix)
        self.client, self.bucket, self.prefix = client, bucket, prefix
        self._part_bytes, self._waits_s, self._sleep = part_bytes, tuple(waits_s), sleep

    @classmethod
    def connect(
        cls,
        bucket: str,
        prefix: str,
        *,
        url: str | None,
        region: str,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> "ObjectStore":
        """A store with a client of its own; asks nothing of the bucket yet.

        Args:
            bucket: name of the bucket; the id of a network volume.
            prefix: key prefix without slashes around it; may be empty.
            url: endpoint, None for AWS's.
            region: of the bucket; a network volume's data center.
            access_key_id: None for what boto3 finds (`AWS_ACCESS_KEY_ID` and so on).
            secret_access_key: goes with it.
        """
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=url,
            region_name=region,
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key,
            config=CLIENT_CONFIG,
        )
        return cls(client, bucket, prefix)

    def below(self, folder: str) -> "ObjectStore":
        """The same bucket with a longer prefix."""
        prefix = f"{self.prefix}/{folder}" if self.prefix else folder
        return ObjectStore(
            self.client,
            self.bucket,
            prefix,
            part_bytes=self._part_bytes,
            waits_s=self._waits_s,
            sleep=self._sleep,
        )

    def uri(self, key: str) -> str:
        """The whole name of an object, for messages. Raises `StorageError` for a bad key."""
        return f"s3://{self.bucket}/{self._full(key)}"

    def put_file(self, key: str, path: Path) -> None:
        """Put a file; the object is the old one or the new one, never a part of it.

        Raises:
            ObjectStoreFull: there is no room.
            ObjectStoreError: it could not be put, or could not be shown to be there.
        """
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= self._part_bytes:
                self.put_bytes(key, file.read())
            else:
                self._put_parts(key, file, size)

    def put_bytes(self, key: str, content: bytes) -> None:
        """Put a small object, in one request. Raises as `put_file` does."""
        self._ask("put_object", key, "written", Body=content)
        self._require_size(key, len(content))

    def get_file(self, key: str, path: Path, limit_bytes: int | None = None) -> str:
        """Get an object as a file, atomically: an interruption leaves what was there before.

        Args:
            key: of the object.
            path: the file to make; its folders are made.
            limit_bytes: most that is taken, whatever the bucket announces.

        Returns:
            SHA-256 of the file, 64 hex digits.

        Raises:
            ObjectStoreError: there is none, it is larger, or it could not be read whole.
            StorageError: the file cannot be written.
        """
        with replacing(ArtifactLocation(path.parent, path.name)) as temporary:
            return self._receive(key, temporary, limit_bytes)

    def get_bytes(self, key: str, limit_bytes: int | None = None) -> bytes | None:
        """A small object's content, None where there is none. Raises as `get_file` does."""

        def read(chunks: Iterator[bytes]) -> bytes:
            return b"".join(chunks)

        content: bytes | None = self._read(key, limit_bytes, read)
        return content

    def head(self, key: str) -> Stored | None:
        """Size and ETag of an object; None where there is none. Raises `ObjectStoreError`."""
        answer = self._ask("head_object", key, "looked at", absent=True)
        return None if answer is None else Stored(answer["ContentLength"], _etag(answer))

    def modified(self, key: str) -> datetime | None:
        """When an object was written, by the bucket's clock; None where there is none."""
        answer = self._ask("head_object", key, "looked at", absent=True)
        return None if answer is None else answer["LastModified"]

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none. Raises `ObjectStoreError`."""
        stored = self.head(key)
        return None if stored is None else stored.size

    def holds(self, key: str, path: Path) -> bool:
        """Whether the bucket is known to hold these bytes: by size, and the ETag of a plain upload.

        False also where an S3 has ETags of its own kind, as with KMS: then nobody can tell.
        """
        stored = self.head(key)
        if stored is None or stored.size != path.stat().st_size:
            return False
        return stored.etag == self._expected_etag(path)

    def delete(self, key: str) -> None:
        """Delete one object; it need not be there. Raises `ObjectStoreError`."""
        self._ask("delete_object", key, "deleted", absent=True)

    def keys(self, prefix: str) -> list[str]:
        """Keys below a prefix, a folder or the empty one, in order. Slow on a network volume."""
        return list(self.listed(prefix))

    def listed(self, prefix: str) -> dict[str, Stored]:
        """Key to size and ETag of all objects below a prefix, in order of keys. Slow likewise."""
        root = f"{self.prefix}/" if self.prefix else ""
        below = f"{self._full(prefix)}/" if prefix else root
        found: dict[str, Stored] = {}
        token: dict[str, Any] = {}
        while True:
            page = self._ask("list_objects_v2", None, "listed", Prefix=below, **token)
            for one in page.get("Contents", ()):
                if not one["Key"].endswith("/"):  # a volume lists its folders as well
                    found[one["Key"][len(root) :]] = Stored(one["Size"], _etag(one))
            following = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or following is None:
                return dict(sorted(found.items()))
            if following == token.get("ContinuationToken"):
                raise ObjectStoreError(
                    f"s3://{self.bucket}/{below}: the list does not end, the bucket gives the same "
                    "page again; try later."
                )
            token = {"ContinuationToken": following}

    def abort_abandoned(self, key: str, now: datetime) -> int:
        """Abort uploads of a key that a killed process left: they take room and are never seen.

        Only those older than `ABANDONED`: a younger one may be another process at work. What
        cannot be listed or aborted stays; it does no other harm.

        Returns:
            How many were aborted.
        """
        aborted = 0
        with suppress(*_FAILURES):
            listed = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self._full(key))
            for one in listed.get("Uploads", ()):
                if one["Key"] == self._full(key) and one["Initiated"] < now - ABANDONED:
                    self._abort(key, one["UploadId"])
                    aborted += 1
        return aborted

    def _abort(self, key: str, upload: str) -> None:
        self.client.abort_multipart_upload(Bucket=self.bucket, Key=self._full(key), UploadId=upload)

    def _put_parts(self, key: str, file: IO[bytes], size: int) -> None:
        self.abort_abandoned(key, datetime.now(UTC))
        before = self.head(key)
        answer = self._ask("create_multipart_upload", key, "written")
        upload = answer["UploadId"]
        try:
            parts, digests = [], []
            for number, content in enumerate(self._parts(file, size), start=1):
                answer = self._ask(
                    "upload_part",
                    key,
                    "written",
                    UploadId=upload,
                    PartNumber=number,
                    Body=content,
                )
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                digests.append(_md5(content))
            sent = Stored(size, _etag_of_parts(digests))
            self._complete(key, upload, parts, sent, before)
        except BaseException:
            # Otherwise its parts would take room that nobody sees.
            with suppress(*_FAILURES):
                self._abort(key, upload)
            raise
        self._require_size(key, size)

    def _parts(self, file: IO[bytes], size: int) -> Iterator[bytes]:
        part_bytes = max(self._part_bytes, math.ceil(size / _MOST_PARTS))
        while content := file.read(part_bytes):
            yield content

    def _complete(
        self,
        key: str,
        upload: str,
        parts: list[dict[str, Any]],
        sent: Stored,
        before: Stored | None,
    ) -> None:
        """End an upload; where the answer leaves open whether it ended, look at the object."""
        for wait_s in (*self._waits_s, None):
            try:
                self.client.complete_multipart_upload(
                    Bucket=self.bucket,
                    Key=self._full(key),
                    UploadId=upload,
                    MultipartUpload={"Parts": parts},
                )
                return
            except _FAILURES as error:
                # An upload that is unknown may be one that an earlier attempt has ended.
                if not _is_transient(error) and not _is_absent(error):
                    raise self._refusal(key, "written", error) from error
                now = self.head(key)
                # The ETag, where it is one of ours; elsewhere at least another than before.
                if (
                    now is not None
                    and now.size == sent.size
                    and (now.etag == sent.etag or now != before)
                ):
                    return
                if wait_s is None:
                    raise self._refusal(key, "written", error) from error
                self._sleep(wait_s)

    def _expected_etag(self, path: Path) -> str:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= self._part_bytes:
                return hashlib.file_digest(file, _new_md5).hexdigest()
            return _etag_of_parts([_md5(content) for content in self._parts(file, size)])

    def _require_size(self, key: str, size: int) -> None:
        found = self.size(key)
        if found != size:
            held = "nothing" if found is None else f"{found} bytes"
            raise ObjectStoreError(
                f"{self.uri(key)}: {size} bytes were sent and taken, but the bucket holds {held}; "
                "run it again, and see that nothing else writes there."
            )

    def _receive(self, key: str, temporary: Path, limit_bytes: int | None) -> str:
        def write(chunks: Iterator[bytes]) -> str:
            digest = hashlib.sha256()
            with temporary.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            return digest.hexdigest()

        digest: str | None = self._read(key, limit_bytes, write)
        if digest is None:
            raise ObjectStoreError(
                f"{self.uri(key)}: there is no such object; run what puts it there first."
            )
        return digest

    def _read(
        self, key: str, limit_bytes: int | None, take: Callable[[Iterator[bytes]], Any]
    ) -> Any:
        """What `take` makes of an object's content, None where there is none; cut off, again."""
        for wait_s in (*self._waits_s, None):
            answer = self._ask("get_object", key, "read", absent=True)
            if answer is None:
                return None
            try:
                # `with body` would give the raw stream, which takes a cut-off body for a whole one.
                with closing(answer["Body"]) as body:
                    return take(self._chunks(key, body, answer["ContentLength"], limit_bytes))
            except _TRANSIENT as error:
                if wait_s is None:
                    raise self._refusal(key, "read", error) from error
                self._sleep(wait_s)
        raise AssertionError("unreachable")

    def _chunks(
        self, key: str, body: Any, announced: int, limit_bytes: int | None
    ) -> Iterator[bytes]:
        def too_large(size: int) -> ObjectStoreError:
            return ObjectStoreError(
                f"{self.uri(key)}: holds {size} bytes, more than the {limit_bytes} that are taken; "
                "it is not what it should be. Have it written again."
            )

        if limit_bytes is not None and announced > limit_bytes:
            raise too_large(announced)
        taken = 0
        while chunk := body.read(_CHUNK_BYTES):
            taken += len(chunk)
            if limit_bytes is not None and taken > limit_bytes:
                raise too_large(taken)
            yield chunk

    def _ask(
        self, operation: str, key: str | None, verb: str, *, absent: bool = False, **details: Any
    ) -> Any:
        """One request that may be repeated; None for 404 where `absent` is fine."""
        if key is not None:
            details["Key"] = self._full(key)
        for wait_s in (*self._waits_s, None):
            try:
                return getattr(self.client, operation)(Bucket=self.bucket, **details)
            except _FAILURES as error:
                if absent and _is_absent(error):
                    return None
                if wait_s is None or not _is_transient(error):
                    raise self._refusal(key, verb, error) from error
                self._sleep(wait_s)
        raise AssertionError("unreachable")

    def _full(self, key: str) -> str:
        ArtifactLocation(Path(), key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _refusal(self, key: str | None, verb: str, error: Exception) -> ObjectStoreError:
        where = f"s3://{self.bucket}" if key is None else self.uri(key)
        status, code = _status(error), _code(error)
        if status == 507 or code in _FULL:
            return ObjectStoreFull(
                f"{where}: cannot be {verb}, the bucket or volume is full ({error}). Delete what "
                "nobody needs there, or enlarge the network volume, and run it again; what was "
                "stored is unchanged."
            )
        if code == "NoSuchBucket":
            advice = "there is no such bucket; make it, or name the right one."
        elif status in (401, 403) or isinstance(
            error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)
        ):
            advice = (
                "see that the key pair for this S3 is in the environment, and may read and write "
                "this bucket."
            )
        elif _is_transient(error):
            advice = (
                f"{len(self._waits_s) + 1} attempts gave no usable answer; see that the endpoint "
                "can be reached, and run it again."
            )
        else:
            advice = "the request was refused; see what the S3 says."
        return ObjectStoreError(f"{where}: cannot be {verb} ({error}): {advice}")


def _status(error: Exception) -> int:
    if not isinstance(error, exceptions.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: Exception) -> str:
    if not isinstance(error, exceptions.ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def _is_absent(error: Exception) -> bool:
    return _status(error) == 404 and _code(error) != "NoSuchBucket"


def _is_transient(error: Exception) -> bool:
    """Whether asking again may help: nothing was refused, no usable answer came."""
    if isinstance(error, exceptions.ClientError):
        status = _status(error)
        return (
            _code(error) in _AGAIN or status == 429 or (status >= 500 and status not in (501, 507))
        )
    return isinstance(error, _TRANSIENT)


def _etag(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _new_md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _etag_of_parts(digests: Sequence[bytes]) -> str:
    """The ETag that S3 gives an object of parts."""
    return f"{_md5(b''.join(digests)).hex()}-{len(digests)}"
