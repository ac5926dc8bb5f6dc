"""What only RunPod's GraphQL has, through the `runpod` SDK 1.12: balance, spend limit, timers.

The SDK sends queries well and reads answers badly; its failures are put into the project's words
here. It takes its address from the environment, which is changed for one query at a time and put
back. Its exceptions know the API key and never leave this module. Start at `SdkAccount`.
"""

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, SecretStr

from trade_pipeline.compute.runpod.api import Account
from trade_pipeline.compute.runpod.errors import (
    AccessDenied,
    RateLimited,
    RequestRefused,
    RunPodError,
    RunPodUnavailable,
)
from trade_pipeline.compute.runpod.refusals import MOST_WORDS, usable_key
from trade_pipeline.compute.runpod.wire import Wire, read

URL_VARIABLE = "RUNPOD_API_BASE_URL"  # where the SDK looks for its address, at each query

_one_at_a_time = threading.Lock()  # the environment belongs to the whole process
_TOO_MANY = re.compile(r"rate limit|too many requests|\b429\b", re.IGNORECASE)
_DENIED = re.compile(r"not authorized|unauthori[sz]ed|forbidden|permission|access denied", re.I)


class _Myself(Wire):
    balance: float = Field(alias="clientBalance")
    spend_limit: float | None = Field(default=None, alias="spendLimit")
    spend: float = Field(alias="currentSpendPerHr")


class _Who(Wire):
    myself: _Myself


class SdkAccount:
    """See `AccountApi`.

    Args:
        url: such as `https://api.runpod.io`, without `/graphql`.
        api_key: of the account.

    Raises:
        AccessDenied: the key cannot be one.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url.rstrip("/")
        self._key = SecretStr(usable_key(api_key))

    def __repr__(self) -> str:
        return f"SdkAccount({self._url!r})"

    def account(self) -> Account:
        """See `AccountApi.account`.

        Raises:
            AccessDenied, RateLimited, RequestRefused, RunPodUnavailable: see `errors`.
        """
        about = "balance of the account"
        query = "query { myself { clientBalance spendLimit currentSpendPerHr } }"
        who = read(self._asked(about, query), _Who)
        if isinstance(who, str):
            raise _unusable(about, who)
        me = who.myself
        return Account(me.balance, me.spend_limit, me.spend)

    def terminate_after(self, pod_id: str, when: datetime) -> None:
        """See `AccountApi.terminate_after`.

        A second belt and no brake: RunPod's published schema has this timer for creation only,
        and RunPod said in August 2026 (runpod/runpodctl pull request 330) that its timers were
        accepted and acted on by nothing. Whoever calls this terminates the pod all the same.

        Raises:
            AccessDenied, RateLimited, RequestRefused, RunPodUnavailable: see `errors`.
        """
        if when.tzinfo is None:
            raise ValueError(f"{when} has no time zone; a timer of pod {pod_id} needs one.")
        timer = when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # Quoted here: the SDK escapes nothing, and a GraphQL string is written like one of JSON.
        fields = f"podId: {json.dumps(pod_id)}, terminateAfter: {json.dumps(timer)}"
        query = f"mutation {{ podEditJob(input: {{ {fields} }}) {{ id }} }}"
        about = f"timer of pod {pod_id}"
        if not self._asked(about, query).get("podEditJob"):
            raise RequestRefused(
                f"{about}: RunPod did not say that it took it. Look whether the pod is still there."
            )

    def _asked(self, about: str, query: str) -> dict[str, Any]:
        """The `data` of an answer."""
        answer = self._answer(about, query)
        if isinstance(answer, RunPodError):
            raise answer  # here, where no exception of the SDK is under way to be attached to it
        if isinstance(answer, dict) and isinstance(answer.get("data"), dict):
            data: dict[str, Any] = answer["data"]
            return data
        said = self._clean(json.dumps(answer))
        if _TOO_MANY.search(said):  # with status 429, which the SDK does not look at
            raise _rate_limited(about, said)
        if _DENIED.search(said):
            raise _denied(about, said, 403)
        raise _unusable(about, f"key 'data' of the answer is missing: {said}")

    def _answer(self, about: str, query: str) -> Any:
        """What the SDK makes of the answer, or the exception that its failure means."""
        # Only on use: it takes seconds to load, and few processes ask for the account.
        import requests
        from runpod import error as sdk
        from runpod.api.graphql import run_graphql_query

        try:
            with _one_at_a_time, _address(self._url):
                return run_graphql_query(query, api_key=self._key.get_secret_value())
        except sdk.AuthenticationError as error:
            return _denied(about, self._clean(str(error)), 401)
        except sdk.QueryError as error:
            return _refused(about, self._clean(str(error)))
        except requests.JSONDecodeError:
            # An HTML page, also where its status was 429 or 5xx, which the SDK does not look at.
            return _unusable(about, "the answer is no JSON")
        except requests.RequestException as error:
            why = self._clean(f"{type(error).__name__}: {error}")
            return RunPodUnavailable(
                f"{about}: no answer from {self._url} ({why}). Look whether this machine reaches "
                "RunPod, and at RunPod's status page; then run again."
            )
        except (LookupError, TypeError, AttributeError):
            # The SDK looks into whatever is called "errors", such as the texts of a REST refusal.
            return _unusable(about, "the answer has errors in a form that the SDK does not know")

    def _clean(self, text: str) -> str:
        text = text.replace(self._key.get_secret_value(), "<API key>")
        return " ".join(text.split())[:MOST_WORDS].rstrip(".")


@contextmanager
def _address(url: str) -> Iterator[None]:
    """The SDK's address within the block; the environment is as it was afterwards."""
    before = os.environ.get(URL_VARIABLE)
    os.environ[URL_VARIABLE] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ[URL_VARIABLE]
        else:
            os.environ[URL_VARIABLE] = before


def _refused(about: str, said: str) -> RunPodError:
    """GraphQL gives every refusal the same form; only the wording tells them apart."""
    if _TOO_MANY.search(said):
        return _rate_limited(about, said)
    if _DENIED.search(said):
        return _denied(about, said, 403)
    return RequestRefused(
        f"{about}: RunPod answered: {said}. Correct what it names; sending the same again would "
        "not help."
    )


def _denied(about: str, said: str, status: int) -> AccessDenied:
    return AccessDenied(
        f"{about}: RunPod answered {status}: {said}. Set RUNPOD_API_KEY to a key of the account "
        "that may do this.",
        status,
    )


def _rate_limited(about: str, said: str) -> RateLimited:
    return RateLimited(
        f"{about}: RunPod answered: {said}. Run again later, or have fewer runs ask at once."
    )


def _unusable(about: str, what: str) -> RunPodUnavailable:
    return RunPodUnavailable(
        f"{about}: {what}. Look at RunPod's status page and run again; if it stays, RunPod changed "
        "its GraphQL: compare with https://graphql-spec.runpod.io."
    )
