import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.features.audit import audit_function
from trade_pipeline.features.audit.frames import changed_rows

ROWS = 120
ROOT = Path(__file__).parents[2]
WITHOUT_POLARS = """
import sys
sys.modules["polars"] = None  # importing it fails
import numpy as np, pandas as pd
from trade_pipeline.features.audit import audit_function
frame = pd.DataFrame({"close": np.arange(50.0)})
print(audit_function(lambda bars: bars[["close"]].shift(-1), frame).verdict)
print(sorted(name for name in sys.modules if name.startswith(("pydantic", "numba", "dagster"))))
"""


def pandas_bars(index: bool = True) -> pd.DataFrame:
    """Bars labelled by their time, or counted."""
    generator = np.random.default_rng(5)
    close = 100 * np.exp(np.cumsum(generator.normal(0, 1e-2, ROWS)))
    frame = pd.DataFrame({"close": close, "volume": generator.integers(1, 99, ROWS)})
    return frame.set_index(pd.date_range("2024-01-01", periods=ROWS)) if index else frame


def polars_bars() -> pl.DataFrame:
    bars = pandas_bars().rename_axis("ts").reset_index()
    return pl.DataFrame({name: bars[name].to_numpy() for name in bars})


Function = Callable[[Any], Any]


def with_column(name: str, compute: Callable[[pd.DataFrame], Any]) -> Function:
    return lambda bars: bars.assign(**{name: compute(bars)})


