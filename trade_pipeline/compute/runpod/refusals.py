"""What RunPod's refusals and silences mean: which exception, in which words.

By status first, then by wording, since several causes share a status. No message holds the API
key, and no exception of httpx is passed on: those hold the request, and with it the key. Knows no
route and sends nothing. Start at `Refusals`.
"""

import json
import re
from dataclasses import dataclass

import httpx
from pydantic import SecretStr

from trade_pipeline.compute.runpod.errors import (
    AccessDenied,
    CandidateRefused,
    CreationUnclear,
    RateLimited,
    RequestRefused,
    RunPodError,
    RunPodUnavailable,
    SpendLimitReached,
)
from trade_pipeline.compute.runpod.wire import parse

MOST_WORDS = 600  # characters of RunPod's own, in a message

_CAPACITY = re.compile(
    r"no longer any instances|not have the resources|insufficient (capacity|resources)"
    r"|out of (stock|capacity)|no (instances|machines|gpus|capacity)\b.{0,30}\bavailable",
    re.IGNORECASE,
)
_MONEY = re.compile(r"\b(balance|funds|credits?|spend(ing)?)\b", re.IGNORECASE)
_LIMIT = re.compile(r"\blimits?\b", re.IGNORECASE)
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
HELD_BACK = 429  # RunPod did nothing yet: the one answer after which creation may be sent again


@dataclass(frozen=True)
class NoAnswer:
    """What became of a request that got none: plain words instead of httpx's exception.

    Attributes:
        sent: whether RunPod may have received the request.
    """

    why: str
    sent: bool


Outcome = httpx.Response | NoAnswer


class Refusals:
    """Puts answers into words.

    Args:
        url: where RunPod is, for messages.
        key: must be in no message.
    """

    def __init__(self, url: str, key: SecretStr) -> None:
        self._url, self._key = url, key

    def no_answer(self, error: httpx.RequestError) -> NoAnswer:
        """What httpx raised, in words."""
        why = self.clean(f"{type(error).__name__}: {error}")
        return NoAnswer(why, sent=not isinstance(error, _NOT_SENT))

    def of_creation(self, about: str, outcome: Outcome) -> RunPodError:
        """What an answer to a creation means: by its status first, then by its wording."""
        if isinstance(outcome, NoAnswer):
            return unclear(about, outcome.why) if outcome.sent else self.of(about, outcome)
        status, words = outcome.status_code, self.words(outcome)
        if status >= 500 or status == 408:
            return unclear(about, f"RunPod answered {status}: {words}")
        if status in (401, 402, HELD_BACK):
            return self.of(about, outcome)
        said = f"{about}: RunPod answered {status}: {words}."
        if _CAPACITY.search(words):
            return CandidateRefused(f"{said} There is none to be had now; try another GPU type.")
        # A 422 names keys, which may be called anything.
        if status != 422 and (_MONEY.search(words) or (status != 403 and _LIMIT.search(words))):
            return _spend_limit(said)
        if status == 403:
            return CandidateRefused(f"{said} This account may not have it; try another GPU type.")
        return self.of(about, outcome)

    def of(self, about: str, outcome: Outcome) -> RunPodError:
        """What a request's outcome means, for every request but a creation."""
        if isinstance(outcome, NoAnswer):
            return RunPodUnavailable(
                f"{about}: no answer from {self._url} ({outcome.why}). Look whether this machine "
                "reaches RunPod, and at RunPod's status page; then run again."
            )
        status = outcome.status_code
        said = f"{about}: RunPod answered {status}: {self.words(outcome)}."
        if outcome.is_success:
            return RunPodUnavailable(f"{said} That is not what was asked for; run again later.")
        if status == 401:
            return AccessDenied(f"{said} Set RUNPOD_API_KEY to a valid key of the account.", status)
        if status == 403:
            return AccessDenied(
                f"{said} The key in RUNPOD_API_KEY may not do this; give it the permission in "
                "RunPod's console.",
                status,
            )
        if status == 402:
            return _spend_limit(said)
        if status == HELD_BACK:
            return RateLimited(f"{said} Run again later, or have fewer runs ask at once.")
        if status >= 500 or status == 408:
            return RunPodUnavailable(f"{said} Look at RunPod's status page, then run again.")
        return RequestRefused(
            f"{said} Correct what it names; sending the same again would not help."
        )

    def words(self, response: httpx.Response) -> str:
        """What RunPod says in a refusal, on one line; a page's title where a proxy answers."""
        content = parse(response.content)
        if isinstance(content, dict):
            said = [content.get(key) for key in ("detail", "title", "message", "error")]
            errors = content.get("errors")
            parts = [next((one for one in said if one), "no reason given")]
            parts += errors if isinstance(errors, list) else []
            texts = [one if isinstance(one, str) else json.dumps(one) for one in parts]
            text = "; ".join(one.strip().rstrip(".") for one in texts)
        else:
            title = re.search(r"<title[^>]*>(.*?)</title>", response.text, re.I | re.S)
            text = f"a page titled {title[1].strip()!r}" if title else response.text
        return self.clean(text) or "nothing"

    def clean(self, text: str) -> str:
        """Text for a message: on one line, not endless, and without the key."""
        text = text.replace(self._key.get_secret_value(), "<API key>")
        return " ".join(text.split())[:MOST_WORDS].rstrip(".")


def usable_key(api_key: str) -> str:
    """The key without blanks around it.

    Raises:
        AccessDenied: it is empty, or could not be sent; the message does not repeat it.
    """
    key = api_key.strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise AccessDenied(
            "The RunPod API key is empty or holds characters that no key has. Set RUNPOD_API_KEY "
            "to the key as RunPod's console shows it.",
            401,
        )
    return key


def unclear(about: str, what: str) -> CreationUnclear:
    """Of a creation: nobody can tell yet whether there is a pod now."""
    return CreationUnclear(
        f"{about}: {what}. A pod of that name may have been made and may be billing: look for it "
        "in RunPod's list before asking for another."
    )


def _spend_limit(said: str) -> SpendLimitReached:
    return SpendLimitReached(
        f"{said} Add funds or raise the spend limit in RunPod's console "
        "(https://console.runpod.io/user/billing); until then every GPU type is refused."
    )
