from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.strategies import Strategy, baseline
from trade_pipeline.settings.baselines import (
    BuyAndHoldBaseline,
    EqualWeightBaseline,
    FlatBaseline,
    RandomBaseline,
    SmaCrossBaseline,
)
from trade_pipeline.simulator.kernel import Account
from trade_pipeline_tests.training import synthetic

ONE, TWO = ("demo.A.1h",), ("demo.A.1h", "demo.B.1h")
EVERY = (
    FlatBaseline(kind="flat"),
    BuyAndHoldBaseline(kind="buy_and_hold"),
    RandomBaseline(kind="random", seed=1),
    SmaCrossBaseline(kind="sma_cross", fast=3, slow=9),
    EqualWeightBaseline(kind="equal_weight"),
)


def decisions(strategy: Strategy, keys: tuple[str, ...] = ONE, leverage: float = 1.0) -> Strategy:
    environment = synthetic.experiment(keys).environment.model_copy(
        update={"max_leverage": leverage}
    )
    strategy.start(synthetic.dataset(keys), environment)
    return strategy


@pytest.mark.parametrize("keys", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("settings", EVERY, ids=lambda one: one.kind)
def test_every_baseline_trades_the_same_bars_and_repeats_itself(
    settings: object, keys: tuple[str, ...]
) -> None:
    dataset = synthetic.dataset(keys)
    environment = synthetic.experiment(keys).environment
    strategy = baseline(settings)  # type: ignore[arg-type]
    first = backtest(dataset, dataset.folds[0].test, environment, strategy)
    again = backtest(dataset, dataset.folds[0].test, environment, strategy)
    assert first.equity.tobytes() == again.equity.tobytes()
    flat = backtest(dataset, dataset.folds[0].test, environment, baseline(EVERY[0]))
    np.testing.assert_array_equal(first.row, flat.row)
    assert (flat.equity == environment.initial_equity).all()
    assert flat.fills.is_empty()


@pytest.mark.parametrize(("leverage", "weight"), [(1.0, 0.5), (3.0, 0.5), (0.6, 0.3)])
def test_equal_weights_add_up_to_equity_or_the_leverage_cap(leverage: float, weight: float) -> None:
    for settings in (EVERY[1], EVERY[4]):
        strategy = decisions(baseline(settings), TWO, leverage)
        orders = strategy.orders(10, Account.start(1, 2, 1000.0))
        np.testing.assert_array_equal(orders.target_weight, [[weight, weight]])
        assert not orders.hold.any()


def test_buy_and_hold_buys_only_what_it_does_not_hold() -> None:
    account = Account.start(1, 2, 1000.0)
    account.quantity[0, 0] = 5.0
    assert decisions(baseline(EVERY[1]), TWO).orders(10, account).hold.tolist() == [[True, False]]
    assert not decisions(baseline(EVERY[4]), TWO).orders(10, account).hold.any()


def test_other_seeds_draw_other_actions_over_the_whole_range() -> None:
    dataset = synthetic.dataset()
    environment = synthetic.experiment().environment
    curves = [
        backtest(
            dataset,
            dataset.folds[0].test,
            environment,
            baseline(RandomBaseline(kind="random", seed=seed)),
        )
        for seed in (0, 1)
    ]
    assert curves[0].equity.tobytes() != curves[1].equity.tobytes()
    assert {-1.0, -0.5, 0.0, 0.5, 1.0} >= set(curves[0].orders["target_weight"]) > {0.0}


def test_sma_cross_is_long_exactly_while_the_fast_average_is_above() -> None:
    dataset = synthetic.dataset()
    strategy = decisions(baseline(EVERY[3]))
    account = Account.start(1, 1, 1000.0)
    close = [Fraction(round(price * 10**8)) for price in dataset.close[:, 0].tolist()]
    for a, b in dataset.segments.tolist():
        for row in range(a, b):
            known = close[a : row + 1]
            above = len(known) >= 9 and sum(known[-3:]) / 3 > sum(known[-9:]) / 9
            assert strategy.orders(row, account).target_weight[0, 0] == float(above)


def test_sma_cross_does_not_trade_a_tie_of_a_constant_price() -> None:
    dataset = synthetic.dataset()
    constant = replace(dataset, close=np.full_like(dataset.close, 0.1 + 0.2))
    strategy = baseline(EVERY[3])
    strategy.start(constant, synthetic.experiment().environment)
    account = Account.start(1, 1, 1000.0)
    weights = [strategy.orders(row, account).target_weight[0, 0] for row in range(200)]
    assert not any(weights)


def test_sma_cross_never_sees_a_later_close() -> None:
    dataset = synthetic.dataset()
    environment = synthetic.experiment().environment
    account = Account.start(1, 1, 1000.0)
    whole, cut = baseline(EVERY[3]), baseline(EVERY[3])
    whole.start(dataset, environment)
    later = dataset.close.copy()
    later[201:] *= 3
    cut.start(replace(dataset, close=later), environment)
    for row in range(201):
        np.testing.assert_array_equal(
            whole.orders(row, account).target_weight, cut.orders(row, account).target_weight
        )


def test_sma_cross_keeps_what_it_holds_instead_of_rebalancing() -> None:
    strategy = decisions(baseline(EVERY[3]))
    flat, holding = Account.start(1, 1, 1000.0), Account.start(1, 1, 1000.0)
    holding.quantity[0, 0] = 3.0
    row = next(row for row in range(200) if strategy.orders(row, flat).target_weight[0, 0] > 0)
    assert not strategy.orders(row, flat).hold[0, 0]
    assert strategy.orders(row, holding).hold[0, 0]
