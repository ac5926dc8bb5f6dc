"""What differs between two finished results, and what makes a comparison of them worthless.

Values in, values out; knows no store and no page. Start at `doubts` and `metric_differences`;
`sides` reads, `page` draws.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from trade_pipeline.backtest.compare.sides import Side
from trade_pipeline.backtest.instants import day
from trade_pipeline.evaluation.growth import day_returns, drawdown, until_ruin
from trade_pipeline.evaluation.measure import FloatArray, IntArray
from trade_pipeline.evaluation.ratios import sharpe
from trade_pipeline.market.calendars import DAY_MS

MOST_CLOSED_DAYS = 5  # from one day of a market to the next, holidays included
MOST_NAMED = 5  # of things that differ, in a sentence
OTHER_BARS = "Different bars within the common time"
FIRST = (  # what people look at first; the others follow by name
    *("total_return", "sharpe", "sharpe_low", "sharpe_high", "cagr", "volatility", "max_drawdown"),
    *("calmar", "sortino", "turnover", "exposure", "trades", "hit_rate", "profit_factor"),
)
SCHEMA: dict[str, Any] = {
    "metric": pl.String(),
    "a": pl.Float64(),
    "b": pl.Float64(),
    "difference": pl.Float64(),
    "undefined_a": pl.String(),
    "undefined_b": pl.String(),
}


class Rebased(NamedTuple):
    """Two curves that start at 1 at the same time; [n] and [m]."""

    ts_a: IntArray
    a: FloatArray
    ts_b: IntArray
    b: FloatArray


def doubts(a: Side, b: Side) -> list[str]:
    """Why the two cannot be compared just so; empty where they can."""
    said = _unlike(a, b)
    if same(a, b):
        said = [
            f"Both sides are the same, {a.key} version {a.version}: no figure can differ. Give "
            "another key, or KEY@VERSION for an older version."
        ]
    notes = [
        f"{letter}: {note}" for letter, one in zip("AB", (a, b), strict=True) for note in one.notes
    ]
    return [*said, *notes]


def same(a: Side, b: Side) -> bool:
    """Whether both are one bundle of one version."""
    return (a.key, a.version) == (b.key, b.version)


def metric_differences(a: Side, b: Side) -> pl.DataFrame:
    """A row a figure: `SCHEMA`; `difference` is B minus A, null where either has none."""
    values = [_figures(one.figures, "values") for one in (a, b)]
    reasons = [_figures(one.figures, "undefined") for one in (a, b)]
    rows = []
    known = {**values[0], **values[1]}
    for name in (
        *(one for one in FIRST if one in known),
        *(one for one in known if one not in FIRST),
    ):
        first, second = (found.get(name) for found in values)
        rows.append(
            {
                "metric": name,
                "a": first,
                "b": second,
                "difference": None if first is None or second is None else second - first,
                "undefined_a": _reason(name, first, reasons[0]),
                "undefined_b": _reason(name, second, reasons[1]),
            }
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Names whose values differ, with both; None is what a side does not have."""
    return [(name, a.get(name), b.get(name)) for name in a | b if a.get(name) != b.get(name)]


def own(side: Side) -> FloatArray:
    """[n] equity over its first value."""
    rebased: FloatArray = side.equity / side.equity[0]
    return rebased


def common(a: Side, b: Side) -> Rebased | None:
    """Both curves over the time they share, 1 where it begins; None where they share none.

    A curve whose first point lies before that starts from its last value known then.
    """
    shared = _shared(a, b)
    if shared is None:
        return None
    found = []
    for one in (a, b):
        before = int(np.searchsorted(one.ts, shared[0], side="right")) - 1
        rows = slice(before + 1, int(np.searchsorted(one.ts, shared[1], side="right")))
        if one.equity[before] <= 0:
            return None  # ruined by then
        ts = np.append(shared[0], one.ts[rows])
        found += [ts, np.append(one.equity[before], one.equity[rows]) / one.equity[before]]
    return Rebased(*found)