HONEST: dict[str, Function] = {
    "rolling": with_column("new", lambda bars: bars["close"].rolling(9).mean()),
    "exponential": with_column("new", lambda bars: bars["close"].ewm(span=9).mean()),
    "expanding": with_column("new", lambda bars: bars["close"].expanding().max()),
    "lag": with_column("new", lambda bars: bars["volume"].shift(3)),
    "warm-up dropped": lambda bars: bars.pct_change(5).dropna(),
    "a series": lambda bars: bars["close"].diff(),
    "texts": with_column("new", lambda bars: np.where(bars["close"] > 100, "high", "low")),
    "every other row": lambda bars: bars.iloc[::2],
    "in place": lambda bars: bars.__setitem__("new", bars["close"].cummax()) or bars,
}
LEAKS: dict[str, tuple[Function, int]] = {
    "shift": (with_column("new", lambda bars: bars["close"].shift(-1)), 9),
    "centred": (with_column("new", lambda bars: bars["close"].rolling(5, center=True).mean()), 8),
    "scaled": (with_column("new", lambda bars: bars["close"] - bars["close"].mean()), 0),
    "shift dropped": (lambda bars: bars.assign(new=bars["close"].shift(-1)).dropna()[["new"]], 9),
    "ranks": (with_column("new", lambda bars: bars["close"].rank()), 0),
    "tail": (lambda bars: bars[["close"]].rename(columns={"close": "new"}).tail(5), 5),
    "texts": (with_column("new", lambda bars: f"one of {len(bars)}"), 0),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("index", [True, False], ids=["times", "counted"])
def test_honest_functions_are_clean(name: str, index: bool) -> None:
    audit = audit_function(HONEST[name], pandas_bars(index), range(1, ROWS))
    assert (audit.verdict, audit.findings) == ("clean", ()), audit.report()


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_are_found_with_column_and_first_bad_row(name: str) -> None:
    function, row = LEAKS[name]
    bars = pandas_bars()
    audit = audit_function(function, bars, [10, 60])
    assert audit.verdict == "looks ahead"
    (found,) = audit.findings
    assert (found.component, found.row) == ("new", row)
    assert f"- new at row {row} ({bars.index[row]}) " in audit.report()
    assert audit.report().startswith("function ")


def test_a_warm_up_that_is_filled_from_later_rows_is_found_unasked() -> None:
    filled = with_column("new", lambda bars: bars["close"].shift(3).bfill())
    (finding,) = audit_function(filled, pandas_bars()).findings
    assert (finding.component, finding.row) == ("new", 0)


def test_the_report_tells_both_values_and_when() -> None:
    bars = pandas_bars()
    said = audit_function(LEAKS["scaled"][0], bars, [10]).report()
    first, mean, early = bars["close"].iloc[0], bars["close"].mean(), bars["close"][:10].mean()
    assert f"changes from {first - early:.9g} to {first - mean:.9g}" in said
    assert "once rows after the first 10 arrive" in said
    assert "1 prefixes of 120 rows, columns: 3." in said


def test_polars_frames_are_matched_by_their_time() -> None:
    bars = polars_bars()
    honest = bars.with_columns(new=pl.col("close").rolling_mean(5)).drop_nulls().height
    assert honest == ROWS - 4
    clean = audit_function(
        lambda bars: bars.with_columns(new=pl.col("close").rolling_mean(5)).drop_nulls(), bars
    )
    assert (clean.verdict, clean.notes) == ("clean", ()), clean.report()
    leaking = audit_function(
        lambda bars: bars.with_columns(new=pl.col("close").shift(-1)).drop_nulls(), bars, [10]
    )
    assert [(one.component, one.row) for one in leaking.findings] == [
        ("close", 9),
        ("volume", 9),
        ("new", 9),
    ]
    assert "appears" in leaking.findings[0].what


def test_rows_that_cannot_be_matched_are_counted_and_it_is_said() -> None:
    bars = pandas_bars(index=False)
    clean = audit_function(lambda bars: bars.diff(4).dropna().reset_index(drop=True), bars)
    assert clean.verdict == "clean"
    assert "could not be matched" in clean.notes[0]
    leaking = audit_function(
        lambda bars: (bars - bars.mean()).iloc[4:].reset_index(drop=True), bars, [50]
    )
    assert [(one.component, one.row) for one in leaking.findings] == [("close", 0), ("volume", 0)]


@settings(max_examples=25)
@given(leak=st.integers(0, ROWS - 2))
def test_one_row_that_looks_ahead_is_found_when_every_prefix_is_tried(leak: int) -> None:
    def function(bars: pl.DataFrame) -> pl.DataFrame:
        nudge = pl.when(pl.int_range(pl.len()) == leak).then(pl.col("close").shift(-1)).otherwise(0)
        return bars.select("ts", new=pl.col("close") + nudge.fill_null(0))

    audit = audit_function(function, polars_bars(), range(1, ROWS))
    assert [(one.component, one.row) for one in audit.findings] == [("new", leak)]


def test_several_rows_of_one_time_are_never_cut_apart() -> None:
    days = pandas_bars()
    other = days.assign(tic="B", close=days["close"].iloc[::-1].to_numpy())
    bars = pd.concat([days.assign(tic="A"), other]).sort_index(kind="stable")

    def cross_section(bars: pd.DataFrame) -> pd.DataFrame:
        """Over the day's mean of both: honest, unless half a day is shown."""
        return bars[["close"]] - bars.groupby(level=0)[["close"]].transform("mean")

    assert audit_function(cross_section, bars, range(1, 100)).verdict == "clean"

    def survivors(bars: pd.DataFrame) -> pd.DataFrame:
        """Without whom the last day lacks."""
        last = bars[bars.index == bars.index[-1]]["tic"]
        return bars[bars["tic"].isin(last)]

    bars = bars[(bars["tic"] == "A") | (bars.index < bars.index[100])]
    (finding, *_) = audit_function(survivors, bars).findings
    assert "vanishes" in finding.what


def test_a_column_that_depends_on_later_rows_is_found() -> None:
    audit = audit_function(
        lambda bars: bars.dropna(axis=1),
        pandas_bars().where(
            lambda bars: (bars.index < bars.index[50])[:, None] | (bars.columns == "close"), np.nan
        ),
        [20],
    )
    assert [(one.component, one.what.split(" once")[0]) for one in audit.findings] == [
        ("volume", "at row 0 (2024-01-01 00:00:00) vanishes")
    ]


def test_chance_is_reported_as_such_and_never_as_looking_ahead() -> None:
    generator = np.random.default_rng()
    audit = audit_function(
        with_column("new", lambda bars: generator.random(len(bars))), pandas_bars()
    )
    assert (audit.verdict, audit.findings) == ("not deterministic", ())
    assert "new is not deterministic: called again, at row 0" in audit.report()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda bars: bars["clsoe"], "raises KeyError: 'clsoe'"),
        (lambda bars: None, "gives a NoneType, not a data frame"),
        (lambda bars: bars["close"].to_numpy(), "gives a ndarray, not a data frame"),
        (lambda bars: bars[["close", "close"]], "several columns of one name"),
    ],
)
def test_functions_that_give_nothing_to_compare_have_failed(function: Function, words: str) -> None:
    audit = audit_function(function, pandas_bars())
    assert audit.verdict == "failed"
    assert words in audit.report()
    assert f"On all {ROWS} rows" in audit.report()


