"""Reward terms by hand and by plain Python, finite at ruin; turbulence; terms of one's own."""

import math
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.settings.environment import (
    CustomTerm,
    DifferentialSharpe,
    EnvironmentSettings,
    PlainTerm,
    TurbulenceGate,
)
from trade_pipeline.simulator.kernel import Account, Fills, Market, Orders, Rules, step
from trade_pipeline.simulator.rewards import (
    MEMORY,
    Reward,
    Weights,
    forget,
    reward_one,
    turbulence,
)
from trade_pipeline_tests.simulator.markets import flat_bar, market, random_market

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "simulator.md"
BARS = market([[flat_bar(1), flat_bar(1)], [flat_bar(100), flat_bar(50)]])
ROW = np.ones(3, np.int64)
BEFORE = np.array([1000.0, 1000.0, 0.0])
NO_ROWS = np.zeros((0, 2), np.int64)
OPEN_GATE = np.zeros(2, np.bool_)
SHUT_GATE = np.array([False, True])
LN_RUIN = math.log(1e-3)


def accounts() -> Account:
    """One that lost, one just ruined, one ruined before."""
    account = Account.start(3, 2, 1000.0)
    account.equity[:] = [900.0, 0.0, 0.0]
    account.peak_equity[:] = 1200.0
    account.quantity[0] = [2.0, -3.0]
    account.fees[:] = [1.0, 2.0, 0.0]
    account.slippage[:] = [2.0, 0.0, 0.0]
    account.financing[:] = [3.0, 0.0, 0.0]
    account.traded_notional[:] = [500.0, 0.0, 0.0]
    account.terminated[:] = [False, True, True]
    return account


def rewarded(
    weights: Weights,
    account: Account,
    before: np.ndarray = BEFORE,
    bars: Market = BARS,
    row: np.ndarray = ROW,
    turbulent: np.ndarray = SHUT_GATE,
    memory: Any = None,
) -> list[float]:
    """`reward_one` of each account."""
    memory = np.zeros(len(before), MEMORY) if memory is None else memory
    return [
        reward_one(
            weights,
            memory[e],
            account.balances[e],
            account.positions[e],
            before[e],
            bars.bars,
            row[e],
            turbulent,
        )
        for e in range(len(before))
    ]


def ranges(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(-1, 2)


def of_closes(closes: Any) -> Market:
    """Bars that are flat at these closes, [T, N]."""
    return market([[flat_bar(price) for price in row] for row in closes])


# The terms


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("log_return", [math.log(0.9), LN_RUIN, 0.0]),
        ("cost", [-0.006, -0.002, 0.0]),
        ("drawdown", [-0.25, -1.0, -1.0]),
        ("exposure", [-350 / 900, 0.0, 0.0]),
        ("turnover", [-0.5, 0.0, 0.0]),
        ("inventory", [-(200**2 + 150**2) / 900**2, 0.0, 0.0]),
        ("turbulence_gate", [-350 / 900, 0.0, 0.0]),
    ],
)
def test_each_term_is_as_documented_also_at_ruin(term: str, expected: list[float]) -> None:
    assert rewarded(Weights(**{term: 1.0}), accounts()) == pytest.approx(expected, rel=1e-15)


def test_every_term_of_the_settings_has_a_weight() -> None:
    names = {
        name
        for kind in (PlainTerm, TurbulenceGate, DifferentialSharpe)
        for name in get_args(kind.model_fields["term"].annotation)
    }
    assert set(Weights._fields) == names | {"decay"}


def test_terms_are_summed_with_the_weights_of_the_settings() -> None:
    terms = [PlainTerm(term="log_return"), PlainTerm(term="cost", weight=2.0)]
    reward = Reward(terms, BARS, NO_ROWS)
    assert reward.weights == Weights(log_return=1.0, cost=2.0)
    total = rewarded(reward.weights, accounts())
    assert total == pytest.approx([math.log(0.9) - 0.012, LN_RUIN - 0.004, 0.0], rel=1e-15)


def test_a_weight_may_be_negative_and_all_terms_add_up() -> None:
    weights = Weights(1.0, -2.0, 3.0, 0.5, 0.25, 4.0, 1.5)
    gross = 350 / 900
    expected = math.log(0.9) + 2.0 * 0.006 - 3.0 * 0.25 - 0.5 * gross - 0.25 * 0.5
    expected -= 4.0 * (200**2 + 150**2) / 900**2 + 1.5 * gross
    assert rewarded(weights, accounts())[0] == pytest.approx(expected, rel=1e-14)


