"""The S3 of network volumes: keys are files, and much of S3 is missing, as RunPod documents it.

Supported: HeadBucket, PutObject, GetObject with Range, HeadObject, DeleteObject, ListObjectsV2 and
multipart uploads. Everything else is refused with 501: DeleteObjects, tagging, versions, presigned
URLs, conditions of writes, checksums, and CopyObject, which RunPod has and nobody here needs. A
write appears whole or not at all. Directories stay when their last file is deleted, and empty ones
are listed with a slash at the end. Start at `Objects.answer`.
"""

import base64
import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from trade_pipeline_tests.fakes.runpod.answers import html, instead_of
from trade_pipeline_tests.fakes.runpod.signature import RefusedError, check, check_payload
from trade_pipeline_tests.fakes.web import HangUpError, Reply, Request

if TYPE_CHECKING:
    from trade_pipeline_tests.fakes.runpod.account import FakeVolume
    from trade_pipeline_tests.fakes.runpod.server import FakeRunPod

HIDDEN = ".s3compat_uploads"
MOST_KEYS = 1000
XML = "application/xml"
HANDLERS = {
    "s3:HeadBucket": "_head_bucket",
    "s3:PutObject": "_put",
    "s3:GetObject": "_get",
    "s3:HeadObject": "_head",
    "s3:DeleteObject": "_delete",
    "s3:ListObjectsV2": "_list",
    "s3:CreateMultipartUpload": "_begin_upload",
    "s3:UploadPart": "_upload_part",
    "s3:CompleteMultipartUpload": "_complete_upload",
    "s3:AbortMultipartUpload": "_abort_upload",
}
_QUERIES = frozenset(  # what a supported request may have in its query
    {
        *("x-id", "list-type", "prefix", "delimiter", "max-keys", "start-after"),
        *("continuation-token", "encoding-type", "fetch-owner", "uploads", "uploadId"),
        *("partNumber",),
    }
)
_REFUSED_HEADERS = re.compile(
    r"x-amz-(tagging|trailer|copy-source.*|sdk-checksum.*|checksum-(?!mode|type).*|acl|"
    r"server-side-encryption.*|object-lock.*|storage-class|website.*)|if-none-match"
)


