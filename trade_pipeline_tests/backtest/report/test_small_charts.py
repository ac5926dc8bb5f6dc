"""Results, excursions, rolling figures and learning curves are drawn as they are."""

from datetime import UTC, datetime

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.backtest.report.curves import steps, thin_line
from trade_pipeline.backtest.report.performance_charts import learning_chart, rolling_chart
from trade_pipeline.backtest.report.trade_charts import (
    BARS,
    GAIN,
    LOSS,
    excursion_chart,
    result_chart,
)
from trade_pipeline.evaluation.periods import ROLLING_SCHEMA

results = st.lists(
    st.floats(-1e6, 1e6).filter(lambda one: one == 0 or abs(one) > 1e-9), min_size=1, max_size=200
)


@given(results)
def test_each_result_is_counted_once_and_gains_never_share_a_bar_with_losses(values):
    figure, _ = result_chart(np.array(values), False)
    bars = figure["data"][0]
    assert bars["y"].sum() == len(values)
    gains = sum(
        count
        for count, color in zip(bars["y"], bars["marker"]["color"], strict=True)
        if color == GAIN
    )
    assert gains == sum(value > 0 for value in values)
    assert len(bars["x"]) <= 2 * BARS


def test_bars_have_round_edges_and_say_them():
    figure, clipped = result_chart(np.array([-0.0105, -0.001, 0.0, 0.004, 0.019]), True)
    bars = figure["data"][0]
    assert not clipped
    assert bars["text"][0] == "-1.10% to -1.00%"
    assert bars["marker"]["color"].count(LOSS) == 11
    go.Figure(figure)


def test_far_results_share_the_outermost_bars():
    values = np.append(np.linspace(-1, 1, 999), 1_000.0)
    figure, clipped = result_chart(values, False)
    assert clipped
    assert figure["data"][0]["x"].max() < 2
    assert figure["data"][0]["y"].sum() == 1_000


def test_excursions_are_told_apart_by_what_was_earned():
    trips = pl.DataFrame(
        {
            "number": [1, 2, 3],
            "net": [5.0, -1.0, 2.0],
            "mfe_share": [0.1, 0.2, 0.3],
            "mae_share": [0.01, 0.02, 0.03],
        }
    )
    figure = excursion_chart(trips)
    gain, loss = figure["data"]
    assert (gain["name"], gain["customdata"].tolist()) == ("gain", [1, 3])
    assert (loss["name"], loss["customdata"].tolist()) == ("loss", [2])
    assert np.allclose(gain["x"], [0.01, 0.03]) and np.allclose(gain["y"], [0.1, 0.3])
    go.Figure(figure)


def rolling_frame(sharpe):
    rows = [
        {"time": datetime(2024, 1, day + 1, tzinfo=UTC), "sharpe": one, "volatility": 0.2}
        for day, one in enumerate(sharpe)
    ]
    return pl.DataFrame(rows, ROLLING_SCHEMA)


def test_a_gap_in_rolling_figures_stays_a_gap():
    figure = rolling_chart(rolling_frame([1.0, None, 2.0]))
    sharpe, volatility = (trace["y"] for trace in figure["data"])
    assert np.array_equal(sharpe, [1.0, np.nan, 2.0], equal_nan=True)
    assert np.allclose(volatility, 0.2)
    go.Figure(figure)


def test_no_rolling_figure_no_chart():
    frame = rolling_frame([None]).with_columns(volatility=pl.lit(None, pl.Float64))
    assert rolling_chart(frame) is None


def test_each_trial_has_its_score_and_its_reward_over_frames():
    frame = pl.DataFrame(
        {
            "frames": [100, 200, 300],
            "ep_rew_mean": [1.0, float("nan"), 3.0],
            "validation_return": [None, 0.1, None],
        }
    )
    figure = learning_chart({"base.f0.s0": frame, "<b>": frame.drop("validation_return")})
    drawn = [(t["name"], t["yaxis"], t["x"].tolist(), t["showlegend"]) for t in figure["data"]]
    assert drawn == [
        ("base.f0.s0", "y", [200], True),
        ("base.f0.s0", "y2", [100, 300], False),
        ("&lt;b&gt;", "y2", [100, 300], True),
    ]
    go.Figure(figure)


def test_trials_without_a_score_have_no_chart():
    assert learning_chart({"x": pl.DataFrame({"frames": [1], "loss": [0.1]})}) is None


@pytest.mark.parametrize("size", [7, 2_000, 2_001, 9_999])
def test_exposure_is_the_mean_of_equally_many_bars(size):
    ts = np.arange(size, dtype=np.int64)
    values = np.random.default_rng(size).random(size)
    times, means = steps(ts, values)
    assert times.size <= 2_000
    lengths = np.diff(np.append(times, size))
    assert len(set(lengths[:-1])) <= 1
    assert np.isclose((means * lengths).sum(), values.sum())


def test_a_thinned_line_keeps_its_ends_and_extremes():
    x = np.arange(10_000, dtype=np.int64)
    y = np.cumsum(np.random.default_rng(0).normal(size=x.size))
    at, values = thin_line(x, y, 200)
    assert at.size <= 200
    assert (at[0], at[-1]) == (0, 9_999)
    assert (values.min(), values.max()) == (y.min(), y.max())