def test_an_income_from_financing_is_a_gain() -> None:
    account = accounts()
    account.financing[0] = -10.0
    assert rewarded(Weights(cost=1.0), account)[0] == pytest.approx(0.007, rel=1e-14)


def test_a_crash_beyond_a_thousandth_counts_as_ruin() -> None:
    account = accounts()
    account.equity[0] = 1e-5
    assert rewarded(Weights(log_return=1.0), account)[0] == LN_RUIN


def test_positions_are_valued_in_the_prices_that_the_account_sees() -> None:
    account = accounts()
    account.price_scale[0] = 2.0
    gross = 700 / 900
    assert rewarded(Weights(exposure=1.0), account)[0] == pytest.approx(-gross)
    assert rewarded(Weights(turbulence_gate=1.0), account)[0] == pytest.approx(-gross)
    squares = -(400**2 + 300**2) / 900**2
    assert rewarded(Weights(inventory=1.0), account)[0] == pytest.approx(squares)


def test_drawdown_is_never_positive() -> None:
    account = accounts()
    account.equity[0] = 1300.0
    assert rewarded(Weights(drawdown=1.0), account)[0] == 0.0


def test_an_open_gate_costs_nothing() -> None:
    assert rewarded(Weights(turbulence_gate=1.0), accounts(), turbulent=OPEN_GATE) == [0.0] * 3


def test_without_a_gate_turbulence_is_not_read() -> None:
    reward = Reward([PlainTerm(term="exposure")], BARS, NO_ROWS)
    assert reward.turbulent.tolist() == [False]  # shorter than the row
    assert rewarded(reward.weights, accounts(), turbulent=reward.turbulent)[0] < 0


def test_what_has_no_weight_is_left_out_and_needs_nothing() -> None:
    terms = [
        PlainTerm(term="log_return"),
        TurbulenceGate(term="turbulence_gate", weight=0.0),
        CustomTerm(term="custom", function="there_is_no:such", weight=0.0),
    ]
    reward = Reward(terms, BARS, NO_ROWS)
    assert (reward.weights, reward.custom) == (Weights(log_return=1.0), ())


magnitudes = st.floats(1e-12, 1e12)


@settings(max_examples=200, deadline=None)
@given(
    equities=st.tuples(st.just(0.0) | magnitudes, st.just(0.0) | magnitudes),
    peak=magnitudes,
    paid=st.tuples(*[st.floats(-1e12, 1e12)] * 4),
    quantities=st.tuples(*[st.floats(-1e12, 1e12)] * 2),
    scale=st.floats(1e-3, 1e3),
    moments=st.tuples(st.floats(-1e12, 1e12), st.just(0.0) | st.floats(0, 1e24)),
    decay=st.floats(0, 1, exclude_min=True, exclude_max=True),
    weights=st.tuples(*[st.floats(-100, 100)] * 8),
)
def test_a_reward_is_finite_whatever_happened(
    equities: tuple[float, float],
    peak: float,
    paid: tuple[float, ...],
    quantities: tuple[float, float],
    scale: float,
    moments: tuple[float, float],
    decay: float,
    weights: tuple[float, ...],
) -> None:
    account = Account.start(1, 2, 1.0)
    before, account.equity[0] = np.array(equities[:1]), equities[1]
    account.peak_equity[0] = max(peak, equities[1])
    balance = account.balances[0]
    for name, value in zip(("fees", "slippage", "financing", "traded_notional"), paid, strict=True):
        balance[name] = value
    account.quantity[0] = quantities
    account.price_scale[0] = scale
    memory = np.array([moments], MEMORY)
    total = rewarded(Weights(*weights, decay), account, before, memory=memory)
    assert np.isfinite(total).all()
    assert np.isfinite(memory[0].tolist()).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_reward_is_finite_at_every_step_to_ruin(seed: int) -> None:
    bars = random_market(120, 2, seed, volatility=0.2)
    rng = np.random.default_rng(seed)
    rules = Rules.plain(2, fee_bps=20.0, slippage_bps=10.0, max_leverage=20.0)
    account, fills = Account.start(8, 2, 1000.0), Fills.empty(8, 2)
    memory, row = np.zeros(8, MEMORY), np.zeros(8, np.int64)
    weights = Weights(*[1.0] * 8, 0.1)
    shut = np.ones(bars.rows, np.bool_)
    for _ in range(bars.rows - 1):
        before = account.equity.copy()
        none = np.full((8, 2), np.nan)
        orders = Orders(rng.uniform(-5, 5, (8, 2)), rng.random((8, 2)) < 0.5, none, none)
        step(account, bars, row, orders, rules, fills)
        row += 1
        total = np.array(rewarded(weights, account, before, bars, row, shut, memory))
        assert np.isfinite(total).all()
        assert (total[before == 0] == -1.0).all()  # the drawdown alone
    assert account.terminated.any()


