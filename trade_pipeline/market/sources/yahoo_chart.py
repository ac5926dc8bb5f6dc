"""One daily chart of Yahoo Finance, asked through yfinance and checked.

yfinance brings the cookies, a browser's handshake and the mending of Yahoo's known slips in bars
(the running day told twice, midnights off by summer time). But it swallows what is wrong with an
answer: an empty frame may be an unknown ticker or a broken proxy. So the answer is kept and checked
here. Knows no series and no calendar. Start at `ask`.
"""

import json
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from trade_pipeline.market.sources.base import SourceError
from trade_pipeline.market.sources.transport import BadResponseError

CHART = "/v8/finance/chart/"
TIMEOUT_S = 30
REFUSED = frozenset({400, 404, 422})  # with Yahoo's own reason: asking again would not help


class _Wire(BaseModel):
    """Part of a body of Yahoo's chart; more keys may stand there."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True)


class Meta(_Wire):
    """What Yahoo says of the symbol; times are seconds since 1970."""

    symbol: str
    currency: str | None
    instrument_type: str
    exchange_timezone_name: str
    data_granularity: str
    first_trade_date: int | None = None
    regular_market_time: int | None = None

    @field_validator("exchange_timezone_name")
    @classmethod
    def _exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"there is no time zone {name!r}") from error
        return name


class _Dividend(_Wire):
    date: int
    amount: PositiveFloat
    currency: str | None = None


class _Split(_Wire):
    date: int
    numerator: PositiveFloat
    denominator: PositiveFloat


class _Events(_Wire):
    dividends: dict[str, _Dividend] = Field(default_factory=dict)
    splits: dict[str, _Split] = Field(default_factory=dict)
    capital_gains: dict[str, Any] = Field(default_factory=dict)


class _Quote(_Wire):
    open: list[float | None]
    high: list[float | None]
    low: list[float | None]
    close: list[float | None]
    volume: list[float | None]


class _Indicators(_Wire):
    quote: list[_Quote] = Field(min_length=1)


class Chart(_Wire):
    """One symbol's bars as Yahoo sends them: seconds since 1970, one list a column."""

    meta: Meta
    timestamp: list[int]
    indicators: _Indicators
    events: _Events = _Events()

    @model_validator(mode="after")
    def _lists_are_equally_long(self) -> "Chart":
        for name, values in self.indicators.quote[0]:
            if len(values) != len(self.timestamp):
                raise ValueError(
                    f"{len(values)} values of {name} stand beside {len(self.timestamp)} timestamps"
                )
        return self


class Answer(NamedTuple):
    """A checked body, what yfinance made of its bars, and when Yahoo says that it was sent."""

    chart: Chart
    frame: Any  # pandas: index at the exchange's midnight; Open to Close and Volume, split-adjusted
    date_ms: int | None


def ask(ticker: str, start: str, base_url: str | None, about: str) -> Answer:
    """One request, and the one or two that yfinance adds to get a cookie.

    Args:
        ticker: as Yahoo writes it.
        start: first date wanted, YYYY-MM-DD; the end is now, by this machine's clock.
        base_url: where requests go instead of Yahoo's hosts.
        about: the series, for messages.

    Raises:
        BadResponseError: no answer, or garbage.
        SourceError: Yahoo says that there is no such ticker or no such history.
    """
    from yfinance._http import new_session  # type: ignore[import-untyped]
    from yfinance.data import YfData  # type: ignore[import-untyped]
    from yfinance.exceptions import YFRateLimitError  # type: ignore[import-untyped]
    from yfinance.scrapers.history import PriceHistory  # type: ignore[import-untyped]

    session = new_session()
    kept = _keep_chart(session, base_url)
    # Calling the metaclass's parent gives a client of our own instead of the process's one, whose
    # session, cookie and crumb another thread, or another base_url, may be using.
    client = type.__call__(YfData, session)
    unread: Exception | None = None
    try:
        frame = PriceHistory(client, ticker, "UTC", session).history(
            start=start,
            interval="1d",
            auto_adjust=False,
            repair=False,
            keepna=True,
            timeout=TIMEOUT_S,
        )
    except YFRateLimitError as error:
        raise BadResponseError(f"rate limited (HTTP 429): {error}") from error
    except Exception as error:  # yfinance raises whatever pandas does
        unread = error
    finally:
        session.close()
    if not kept:
        raise BadResponseError(f"no answer ({unread})") from unread
    if isinstance(kept[-1], Exception):
        raise BadResponseError(f"{type(kept[-1]).__name__}: {kept[-1]}") from kept[-1]
    status, content, date = kept[-1]
    chart = _checked(status, content, ticker, about)
    if unread is not None or frame.empty:
        raise BadResponseError(f"yfinance reads no bars from it ({unread})") from unread
    return Answer(chart, frame, _date_ms(date))


def _date_ms(header: str | None) -> int | None:
    """The venue's clock; a proxy may leave it out or spoil it."""
    try:
        return int(parsedate_to_datetime(header or "").timestamp() * 1000)
    except ValueError:
        return None


def _keep_chart(
    session: Any, base_url: str | None
) -> list[Exception | tuple[int, bytes, str | None]]:
    """Make a session send its requests to `base_url`, and keep what came of those for a chart.

    Returns:
        Filled by the session: an exception, or (HTTP status, body, header Date), of each chart.
    """
    send = session.request
    kept: list[Exception | tuple[int, bytes, str | None]] = []

    def request(method: str, url: str, *args: Any, **options: Any) -> Any:
        address = urlsplit(url)
        if base_url is not None:
            query = f"?{address.query}" if address.query else ""
            url = f"{base_url.rstrip('/')}{address.path}{query}"
        is_chart = address.path.startswith(CHART)
        try:
            answer = send(method, url, *args, **options)
        except Exception as error:
            if is_chart:
                kept.append(error)
            raise
        if is_chart:
            kept.append((answer.status_code, answer.content, answer.headers.get("Date")))
        return answer

    session.request = request
    return kept


def _checked(status: int, content: bytes, ticker: str, about: str) -> Chart:
    """The chart in a body. Raises `BadResponseError`, or `SourceError` with Yahoo's reason."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    found = body.get("chart") if isinstance(body, dict) else None
    found = found if isinstance(found, dict) else {}
    error, result = found.get("error"), found.get("result")
    if status in REFUSED and isinstance(error, dict):
        raise SourceError(
            f"{about}: Yahoo refuses {ticker}: {error.get('description')!r} "
            f"(HTTP {status}); correct the ticker, or first_year."
        )
    if status != 200 or error or not isinstance(result, list) or not result:
        start = content[:80].decode(errors="replace")
        raise BadResponseError(f"HTTP {status} with no chart of {ticker}: {start!r}")
    if isinstance(result[0], dict) and "meta" in result[0] and not result[0].get("timestamp"):
        raise SourceError(
            f"{about}: Yahoo has no daily bar of {ticker} in the time asked for; correct the "
            "ticker, or first_year."
        )
    try:
        chart = Chart.model_validate(result[0])
    except ValidationError as invalid:
        first = invalid.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadResponseError(
            f"a chart of {ticker} that cannot be read: {where}: {first['msg']}"
        ) from invalid
    if chart.meta.symbol.upper() != ticker.upper():
        raise BadResponseError(f"{ticker} was asked for and {chart.meta.symbol!r} came")
    if chart.meta.data_granularity != "1d":
        raise BadResponseError(f"1d was asked for and {chart.meta.data_granularity} came")
    return chart
