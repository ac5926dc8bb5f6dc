"""What can go wrong with an answer of Kraken: `fakes/kraken.py` injects it by its name.

Knows bodies only, no server. Start at the tuples: they say what a client may expect of each kind.
"""

import json
from typing import Any

from trade_pipeline_tests.fakes.server import Answer, as_json

INVALID = "EGeneral:Invalid arguments"
UNKNOWN_PAIR = "EQuery:Unknown asset pair"
RATE_LIMIT = "EAPI:Rate limit exceeded"

# Passes by itself: asking again later gives the answer.
TRANSIENT = (
    "429",
    "500",
    "502 html",
    "timeout",
    "connection reset",
    "throttled",
    "deadline",
    "unavailable",
    "busy",
    "rate limit",
)
# Stays: asking again is useless.
PERMANENT = ("unknown pair", "invalid arguments")
# Status 200 and no error text, and yet not the answer: never "no data". Passes by itself, too.
# ccxt's own fetch_ohlcv and fetch_trades turn these into an empty list:
SILENT = ("", "html", "truncated json", "null", "[]", '{"error":[]}', "another pair's key")
# A client may refuse "unsorted" or put it in order; nothing may be lost either way.
GARBAGE = (*SILENT, "missing last", "rows not lists", "NaN price", "ids with a hole", "unsorted")
NO_ROWS = "no rows"  # a good form and no truth: only other answers show that it is wrong
KINDS = (*TRANSIENT, *PERMANENT, *GARBAGE, NO_ROWS)

# Made from the good answer of an endpoint with rows; the one of trades has ids.
NEEDS_ROWS = frozenset({*GARBAGE[GARBAGE.index("another pair's key") :], NO_ROWS})
NEEDS_IDS = frozenset({"ids with a hole"})

_BAD_GATEWAY = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"
_CHALLENGE = "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"


def error(text: str) -> Answer:
    """Kraken's way to refuse: status 200 and the error's text."""
    return as_json({"error": [text]})


INSTEAD = {
    "429": Answer(b"error code: 1015", 429, "text/plain"),
    "500": Answer(b"Internal Server Error", 500, "text/plain"),
    "502 html": Answer(_BAD_GATEWAY.encode(), 502, "text/html"),
    "throttled": error("EService:Throttled: 1637000000"),
    "deadline": error("EService:Deadline elapsed"),
    "unavailable": error("EService:Unavailable"),
    "busy": error("EService:Busy"),
    "rate limit": error(RATE_LIMIT),
    "unknown pair": error(UNKNOWN_PAIR),
    "invalid arguments": error(INVALID),
    "": Answer(b""),
    "html": Answer(_CHALLENGE.encode(), content_type="text/html"),
    "null": Answer(b"null"),
    "[]": Answer(b"[]"),
    '{"error":[]}': Answer(b'{"error":[]}'),
}


def spoiled(kind: str, good: Answer) -> Answer | None:
    """A good answer with this fault; None when it has too few rows to show it.

    The fault is in a row that says something: of candles, a committed one with trades.
    """
    if kind == "truncated json":
        return Answer(good.body[: len(good.body) * 2 // 3])
    body = json.loads(good.body)
    if body["error"]:
        return None
    result = body["result"]
    rows = next(value for key, value in result.items() if key != "last")
    if kind == "another pair's key":
        body["result"] = {"XREPZEUR": rows, "last": result["last"]}
    elif kind == "missing last":
        del result["last"]
    elif kind == NO_ROWS:
        rows.clear()
    elif (at := _telling(rows)) is None:
        return None
    elif kind == "rows not lists":
        rows[at] = ",".join(map(str, rows[at]))
    elif kind == "NaN price":
        rows[at][4 if _is_candle(rows[at]) else 0] = "NaN"
    elif kind == "ids with a hole":
        del rows[at]
    else:
        rows[at - 1], rows[at] = rows[at], rows[at - 1]
    return as_json(body)


def _telling(rows: list[list[Any]]) -> int | None:
    """The newest row with one before and one after it, among candles the newest with trades."""
    inner = range(len(rows) - 2, 0, -1)
    return next((at for at in inner if not _is_candle(rows[at]) or rows[at][7]), None)


def _is_candle(row: list[Any]) -> bool:
    return len(row) == 8