# Differential Sharpe ratio


def sharpes(equity: Any, decay: float, memory: Any = None) -> list[float]:
    """The term after each step of an equity path."""
    memory = np.zeros(1, MEMORY) if memory is None else memory
    weights = Weights(differential_sharpe=1.0, decay=decay)
    account, found = Account.start(1, 2, 1.0), []
    for before, after in pairwise(equity):
        account.equity[0] = after
        found += rewarded(weights, account, np.array([before]), memory=memory)
    return found


def plain_sharpes(equity: list[float], decay: float) -> list[float]:
    """Changes of the moving Sharpe ratio over the decay, by plain Python."""
    found, first, second, ratio = [], 0.0, 0.0, 0.0
    for before, after in pairwise(equity):
        change = after / before - 1
        first = first + decay * (change - first)
        second = second + decay * (change**2 - second)
        new = first / math.sqrt(second - first**2) if second > first**2 else 0.0
        found.append((new - ratio) / decay)
        ratio = new
    return found


def test_differential_sharpe_by_hand() -> None:
    # R = 0.1: A = 0.01, B = 0.001, S = 0.01 / sqrt(0.0009) = 1/3
    # R = -0.1: A = 0.01 - 0.011 = -0.001, B = 0.0019, S = -0.001 / sqrt(0.001899)
    found = sharpes([100.0, 110.0, 99.0], decay=0.1)
    assert found[0] == pytest.approx(10 / 3)
    assert found[1] == pytest.approx((-0.001 / math.sqrt(0.001899) - 1 / 3) / 0.1)


@pytest.mark.parametrize("decay", [0.003, 0.01, 0.3, 0.9])
def test_differential_sharpe_is_the_change_of_the_moving_ratio(decay: float) -> None:
    rng = np.random.default_rng(7)
    equity = (1000 * np.exp(np.cumsum(rng.normal(1e-4, 0.01, 3000)))).tolist()
    assert sharpes(equity, decay) == pytest.approx(plain_sharpes(equity, decay), rel=1e-9, abs=1e-9)


def test_differential_sharpe_is_to_first_order_that_of_moody_and_saffell() -> None:
    decay = 1e-5
    rng = np.random.default_rng(7)
    changes = rng.normal(1e-4, 0.01, 200_000)
    equity = (1000 * np.cumprod(1 + changes)).tolist()
    found = sharpes([1000.0, *equity], decay)
    first, second = 0.0, 0.0
    for number, change in enumerate(changes):
        first_step, second_step = change - first, change**2 - second
        if number > 190_000:
            paper = (second * first_step - first * second_step / 2) / (second - first**2) ** 1.5
            assert found[number] == pytest.approx(paper, rel=1e-2, abs=1e-3)
        first, second = first + decay * first_step, second + decay * second_step


def test_differential_sharpe_adds_up_so_that_losing_cannot_pay() -> None:
    decay = 0.01
    for equity in (
        [1000.0, 1000.0 * (1 - 1e-9), 990.0],  # a small loss, then a larger one
        [1000.0, 999.0, *np.linspace(999.0, 990.0, 20).tolist()],
        [1000.0] * 50 + [999.0, 998.0],
    ):
        total = decay * sum(sharpes(equity, decay))
        changes = np.diff(equity) / equity[:-1]
        weights = decay * (1 - decay) ** np.arange(len(changes))[::-1]
        first, second = (weights * changes).sum(), (weights * changes**2).sum()
        assert total == pytest.approx(first / math.sqrt(second - first**2))
        assert total < 0


