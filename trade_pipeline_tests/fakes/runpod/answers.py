"""Answers that are no success, and the planned ones that come instead of any answer.

Start at `instead_of`.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from trade_pipeline_tests.fakes.runpod.faults import INSTEAD, Fault
from trade_pipeline_tests.fakes.web import HangUpError, Reply, json_reply

if TYPE_CHECKING:
    from trade_pipeline_tests.fakes.runpod.server import FakeRunPod

VAGUE = "Something went wrong. Please try again later or contact support."
_PAGE = (
    "<!DOCTYPE html>\n<html><head><title>{status} {title}</title></head>"
    "<body><center><h1>{status} {title}</h1></center><hr><center>cloudflare</center></body></html>"
)


class ProblemError(Exception):
    """A request that is refused, in the words of RFC 9457."""

    def __init__(self, status: int, detail: str, errors: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors

    @property
    def reply(self) -> Reply:
        """The problem as an answer."""
        content: dict[str, Any] = {
            "title": title(self.status),
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            content["errors"] = list(self.errors)
        return json_reply(content, self.status, "application/problem+json")


def title(status: int) -> str:
    """The name of a status; proxies have some of their own."""
    known = {item.value: item.phrase for item in HTTPStatus}
    return known.get(status, {524: "A timeout occurred"}.get(status, "Unknown Error"))


def html(status: int) -> Reply:
    """A proxy's page."""
    page = _PAGE.format(status=status, title=title(status))
    return Reply(status, page.encode(), "text/html; charset=UTF-8")


def instead_of(
    fake: "FakeRunPod", operation: str, *, gpu: str = "", pod: tuple[str, ...] = ()
) -> Reply | None:
    """The planned answer that comes instead of this operation's; waits where one is to be late.

    Raises:
        HangUpError: no answer is to come.
    """
    slow = fake.faults.take("slow", operation, gpu=gpu, pod=pod)
    if slow is not None:
        (slow["until"] or fake.stopping).wait(slow["seconds"])
    fault = fake.faults.take(INSTEAD, operation, gpu=gpu, pod=pod)
    return None if fault is None else _made(fake, fault)


def _made(fake: "FakeRunPod", fault: Fault) -> Reply:
    if fault.name == "timeout":
        raise silence(fake, fault["seconds"])
    if fault.name == "reset":
        raise HangUpError(reset=True)
    if fault.name == "html":
        return html(fault["status"])
    if fault.name == "rate_limited":
        reply = ProblemError(429, "rate limit exceeded for the minute window").reply
        if fault["retry_after"] is None:
            return reply
        headers = {"Retry-After": str(fault["retry_after"])}
        return Reply(reply.status, reply.body, reply.content_type, headers)
    if fault.name == "unauthorized":
        return ProblemError(401, "missing bearer token").reply
    if fault.name == "forbidden":
        return ProblemError(403, "access denied").reply
    return ProblemError(fault["status"], VAGUE).reply


def silence(fake: "FakeRunPod", seconds: float | None) -> HangUpError:
    """To be raised: no answer for so long, then the end of the connection."""
    return HangUpError(fake.hold_s if seconds is None else seconds)


def with_unknown_keys(content: Any) -> Any:
    """The same answer from a newer service: a key that nobody knows in every object."""
    if isinstance(content, dict):
        known = {key: with_unknown_keys(value) for key, value in content.items()}
        return {**known, "addedNextYear": {"a": [1]}}
    if isinstance(content, list):
        return [with_unknown_keys(value) for value in content]
    return content
