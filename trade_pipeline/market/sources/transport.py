"""How a venue is asked: paced per venue and pair, repeated while that helps, its progress told.

The one retry layer of the project; clients below it must not retry on their own. Knows no venue.
Start at `Line.ask`; `CrawlProgress` tells people how far a long crawl is.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import tenacity

from trade_pipeline.market.sources.base import SourceError, Surroundings

MOST_ATTEMPTS = 8
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
PROGRESS_EVERY_MS = 10_000
LEAST_SHARE = 0.001  # of a crawl, before its end can be told

T = TypeVar("T")


class BadResponseError(Exception):
    """An answer that is not what the venue sends when all is well: worth asking again."""


class _Pace:
    """When the next request of one venue and pair may leave, for all threads of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.next_ms = 0


_paces: dict[tuple[str, str], _Pace] = {}
_paces_lock = threading.Lock()


class Line:
    """Requests for one pair of one venue.

    Args:
        venue: for pacing and messages.
        pair: likewise.
        calls_per_minute: most requests a minute, repeated ones included; None: no limit.
        retryable: whether an error may pass by itself; others are permanent.
        around: clock, sleep and log.
    """

    def __init__(
        self,
        venue: str,
        pair: str,
        calls_per_minute: float | None,
        retryable: Callable[[BaseException], bool],
        around: Surroundings,
    ) -> None:
        self.venue, self.pair, self.around = venue, pair, around
        self.interval_ms = 0 if calls_per_minute is None else round(60_000 / calls_per_minute)
        self.retryable = retryable
        with _paces_lock:
            self._pace = _paces.setdefault((venue, pair), _Pace())

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """The answer of `call`, asked again with growing, jittered waits while that may help.

        Args:
            what: the request, for messages: "OHLC since 2025-01-01".
            call: sends one request and checks its answer; raises `BadResponseError` for garbage.

        Raises:
            SourceError: the error is permanent, or stayed through every attempt.
        """
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(MOST_ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(initial=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            retry=tenacity.retry_if_exception(self._may_pass),
            sleep=self.around.sleep,
            before_sleep=lambda state: self._tell(what, state),
            reraise=True,
        )
        try:
            return retrying(lambda: self._paced(call))
        except SourceError:
            raise
        except Exception as error:
            about = f"{self.venue} {self.pair}: {what}: {type(error).__name__}: {error}"
            if self._may_pass(error):
                raise SourceError(
                    f"{about}; given up after {MOST_ATTEMPTS} attempts. What came before is "
                    "stored: materialize again once the venue answers."
                ) from error
            raise SourceError(
                f"{about}; asking again would not help. Correct the series' source, or what the "
                "message names."
            ) from error

    def _paced(self, call: Callable[[], T]) -> T:
        with self._pace.lock:
            now = self.around.now_ms()
            # Never longer than one interval, should the clock have been set back.
            wait_ms = min(self._pace.next_ms - now, self.interval_ms)
            self._pace.next_ms = max(now, now + wait_ms) + self.interval_ms
        if wait_ms > 0:
            self.around.sleep(wait_ms / 1000)
        return call()

    def _may_pass(self, error: BaseException) -> bool:
        return isinstance(error, BadResponseError) or self.retryable(error)

    def _tell(self, what: str, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        self.around.log(
            f"{self.venue} {self.pair}: {what}: {type(error).__name__}: {error}; "
            f"attempt {state.attempt_number} of {MOST_ATTEMPTS}, again in {wait:.1f} s"
        )


class CrawlProgress:
    """Tells the log, at most every ten seconds, how far a crawl is and how long it will take."""

    def __init__(self, about: str, start_ms: int, end_ms: int, around: Surroundings) -> None:
        self.about, self.start_ms, self.end_ms, self.around = about, start_ms, end_ms, around
        self.started_ms = self.told_ms = around.now_ms()
        self.answers = self.bars = 0

    def step(self, at_ms: int, bars: int) -> None:
        """Count one answer with so many bars (or trades) that reaches up to `at_ms`."""
        self.answers += 1
        self.bars += bars
        now = self.around.now_ms()
        if now - self.told_ms < PROGRESS_EVERY_MS:
            return
        self.told_ms = now
        share = min(max((at_ms - self.start_ms) / max(self.end_ms - self.start_ms, 1), 1e-9), 1.0)
        left = "no estimate yet"
        if share >= LEAST_SHARE:
            left = f"{duration((now - self.started_ms) / 1000 * (1 - share) / share)} left"
        at = datetime.fromtimestamp(at_ms / 1000, UTC)
        self.around.log(
            f"{self.about}: {self.answers} answers, {self.bars} rows, at {at:%Y-%m-%d %H:%M} UTC, "
            f"{share:.1%} done, {left}"
        )


def duration(seconds: float) -> str:
    """Seconds as people say it: 42 s, 7 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