def test_differential_sharpe_ranks_a_smooth_path_above_a_volatile_one() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, 2000)
    noise -= noise.mean()
    paths = [1000 * np.exp(np.cumsum(1e-3 + size * noise)) for size in (2e-3, 2e-2)]
    assert paths[0][-1] == pytest.approx(paths[1][-1])
    smooth, volatile = (sum(sharpes(path.tolist(), 0.01)) for path in paths)
    assert smooth > volatile + 1


def test_differential_sharpe_is_nothing_where_returns_do_not_vary() -> None:
    assert sharpes([100.0] * 51, 0.1) == [0.0] * 50
    steady = (100 * 1.01 ** np.arange(1001)).tolist()  # the beginning is forgotten in the end
    found = sharpes(steady, 0.1)
    assert found[1] > 0
    assert found[400:] == [0.0] * 600


def test_differential_sharpe_outlives_any_number_of_bars_without_a_position() -> None:
    memory = np.zeros(1, MEMORY)
    found = sharpes([100.0, 101.0, *[100.5] * 3000, 101.0, 100.0], 0.5, memory)
    assert np.isfinite(found).all()
    assert found[2500:3001] == [0.0] * 501
    assert memory["second"][0] > 0


def test_ruin_is_a_return_of_minus_one_and_nothing_after_it() -> None:
    memory = np.zeros(1, MEMORY)
    equity = [100.0, 101.0, 100.0, 102.0]
    found = sharpes([*equity, 0.0], 0.1, memory)
    assert found == pytest.approx(plain_sharpes([*equity, 0.0], 0.1))
    assert found[-1] < -5
    moments = memory[0].tolist()
    assert sharpes([0.0, 0.0], 0.1, memory) == [0.0]
    assert memory[0].tolist() == moments


def test_an_episode_begins_with_an_empty_memory() -> None:
    memory = np.zeros(2, MEMORY)
    equity = [100.0, 103.0, 101.0, 104.0]
    found = sharpes(equity, 0.1, memory)
    memory[1] = memory[0]
    assert sharpes(equity, 0.1, memory[:1]) != found
    forget(memory[0])
    assert memory[0].tolist() == (0.0, 0.0)
    assert memory[1].tolist() != (0.0, 0.0)
    assert sharpes(equity, 0.1, memory[:1]) == found


def test_memory_is_left_alone_where_nobody_asks_for_it() -> None:
    memory = np.array([(0.5, 0.75)] * 3, MEMORY)
    rewarded(Weights(log_return=1.0), accounts(), memory=memory)
    assert memory.tolist() == [(0.5, 0.75)] * 3


def test_the_decay_is_that_of_the_settings() -> None:
    term = DifferentialSharpe(term="differential_sharpe", weight=0.5, decay=0.2)
    weights = Reward([term], BARS, NO_ROWS).weights
    assert weights == Weights(differential_sharpe=0.5, decay=0.2)


# Turbulence


def plain_turbulence(bars: Market, training: list[tuple[int, int]]) -> np.ndarray:
    """Squared Mahalanobis distances, row by row."""
    close = bars.close
    returns = close[1:] / close[:-1] - 1  # [t - 1] is of row t
    sample = np.vstack([returns[a : b - 1] for a, b in training])
    inverse = np.linalg.inv(np.atleast_2d(np.cov(sample, rowvar=False)))
    found = [0.0]
    for change in returns:
        away = change - sample.mean(axis=0)
        found.append(float(away @ inverse @ away))
    return np.array(found)


@pytest.mark.parametrize("instruments", [1, 2, 5])
def test_turbulence_is_the_squared_mahalanobis_distance(instruments: int) -> None:
    bars = random_market(300, instruments, seed=instruments)
    training = [(0, 90), (100, 180)]
    found = turbulence(bars, ranges((0, 300)), ranges(*training))
    np.testing.assert_allclose(found, plain_turbulence(bars, training), rtol=1e-9)


def test_turbulence_by_hand() -> None:
    # Returns 10 %, -10 %, 10 %, -10 %: mean 0, variance 4/3 of 0.01; then 20 % and 0 %
    closes = np.cumprod([100, 1.1, 0.9, 1.1, 0.9, 1.2, 1.0])[:, np.newaxis]
    found = turbulence(of_closes(closes), ranges((0, 7)), ranges((0, 5)))
    assert found == pytest.approx([0, 0.75, 0.75, 0.75, 0.75, 3.0, 0], abs=1e-12)


