"""The observation, column by column, and that it ends at its row."""

import numpy as np
import pytest

from trade_pipeline.simulator.observation import (
    account_vector,
    checked_features,
    observation_space,
    observe,
    windows,
)
from trade_pipeline_tests.simulator.environments import market_of
from trade_pipeline_tests.simulator.markets import Run, flat_bar, market, orders, random_market


def test_a_window_ends_at_its_row_and_is_a_copy() -> None:
    features = np.arange(24, dtype=np.float32).reshape(12, 2)
    seen = windows(features, np.array([2, 11]), 3)
    np.testing.assert_array_equal(seen, [features[0:3], features[9:12]])
    seen[:] = 0
    assert features[1, 1] == 3


@pytest.mark.parametrize("row", [1, 12])
def test_a_window_outside_the_features_is_refused(row: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[2, 12\)"):
        windows(np.zeros((12, 2), np.float32), np.array([row]), 3)


def test_the_account_vector_by_hand() -> None:
    both = [flat_bar(100), flat_bar(100)]
    run = Run(market([both, [flat_bar(100), (100, 112, 88, 110)]]))
    run.step(orders([0.5, -0.4], stop=[0.1, 0.2], take=[np.nan, 0.2]))
    run.account.peak_equity[:] = 1200.0
    # equity 1000 - 40 = 960; instrument 0: 5 at 100; instrument 1: -4 at 100, close 110
    np.testing.assert_allclose(
        account_vector(run.account, run.market, run.row)[0],
        [
            500 / 960,
            500 / 960,
            0.0,
            10 * 0.1,
            0.0,
            -440 / 960,
            440 / 960,
            10 * -40 / 960,
            10 * (120 / 110 - 1),
            10 * (1 - 80 / 110),
            10 * (960 / 1200 - 1),
        ],
        rtol=1e-6,
        atol=1e-7,
    )


def test_a_ruined_account_is_all_zero_but_for_its_drawdown() -> None:
    run = Run(market([flat_bar(100), flat_bar(100), flat_bar(1000)]))
    run.step(orders(-0.5))
    run.step(orders(-0.5))
    vector = account_vector(run.account, run.market, run.row)[0]
    assert vector.tolist() == [0, 0, 0, 0, 0, -10]


def test_scaled_prices_are_those_that_the_account_sees() -> None:
    vectors = []
    for scale in (1.0, 4.0):
        run = Run(market([flat_bar(100), flat_bar(100), (100, 112, 88, 110)]))
        run.account.price_scale[:] = scale
        run.step(orders(0.5, stop=0.2, take=0.3))
        run.step(orders(0.5, hold=True))
        assert run.quantity() == 5 / scale
        vectors.append(account_vector(run.account, run.market, run.row)[0])
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-6)
    assert (vectors[0][:5] > 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_features_that_are_no_float32_numbers_are_refused(value: float) -> None:
    features = np.zeros((5, 2))
    features[2, 0] = value
    with pytest.raises(ValueError, match=r"features row 2 \(ts \d+\), column 0 is .*finite"):
        checked_features(features, random_market(5, 1, 0))


def test_the_space_holds_a_window_or_the_row_where_one_ends() -> None:
    window = observation_space(4, 6, 3)
    assert {name: (space.shape, space.dtype) for name, space in window.items()} == {
        "window": ((4, 6), np.float32),
        "account": ((16,), np.float32),
    }
    index = observation_space(4, 6, 3, rows=50)
    assert set(index.keys()) == {"row", "account"}
    assert index["row"].dtype == np.int32
    assert (index["row"].low.tolist(), index["row"].high.tolist()) == ([0], [49])


def test_features_must_be_finite_and_have_a_row_a_bar() -> None:
    bars = random_market(5, 1, 0)
    features = np.zeros((5, 2))
    features[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"features row 3 \(ts \d+\), column 1 is nan"):
        checked_features(features, bars)
    with pytest.raises(ValueError, match="T = 5"):
        checked_features(np.zeros((4, 2)), bars)
    assert checked_features(np.zeros((5, 2)), bars).dtype == np.float32


def test_an_observation_never_changes_when_the_future_arrives() -> None:
    whole = random_market(60, 1, 3)
    features = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    for rows in (20, 40, 59):
        part = market_of(whole, slice(0, rows))
        seen = []
        for bars in (whole, part):
            run = Run(bars)
            for _ in range(rows - 1):
                run.step(orders(0.5, 0.01, 0.02))
            seen.append(observe(run.account, bars, features[: bars.rows], run.row, 8))
        for name in ("window", "account"):
            assert seen[0][name].tobytes() == seen[1][name].tobytes()


def test_features_cannot_be_edited_through_an_environment() -> None:
    bars = random_market(5, 1, 0)
    locked = checked_features(np.zeros((5, 2), np.float32), bars)
    with pytest.raises(ValueError, match="read-only"):
        locked[0, 0] = np.nan