class Objects:
    """Answers what comes to the S3's port."""

    def __init__(self, fake: "FakeRunPod") -> None:
        self._fake = fake
        self._uploads: dict[str, tuple[str, Path]] = {}  # id to key and folder of the parts
        self._etags: dict[tuple[Path, int, int], str] = {}  # file, size, change to its ETag

    def answer(self, request: Request) -> Reply:
        """Answer, and keep what was asked. Raises `HangUpError` where no answer is to come."""
        operation, status = "s3:unknown", 0
        try:
            volume_id, _, key = request.path.removeprefix("/").partition("/")
            operation = f"s3:{_operation(request, key)}"
            reply = self._answered(request, operation, volume_id, key)
            status = reply.status
        except RefusedError as refused:
            status = refused.status
            reply = _error(refused, request)
        finally:
            self._fake.note(operation, request.method, request.path, status, request.headers)
        return reply

    def _answered(self, request: Request, operation: str, volume_id: str, key: str) -> Reply:
        volume = self._fake.volumes.get(volume_id)
        region = volume.data_center if volume else self._fake.data_centers[0]
        check(request, self._fake.s3_keys, region)
        if volume is None:
            raise RefusedError("NoSuchBucket", 404)
        _check_supported(request, operation)
        planned = instead_of(self._fake, operation)
        if planned is not None:
            if planned.content_type.startswith("text/html"):
                return planned
            raise RefusedError("InternalError", planned.status)
        if request.method in ("PUT", "POST"):
            self._break_off(request, operation)
            check_payload(request)
        handler: Callable[..., Reply] = getattr(self, HANDLERS[operation])
        if operation in ("s3:HeadBucket", "s3:ListObjectsV2"):
            return handler(request, volume)
        return handler(request, volume, key, _file(volume, key))

    def _break_off(self, request: Request, operation: str) -> None:
        fault = request.length and self._fake.faults.take("upload_cut", operation)
        if fault:
            request.read_some(fault["bytes"])
            raise HangUpError(reset=True)

    # Whole objects.

    def _head_bucket(self, request: Request, volume: "FakeVolume") -> Reply:
        return Reply(200, content_type="")

    def _put(self, request: Request, volume: "FakeVolume", key: str, file: Path) -> Reply:
        self._check_room(request, volume, "s3:PutObject")
        if key.endswith("/"):
            file.mkdir(parents=True, exist_ok=True)
            return Reply(200, content_type="", headers={"ETag": _quoted(b"")})
        folder = volume.path / HIDDEN
        folder.mkdir(exist_ok=True)
        partial = folder / uuid.uuid4().hex
        partial.write_bytes(request.body)
        self._publish(partial, file)
        with contextlib.suppress(OSError):  # uploads of others may be in it
            folder.rmdir()
        etag = _quoted(request.body)
        self._remember(file, etag)
        return Reply(200, content_type="", headers={"ETag": etag})

    def _get(self, request: Request, volume: "FakeVolume", key: str, file: Path) -> Reply:
        content, headers = self._read(file)
        if request.headers.get("if-match", headers["ETag"]) != headers["ETag"]:
            raise RefusedError("PreconditionFailed", 412)
        status = 200
        if "range" in request.headers:
            start, end = _range(request.headers["range"], len(content))
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        cut = self._fake.faults.take("download_cut", "s3:GetObject") if content else None
        cut_after = None if cut is None else min(cut["bytes"], len(content) - 1)
        return Reply(status, content, "binary/octet-stream", {**headers}, cut_after=cut_after)

    def _head(self, request: Request, volume: "FakeVolume", key: str, file: Path) -> Reply:
        content, headers = self._read(file)
        return Reply(200, b"", "binary/octet-stream", headers, length=len(content))

    def _delete(self, request: Request, volume: "FakeVolume", key: str, file: Path) -> Reply:
        with contextlib.suppress(OSError):  # S3 deletes what is not there, too
            if key.endswith("/"):
                file.rmdir()
            else:
                file.unlink()
        return Reply(204, content_type="")

    def _read(self, file: Path) -> tuple[bytes, dict[str, str]]:
        try:
            content = file.read_bytes()
            stat = file.stat()
        except OSError:  # a directory is no object either
            raise RefusedError("NoSuchKey", 404) from None
        etag = self._etags.get((file, stat.st_size, stat.st_mtime_ns)) or _quoted(content)
        modified = formatdate(stat.st_mtime, usegmt=True)
        return content, {"ETag": etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}

    def _remember(self, file: Path, etag: str) -> None:
        with contextlib.suppress(OSError):  # a pod may have taken it away
            stat = file.stat()
            self._etags[file, stat.st_size, stat.st_mtime_ns] = etag

    def _publish(self, partial: Path, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(file)
        except OSError as error:  # a file where a directory must be, or the other way round
            partial.unlink(missing_ok=True)
            raise RefusedError("InvalidRequest", 400, str(error.strerror)) from error

    def _check_room(self, request: Request, volume: "FakeVolume", operation: str) -> None:
        if request.length > self._fake.put_limit_bytes:
            raise RefusedError("EntityTooLarge", 413)
        full = self._fake.faults.take("volume_full", operation)
        if full or volume.used_bytes + request.length > volume.limit_bytes:
            raise RefusedError("InsufficientStorage", 507, "No space left on the network volume.")

    # Listing.

    def _list(self, request: Request, volume: "FakeVolume") -> Reply:
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("start-after", "")
        if "continuation-token" in query:
            try:
                after = base64.urlsafe_b64decode(query["continuation-token"]).decode()
            except ValueError:
                raise RefusedError("InvalidArgument", 400, "continuation-token") from None
        most = min(int(query.get("max-keys", MOST_KEYS)), MOST_KEYS)
        encoded = query.get("encoding-type") == "url"
        entries: list[str] = []
        groups: set[str] = set()
        last, truncated = "", False
        for key in sorted(_keys(volume.path), key=str.encode):
            if not key.startswith(prefix) or key <= after:
                continue
            rest = key[len(prefix) :]
            group = ""
            if delimiter and delimiter in rest:
                group = prefix + rest.partition(delimiter)[0] + delimiter
            if group and (group in groups or group <= after):
                continue
            if len(entries) + len(groups) >= most:
                truncated = True
                break
            if group:
                groups.add(group)
                last = group
            else:
                entries.append(self._entry(volume.path / key, key, encoded))
                last = key
        token = base64.urlsafe_b64encode(last.encode()).decode()
        parts = [
            f"<Name>{volume.id}</Name><Prefix>{_text(prefix, encoded)}</Prefix>",
            f"<KeyCount>{len(entries) + len(groups)}</KeyCount><MaxKeys>{most}</MaxKeys>",
            f"<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>",
            "<EncodingType>url</EncodingType>" if encoded else "",
            f"<NextContinuationToken>{token}</NextContinuationToken>" if truncated else "",
            *entries,
            *(
                f"<CommonPrefixes><Prefix>{_text(one, encoded)}</Prefix></CommonPrefixes>"
                for one in sorted(groups)
            ),
        ]
        return _xml(f"<ListBucketResult>{''.join(parts)}</ListBucketResult>")

    def _entry(self, file: Path, key: str, encoded: bool) -> str:
        size, etag, modified = 0, _quoted(b""), 0.0
        with contextlib.suppress(RefusedError, OSError):  # a directory, or taken away just now
            content, headers = self._read(file)
            size, etag, modified = len(content), headers["ETag"], file.stat().st_mtime
        when = datetime.fromtimestamp(modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return (
            f"<Contents><Key>{_text(key, encoded)}</Key><LastModified>{when}</LastModified>"
            f"<ETag>{escape(etag)}</ETag><Size>{size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )

    # Multipart uploads.

    def _begin_upload(self, request: Request, volume: "FakeVolume", key: str, file: Path) -> Reply:
        upload_id = uuid.uuid4().hex
        folder = volume.path / HIDDEN / upload_id
        folder.mkdir(parents=True)
        self._uploads[upload_id] = (key, folder)
        return _xml(
            f"<InitiateMultipartUploadResult><Bucket>{volume.id}</Bucket>"
            f"<Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId>"
            "</InitiateMultipartUploadResult>"
        )

    def _upload_part(self, request: Request, volume: "FakeVolume", key: str, file: Path) -> Reply:
        folder = self._upload(request, key)
        self._check_room(request, volume, "s3:UploadPart")
        partial = folder / uuid.uuid4().hex
        partial.write_bytes(request.body)
        partial.replace(folder / f"{int(request.query['partNumber']):05d}")
        return Reply(200, content_type="", headers={"ETag": _quoted(request.body)})

    def _complete_upload(
        self, request: Request, volume: "FakeVolume", key: str, file: Path
    ) -> Reply:
        folder = self._upload(request, key)
        fault = self._fake.faults.take("complete_fails", "s3:CompleteMultipartUpload")
        if fault is not None and not fault["done"]:
            return html(fault["status"])
        listed = [
            (int(part.findtext("{*}PartNumber", "0")), part.findtext("{*}ETag", ""))
            for part in ElementTree.fromstring(request.body).iter()
            if part.tag.endswith("Part")
        ]
        if not listed or listed != sorted(listed):
            raise RefusedError("InvalidPartOrder", 400)
        partial, digests = folder / "whole", b""
        with partial.open("wb") as whole:
            for number, etag in listed:
                part = folder / f"{number:05d}"
                content = part.read_bytes() if part.exists() else None
                if content is None or _quoted(content).strip('"') != etag.strip('"'):
                    raise RefusedError("InvalidPart", 400)
                whole.write(content)
                digests += hashlib.md5(content, usedforsecurity=False).digest()
        etag = f'{_quoted(digests)[:-1]}-{len(listed)}"'
        self._publish(partial, file)
        self._remember(file, etag)
        self._forget(request.query["uploadId"])
        if fault is not None:
            return html(fault["status"])
        return _xml(
            f"<CompleteMultipartUploadResult><Bucket>{volume.id}</Bucket><Key>{escape(key)}</Key>"
            f"<ETag>{escape(etag)}</ETag></CompleteMultipartUploadResult>"
        )

    def _abort_upload(self, request: Request, volume: "FakeVolume", key: str, file: Path) -> Reply:
        self._upload(request, key)
        self._forget(request.query["uploadId"])
        return Reply(204, content_type="")

    def _upload(self, request: Request, key: str) -> Path:
        of_key, folder = self._uploads.get(request.query["uploadId"], ("", Path()))
        if of_key != key:
            raise RefusedError("NoSuchUpload", 404)
        return folder

    def _forget(self, upload_id: str) -> None:
        _, folder = self._uploads.pop(upload_id)
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # uploads of others may be in it
            folder.parent.rmdir()


def _operation(request: Request, key: str) -> str:
    """Which operation of S3 this is, or its method where it is none that is supported."""
    method, query = request.method, request.query
    if not key:
        if method == "GET" and query.get("list-type") == "2":
            return "ListObjectsV2"
        return "HeadBucket" if method == "HEAD" else f"{method}Bucket"
    if "uploads" in query:
        return "CreateMultipartUpload" if method == "POST" else "ListMultipartUploads"
    if "uploadId" in query:
        names = {
            "PUT": "UploadPart",
            "POST": "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload",
        }
        return names.get(method, "ListParts")
    return f"{method.title()}Object"


def _check_supported(request: Request, operation: str) -> None:
    """Raises `RefusedError` for what the S3 of RunPod does not have."""
    unknown = request.query.keys() - _QUERIES
    if operation not in HANDLERS or unknown:
        raise RefusedError("NotImplemented", 501, f"{operation} {sorted(unknown)}")
    headers = [name for name in request.headers if _REFUSED_HEADERS.fullmatch(name)]
    if "if-match" in request.headers and operation != "s3:GetObject":
        headers.append("if-match")
    streams = request.headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
    if headers or streams or "aws-chunked" in request.headers.get("content-encoding", ""):
        raise RefusedError("NotImplemented", 501, f"headers {headers or 'aws-chunked'}")


def _file(volume: "FakeVolume", key: str) -> Path:
    parts = key.rstrip("/").split("/")
    if {"", ".", ".."} & set(parts) or "\0" in key or parts[0] == HIDDEN:
        raise RefusedError("InvalidArgument", 400, f"key {key!r} is no path")
    return volume.path.joinpath(*parts)


def _keys(folder: Path) -> Iterator[str]:
    """Every file, and every empty directory with a slash."""
    for path, folders, files in os.walk(folder):
        if Path(path) == folder and HIDDEN in folders:
            folders.remove(HIDDEN)
        relative = Path(path).relative_to(folder).as_posix()
        start = "" if relative == "." else f"{relative}/"
        yield from (start + name for name in files)
        if not files and not folders and start:
            yield start


def _range(header: str, size: int) -> tuple[int, int]:
    """First and last byte."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if found is None or not (found[1] or found[2]):
        raise RefusedError("InvalidArgument", 400, "Range")
    start = int(found[1]) if found[1] else max(0, size - int(found[2]))
    end = min(int(found[2]), size - 1) if found[1] and found[2] else size - 1
    if start > end:
        raise RefusedError("InvalidRange", 416)
    return start, end


def _quoted(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _text(text: str, encoded: bool) -> str:
    return quote(text, safe="/") if encoded else escape(text)


def _xml(body: str, status: int = 200) -> Reply:
    return Reply(status, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'.encode(), XML)


def _error(refused: RefusedError, request: Request) -> Reply:
    if request.method == "HEAD":
        return Reply(refused.status, content_type="", length=0)
    return _xml(
        f"<Error><Code>{refused.code}</Code><Message>{escape(refused.message)}</Message>"
        f"<Resource>{escape(request.path)}</Resource></Error>",
        refused.status,
    )