def test_the_first_row_of_a_segment_has_no_turbulence() -> None:
    bars = random_market(60, 2, seed=1)
    found = turbulence(bars, ranges((5, 20), (20, 20), (30, 60)), ranges((5, 20)))
    assert np.flatnonzero(found == 0).tolist() == [0, 5, 30]


def test_a_gap_between_training_ranges_is_no_return() -> None:
    bars = random_market(200, 2, seed=2)
    closes = bars.close.copy()
    closes[100:] *= 50.0
    training = ranges((0, 100), (100, 200))
    calm = turbulence(bars, training, training)
    np.testing.assert_allclose(turbulence(of_closes(closes), training, training), calm, rtol=1e-7)


def test_turbulence_does_not_depend_on_the_unit_of_a_price() -> None:
    bars = random_market(200, 3, seed=4)
    whole = ranges((0, 200))
    other = turbulence(of_closes(bars.close * [1e-6, 1.0, 1e6]), whole, whole)
    np.testing.assert_allclose(other, turbulence(bars, whole, whole), rtol=1e-7, atol=1e-12)


def test_an_instrument_listed_twice_changes_nothing() -> None:
    close = random_market(200, 2, seed=5).close
    whole = ranges((0, 200))
    once = turbulence(of_closes(close), whole, whole)
    twice = turbulence(of_closes(close[:, [0, 1, 0, 0]]), whole, whole)
    np.testing.assert_allclose(twice, once, rtol=1e-9)
    rounded = np.hstack([close, close[:, :1].astype(np.float32)])  # as another source may keep it
    np.testing.assert_allclose(turbulence(of_closes(rounded), whole, whole), once, rtol=0.01)


def test_an_instrument_that_stood_still_in_training_changes_nothing() -> None:
    close = random_market(200, 2, seed=6).close
    still = np.full((200, 1), 0.3)
    still[150:] = 0.4
    training = ranges((0, 100))
    found = turbulence(of_closes(np.hstack([close, still])), training, training)
    np.testing.assert_allclose(found, turbulence(of_closes(close), training, training), rtol=1e-9)


def test_a_quiet_instrument_counts_as_much_as_a_wild_one() -> None:
    rng = np.random.default_rng(8)
    returns = rng.normal(0, 1, (400, 2)) * [1e-8, 0.05]
    bars = of_closes(100 * np.cumprod(1 + returns, axis=0))
    whole = ranges((0, 400))
    found = turbulence(bars, whole, whole)
    assert found[1:].mean() == pytest.approx(2.0, abs=0.02)  # N (K - 1) / K


def test_prices_that_rise_by_a_constant_factor_are_not_turbulent() -> None:
    closes = 100 * 1.01 ** np.arange(50)[:, np.newaxis]  # returns differ by rounding
    training = ranges((0, 30))
    assert not turbulence(of_closes(closes), training, training).any()


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(4, 30), st.integers(1, 5))
def test_turbulence_is_finite_whatever_the_prices(data: Any, rows: int, instruments: int) -> None:
    prices = st.sampled_from([1e-6, 1.0, 1.0, 2.0, 1e6]) | st.floats(1e-6, 1e6)
    row = st.lists(prices, min_size=instruments, max_size=instruments)
    closes = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    training = ranges((0, data.draw(st.integers(3, rows))))
    assert np.isfinite(turbulence(of_closes(closes), training, training)).all()


def test_too_few_training_returns_say_what_to_do() -> None:
    bars = random_market(10, 1, seed=0)
    for few in (NO_ROWS, ranges((0, 2)), ranges((0, 2), (4, 5), (7, 8))):
        with pytest.raises(ValueError, match=r"turbulence_gate.* 2 or more.*give training more"):
            Reward([TurbulenceGate(term="turbulence_gate")], bars, few)
    assert np.isfinite(turbulence(bars, NO_ROWS, ranges((0, 2), (4, 6)))).all()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (ranges((0, 11)), r"row range \[0, 11\) does not lie in the market's 10 rows"),
        (ranges((-1, 5)), r"row range \[-1, 5\) does not lie"),
        (ranges((5, 4)), r"row range \[5, 4\) does not lie"),
        (np.arange(4), r"row ranges have shape \(4,\); \[K, 2\] is expected"),
    ],
)
def test_wrong_training_rows_are_refused(wrong: np.ndarray, sentence: str) -> None:
    bars = random_market(10, 1, seed=0)
    with pytest.raises(ValueError, match=sentence):
        Reward([TurbulenceGate(term="turbulence_gate")], bars, wrong)