def test_prefixes_that_are_too_short_for_a_function_are_noted() -> None:
    def demanding(bars: pd.DataFrame) -> pd.DataFrame:
        if len(bars) < 50:
            raise ValueError("too few rows")
        return bars.diff()

    audit = audit_function(demanding, pandas_bars(), [10, 49, 60])
    assert audit.verdict == "clean"
    assert audit.notes[0] == (
        "On 2 prefixes it gave nothing; on the first 10 rows it raises ValueError: too few rows."
    )
    assert audit_function(demanding, pandas_bars(), [10, 49]).verdict == "failed"


def test_a_leak_of_one_row_in_a_thousand_is_caught_by_default() -> None:
    rows = 2_306
    close = np.exp(np.cumsum(np.random.default_rng(5).normal(0, 0.01, rows)))

    def rare(bars: pl.DataFrame) -> pl.DataFrame:
        change = bars["close"].pct_change().to_numpy().copy()
        leaking = np.arange(777, len(change) - 1, 1_000)
        change[leaking] = change[leaking + 1]
        return bars.select(change=pl.Series(change))

    (finding,) = audit_function(rare, pl.DataFrame({"close": close})).findings
    assert finding.row == 777


@pytest.mark.parametrize("rows", [0, 1])
def test_an_audit_that_tried_nothing_is_not_clean(rows: int) -> None:
    audit = audit_function(lambda bars: bars, pandas_bars().head(rows))
    assert audit.verdict == "failed"
    assert "nothing is known" in audit.report()


def test_a_sample_is_called_one() -> None:
    assert "A sample" in audit_function(lambda bars: bars, pandas_bars(), [7]).report()
    every = range(1, len(pandas_bars()))
    assert "A sample" not in audit_function(lambda bars: bars, pandas_bars(), every).report()


def test_cuts_and_times_that_are_not_there_are_refused() -> None:
    for cut in (-3, 0, len(pandas_bars()), 99_999):
        with pytest.raises(ValueError, match=f"cut {cut} leaves no prefix"):
            audit_function(lambda bars: bars, pandas_bars(), [5, cut])
    with pytest.raises(ValueError, match="'nosuch' is no column"):
        audit_function(lambda bars: bars, pandas_bars(), time="nosuch")


def test_rounding_is_no_finding_unless_asked_for() -> None:
    def trembling(bars: pd.DataFrame) -> pd.DataFrame:
        return bars[["close"]] * (1 + 1e-13 * len(bars))

    assert audit_function(trembling, pandas_bars()).verdict == "clean"
    assert audit_function(trembling, pandas_bars(), rounding=0.0).verdict == "looks ahead"


def test_the_callers_frame_stays_as_it_was() -> None:
    bars = pandas_bars()
    audit_function(HONEST["in place"], bars)
    pd.testing.assert_frame_equal(bars, pandas_bars())


def test_audits_run_where_polars_and_the_rest_of_the_package_are_absent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POLARS],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.split("\n")[:2] == ["looks ahead", "[]"]


@pytest.mark.parametrize("polars", [True, False])
@settings(max_examples=30)
@given(first=st.integers(0, ROWS - 1), length=st.integers(1, ROWS))
def test_changed_rows_change_every_number_from_first_to_end_and_nothing_else(
    polars: bool, first: int, length: int
) -> None:
    end = min(first + length, ROWS)
    plain = pandas_bars(index=False).assign(
        ts=np.arange(ROWS), count=np.arange(ROWS), name="x", high=lambda bars: bars["close"] * 1.01
    )
    frame = pl.DataFrame({name: plain[name].to_list() for name in plain}) if polars else plain
    changed = changed_rows(frame, first, end)
    assert type(changed) is type(frame)
    assert list(changed.columns) == list(frame.columns)
    for name in ("ts", "count", "name"):
        assert changed[name].to_list() == frame[name].to_list()
    for name in ("close", "high"):
        differs = changed[name].to_numpy() != frame[name].to_numpy()
        assert differs.tolist() == [first <= row < end for row in range(ROWS)]
    assert changed["volume"].dtype == frame["volume"].dtype
    assert (changed["high"].to_numpy() >= changed["close"].to_numpy()).all()
    again = changed_rows(frame, first, end)
    assert again["close"].to_list() == changed["close"].to_list()
