"""AWS Signature Version 4, checked from the outside; written from AWS's description of it.

Start at `check`.
"""

import hashlib
import hmac
import re
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from trade_pipeline_tests.fakes.web import Request

UNSIGNED = "UNSIGNED-PAYLOAD"
SKEW = timedelta(hours=1)  # RunPod's; AWS allows a quarter of it
_HEADER = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<day>\d{8})/(?P<region>[^/]+)/s3/"
    r"aws4_request, ?"
    r"SignedHeaders=(?P<headers>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


class RefusedError(Exception):
    """An S3 error: code and status."""

    def __init__(self, code: str, status: int, message: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.status = status
        self.message = message or code


def check(request: Request, keys: tuple[str, str], region: str) -> None:
    """Whether a request is signed with these keys for this region.

    Raises:
        RefusedError: it is not.
    """
    if {"X-Amz-Signature", "Signature", "AWSAccessKeyId"} & request.query.keys():
        raise RefusedError("NotImplemented", 501, "Presigned URLs are not supported.")
    found = _HEADER.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        raise RefusedError("AccessDenied", 403, "The request is not signed.")
    if found["key"] != keys[0]:
        raise RefusedError("InvalidAccessKeyId", 403)
    if found["region"].casefold() != region.casefold():
        raise RefusedError(
            "AuthorizationHeaderMalformed", 400, f"the region {found['region']!r} is wrong"
        )
    when = request.headers.get("x-amz-date", "")
    try:
        signed = datetime.strptime(when, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise RefusedError("AccessDenied", 403, "x-amz-date is missing") from None
    if abs(datetime.now(UTC) - signed) > SKEW or when[:8] != found["day"]:
        raise RefusedError("RequestTimeTooSkewed", 403)
    names = found["headers"].split(";")
    payload = request.headers.get("x-amz-content-sha256", "")
    required = {"host", "x-amz-date", "x-amz-content-sha256"}
    if not required <= set(names) or not set(names) <= request.headers.keys():
        raise RefusedError("AccessDenied", 403, f"headers that must be signed: {required}")
    scope = f"{found['day']}/{found['region']}/s3/aws4_request"
    canonical = "\n".join(
        [
            request.method,
            request.raw_path,
            _canonical_query(request.raw_query),
            *(f"{name}:{' '.join(request.headers[name].split())}" for name in names),
            "",
            found["headers"],
            payload,
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{when}\n{scope}\n{digest}"
    key = f"AWS4{keys[1]}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    expected = hmac.digest(key, to_sign.encode(), "sha256").hex()
    if not hmac.compare_digest(expected, found["signature"]):
        raise RefusedError("SignatureDoesNotMatch", 403)


def check_payload(request: Request) -> None:
    """Whether the body is the one that was signed. Raises `RefusedError`."""
    stated = request.headers["x-amz-content-sha256"]
    if stated not in (UNSIGNED, hashlib.sha256(request.body).hexdigest()):
        raise RefusedError("XAmzContentSHA256Mismatch", 400)


def _canonical_query(raw: str) -> str:
    pairs = [part.partition("=") for part in raw.split("&") if part]
    encoded = sorted((_encoded(name), _encoded(value)) for name, _, value in pairs)
    return "&".join(f"{name}={value}" for name, value in encoded)


def _encoded(text: str) -> str:
    return quote(unquote(text), safe="-_.~")