# The gate


def gate(bars: Market, quantile: float, *training: tuple[int, int]) -> np.ndarray:
    term = TurbulenceGate(term="turbulence_gate", quantile=quantile)
    return Reward([term], bars, ranges(*training)).turbulent


def test_the_gate_shuts_above_the_quantile_of_the_training_rows() -> None:
    bars = random_market(400, 3, seed=9)
    plain = plain_turbulence(bars, [(0, 100), (120, 220)])
    threshold = np.quantile(np.concatenate([plain[1:100], plain[121:220]]), 0.9)
    expected = plain > threshold
    expected[120] = False  # a range's first row
    shut = gate(bars, 0.9, (0, 100), (120, 220))
    np.testing.assert_array_equal(shut, expected)
    assert shut[1:100].sum() + shut[121:220].sum() == 20  # of 198
    assert shut[220:].any()
    assert not shut.flags.writeable


def test_the_gate_is_fitted_on_training_rows_alone() -> None:
    bars = random_market(300, 2, seed=10)
    closes = bars.close.copy()
    rng = np.random.default_rng(0)
    closes[200:] *= np.exp(np.cumsum(rng.normal(0, 0.1, (100, 2)), axis=0))
    before, after = gate(bars, 0.9, (50, 200)), gate(of_closes(closes), 0.9, (50, 200))
    np.testing.assert_array_equal(after[:200], before[:200])
    assert after[201:].sum() > 90 > before[201:].sum()
    values = [turbulence(one, NO_ROWS, ranges((50, 200))) for one in (bars, of_closes(closes))]
    np.testing.assert_array_equal(values[1][:200], values[0][:200])


def test_the_gate_at_a_row_does_not_know_later_rows() -> None:
    bars = random_market(300, 2, seed=11)
    whole = gate(bars, 0.9, (0, 100))
    for rows in (150, 200, 299):
        np.testing.assert_array_equal(
            gate(of_closes(bars.close[:rows]), 0.9, (0, 100)), whole[:rows]
        )


def test_rows_that_are_as_turbulent_as_the_threshold_leave_the_gate_open() -> None:
    closes = np.cumprod([100, *[1.1, 0.9] * 20, 1.3])[:, np.newaxis]
    shut = gate(of_closes(closes), 0.5, (0, 41))
    assert np.flatnonzero(shut).tolist() == [41]
    for seed in range(10):  # 4 returns of 5 instruments are all as far from their mean
        assert not gate(random_market(30, 5, seed), 0.5, (0, 5))[:5].any()


def test_the_gate_of_the_settings_reaches_the_reward() -> None:
    bars = random_market(100, 2, seed=12)
    term = TurbulenceGate(term="turbulence_gate", weight=0.5, quantile=0.8)
    reward = Reward([term], bars, ranges((0, 100)))
    account = Account.start(1, 2, 1000.0)
    account.quantity[0] = [1.0, -1.0]
    for row in range(1, 100):
        (found,) = rewarded(
            reward.weights, account, BEFORE[:1], bars, np.array([row]), reward.turbulent
        )
        expected = -0.5 * bars.close[row].sum() / 1000 if reward.turbulent[row] else 0.0
        assert found == pytest.approx(expected, rel=1e-14)


# Terms of one's own

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """Writes an importable `my_terms` and gives the prefix of its functions."""

    def write(source: str) -> str:
        (tmp_path / "my_terms.py").write_text("import numpy as np\n" + source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "my_terms", raising=False)
        return "my_terms:"

    yield write
    sys.modules.pop("my_terms", None)


def custom(function: str, weight: float = 1.0) -> CustomTerm:
    return CustomTerm(term="custom", function=function, weight=weight)


def added(reward: Reward) -> list[float]:
    rewards = np.array([10.0, 20.0, 30.0])
    reward.add_custom(rewards, accounts(), BEFORE, BARS, ROW)
    return rewards.tolist()


def fenced(language: str) -> str:
    """The block in that language of the section Reward of the documentation."""
    section = DOCUMENTATION.read_text(encoding="utf-8").split("\n## Reward\n")[1].split("\n## ")[0]
    return section.split(f"```{language}\n")[1].split("```")[0]