def common_figures(
    a: Side, b: Side, shared: Rebased
) -> list[tuple[str, float | None, float | None]]:
    """Return, largest drawdown and Sharpe ratio of days over the shared time."""
    found = []
    for side, ts, equity in ((a, shared.ts_a, shared.a), (b, shared.ts_b, shared.b)):
        alive = until_ruin(equity)
        days = side.figures["periods_per_year"]["day"]
        ratio = sharpe(day_returns(alive, ts[: alive.size]), days, side.risk_free).value
        found.append((float(alive[-1]) - 1, float(drawdown(alive).min()), ratio))
    names = ("total_return", "max_drawdown", "sharpe")
    return [(name, *pair) for name, pair in zip(names, zip(*found, strict=True), strict=True)]


def _unlike(a: Side, b: Side) -> list[str]:
    """Markets, data, times and costs in which they differ."""
    said = []
    if a.instruments != b.instruments:
        said.append(
            f"Different markets: A trades {', '.join(a.instruments)}, B "
            f"{', '.join(b.instruments)}. No figure of one says anything of the other."
        )
    elif names := _other_data(a.data, b.data):
        said.append(f"Different data: {_some(names)} differ in content, or only one side has them.")
    if (a.ts[0], a.ts[-1]) != (b.ts[0], b.ts[-1]):
        shared = _shared(a, b)
        together = (
            "They share no time at all: markets were different ones."
            if shared is None
            else f"They share {day(shared[0])} to {day(shared[1])}; figures are of each one's "
            "whole time, unless it says otherwise."
        )
        said.append(f"Different periods: A runs {a.period}, B {b.period}. {together}")
    said += _gaps(a, b)
    if a.figures.get("periods_per_year") != b.figures.get("periods_per_year"):
        said.append(
            "Different years: figures are annualised with "
            f"{a.figures.get('periods_per_year')} and {b.figures.get('periods_per_year')} periods."
        )
    costs = [
        key
        for key in a.configuration | b.configuration
        if key.startswith(("environment.costs.", "environment.initial_equity"))
        and a.configuration.get(key) != b.configuration.get(key)
    ]
    if costs:
        said.append(f"Different costs or rules of the account: {_some(sorted(costs))}.")
    return said


def _gaps(a: Side, b: Side) -> list[str]:
    """Bars of the common time that only one side has equity of, such as skipped ones of folds."""
    shared = _shared(a, b)
    if shared is None:
        return []
    first, last = shared
    inside = [one.ts[(one.ts >= first) & (one.ts <= last)] for one in (a, b)]
    found = []
    for letter, mine, other in zip("AB", inside, reversed(inside), strict=True):
        missing = np.setdiff1d(other, mine)
        if missing.size:
            days = np.unique(missing // DAY_MS)
            spans = np.split(days, np.flatnonzero(np.diff(days) > MOST_CLOSED_DAYS) + 1)
            named = _some([_days(int(span[0]), int(span[-1])) for span in spans])
            found.append(
                f"{letter} has no equity at {missing.size:,} closes that the other has, on "
                f"{days.size:,} day{'' if days.size == 1 else 's'}: {named}"
            )
    if not found:
        return []
    return [
        f"{OTHER_BARS}: "
        + "; ".join(found)
        + ". Its line is straight there, and figures of days leave out what a side does not have."
    ]


def _days(first: int, last: int) -> str:
    """Numbers of days as people write them."""
    ends = [day(one * DAY_MS) for one in (first, last)]
    return ends[0] if first == last else " to ".join(ends)


def _reason(name: str, value: float | None, reasons: Mapping[str, str]) -> str | None:
    return None if value is not None else reasons.get(name, "not computed")


def _other_data(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Inputs that differ; features of one side only are a matter of settings, not of data."""
    return sorted(
        name
        for name in {**a, **b}
        if a.get(name) != b.get(name)
        and ((name in a and name in b) or not name.startswith("features/"))
    )


def _figures(figures: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`values` or `undefined` of a result and of its parts, those as `market: alpha`."""
    found = dict(figures.get(what, {}))
    for part, inside in figures.items():
        if isinstance(inside, dict) and part not in ("values", "undefined", "periods_per_year"):
            found |= {f"{part}: {name}": value for name, value in _figures(inside, what).items()}
    return found


def _shared(a: Side, b: Side) -> tuple[int, int] | None:
    first, last = int(max(a.ts[0], b.ts[0])), int(min(a.ts[-1], b.ts[-1]))
    return (first, last) if first < last else None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