def test_the_documented_example_works(module: Module) -> None:
    module(fenced("python"))
    configured = yaml.safe_load(fenced("yaml"))
    environment = EnvironmentSettings(actions={"kind": "brackets"}, **configured)
    reward = Reward(environment.reward, BARS, NO_ROWS)
    assert reward.weights == Weights(log_return=1.0)
    assert added(reward) == [9.99, 20.0, 30.0]


def test_custom_terms_get_the_step_and_are_weighted_and_added(module: Module) -> None:
    prefix = module(
        "def paid(account, equity_before, market, row):\n"
        "    return account.fees + equity_before / 1000\n"
        "def price(account, equity_before, market, row):\n"
        "    return market.close[row, 1].astype(int)\n"
    )
    terms = [custom(prefix + "paid", 2.0), PlainTerm(term="cost"), custom(prefix + "price", -1.0)]
    reward = Reward(terms, BARS, NO_ROWS)
    assert [weight for weight, _ in reward.custom] == [2.0, -1.0]
    assert added(reward) == [10 + 4 - 50, 20 + 6 - 50, 30 - 50]


def test_without_custom_terms_nothing_is_added() -> None:
    assert added(Reward([PlainTerm(term="cost")], BARS, NO_ROWS)) == [10.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("np.array([0.0, np.nan, 0.0])", "my_terms:f gave nan for environment 1 at row 1; it must"),
        ("np.array([0, 0, -np.inf])", "my_terms:f gave -inf for environment 2 at row 1"),
        ("np.zeros((3, 1))", r"my_terms:f gave float64 of shape \(3, 1\); .* of shape \(3,\)"),
        ("0.0", r"my_terms:f gave float64 of shape \(\)"),
        ("None", r"my_terms:f gave object of shape \(\)"),
        ("np.zeros(3, complex)", "my_terms:f gave complex128"),
    ],
)
def test_what_is_no_reward_is_refused(module: Module, body: str, sentence: str) -> None:
    prefix = module(f"def f(account, equity_before, market, row):\n    return {body}\n")
    reward = Reward([custom(prefix + "f")], BARS, NO_ROWS)
    with pytest.raises(ValueError, match=sentence):
        added(reward)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            "there_is_no:such",
            "module 'there_is_no' cannot be imported .*put the folder",
        ),
        ("my_terms.sub:such", "module 'my_terms.sub' cannot be imported .*not a package"),
        ("my_terms:such", r"module 'my_terms' \(.*my_terms.py\) has no 'such'; .*define it there"),
        ("my_terms:level", "it is a float that cannot be called; name a function of"),
    ],
)
def test_a_function_that_cannot_be_had_is_named(
    module: Module, function: str, sentence: str
) -> None:
    module("level = 0.5\n")
    beginning = f"reward term custom: function '{function}'.*"
    with pytest.raises(ValueError, match=beginning + sentence):
        Reward([custom(function)], BARS, NO_ROWS)


def test_a_module_that_lacks_another_says_which(module: Module) -> None:
    prefix = module("import there_is_no\n")
    with pytest.raises(ValueError, match=r"'my_terms' cannot be imported .*'there_is_no'"):
        Reward([custom(prefix + "f")], BARS, NO_ROWS)


def test_a_term_that_writes_changes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "writing_terms.py").write_text(
        "def rich(account, equity_before, market, row):\n"
        "    row -= 1\n"
        "    account.cash[:] += 1e6\n"
        "    equity_before[:] = 0.0\n"
        "    return account.cash\n"
        "def broken(account, equity_before, market, row):\n"
        "    return {}[row[0]]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def added(function: str, weight: float = 1.0) -> np.ndarray:
        term = CustomTerm(term="custom", function=f"writing_terms:{function}", weight=weight)
        account, before, row, rewards = accounts(), BEFORE.copy(), ROW.copy(), np.zeros(3)
        Reward([term], BARS, NO_ROWS).add_custom(rewards, account, before, BARS, row)
        assert row.tolist() == ROW.tolist()
        assert before.tolist() == BEFORE.tolist()
        assert account.cash.tolist() == accounts().cash.tolist()
        return rewards

    assert (added("rich") > 1e6).all()
    with pytest.raises(ValueError, match="writing_terms:broken failed with KeyError"):
        added("broken")
