"""What holds for the kernel at every step, whatever is ordered."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.simulator.kernel import (
    Account,
    Fills,
    Market,
    Orders,
    Rules,
    close_out,
    step,
)
from trade_pipeline_tests.simulator.markets import random_market

ROWS = 40
ENVIRONMENTS = 8
OWN = ("lot_size", "tick_size", "min_notional")  # each instrument may have its own
EACH = (0.0, 0.1, 1.0)
NUMBERS = {
    "tiers": [((0.0, 0.0, 0.0),), ((0.0, 2.0, 10.0),), ((0.0, 2.0, 10.0), (3e4, 0.0, 5.0))],
    "fee_per_share": [0.0, 0.01],
    "fee_minimum": [0.0, 1.0],
    "fee_maximum_fraction": [np.inf, 0.005],
    "slippage_bps": [0.0, 5.0],
    "impact_bps": [0.0, 50.0],
    "borrow_rate": [0.0, 0.1],
    "interest_rate": [0.0, 0.1],
    "cash_rate": [0.0, 0.1],
    "funding_rate": [0.0, 0.001, -0.001],
    "funding_hours": [8, 1],
    "lot_size": [0.0, 0.1, 1.0, EACH],
    "tick_size": [0.0, 0.01, EACH],
    "min_notional": [0.0, 500.0, (0.0, 100.0, 1000.0)],
    "participation": [0.0, 0.05],
    "max_leverage": [1.0, 5.0],
    "maintenance_margin": [0.0, 0.05],
    "no_trade_band": [0.0, 0.1],
    "max_turnover": [0.0, 0.3, 2.0],
    "lowest_weight": [-np.inf, 0.0, -0.5],
    "highest_weight": [np.inf, 0.5],
}
SCALES = {"fee_scale": (0.5, 2.0), "slippage_scale": (0.5, 2.0), "price_scale": (0.25, 4.0)}

numbers_strategy = st.fixed_dictionaries(
    {name: st.sampled_from(values) for name, values in NUMBERS.items()}
)


def rules_of(numbers: dict[str, Any], instruments: int) -> Rules:
    return Rules.plain(
        instruments,
        **{
            name: list(value[:instruments]) if isinstance(value, tuple) and name in OWN else value
            for name, value in numbers.items()
        },
    )


def with_funding(market: Market, rng: np.random.Generator) -> Market:
    rates = np.where(rng.random(market.close.shape) < 0.3, rng.normal(0, 1e-3), 0.0)
    prices = (market.open, market.high, market.low, market.close)
    return Market(market.ts, market.close_ts, *prices, market.volume, market.traded, rates)


def random_orders(rng: np.random.Generator, environments: int, instruments: int) -> Orders:
    shape = (environments, instruments)
    return Orders(
        rng.uniform(-3, 3, shape) / instruments,
        rng.random(shape) < 0.3,
        np.where(rng.random(shape) < 0.5, rng.uniform(0.001, 0.05, shape), np.nan),
        np.where(rng.random(shape) < 0.5, rng.uniform(0.001, 0.05, shape), np.nan),
    )


def worth(account: Account, prices: np.ndarray) -> np.ndarray:
    return account.cash + (account.quantity * prices).sum(axis=1)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), numbers_strategy)
def test_equity_changes_by_price_gains_less_fees_slippage_and_financing(
    seed: int, instruments: int, numbers: dict[str, Any]
) -> None:
    rng = np.random.default_rng(seed)
    market = random_market(ROWS, instruments, seed, volatility=0.03)
    if seed % 2:
        market = with_funding(market, rng)
    rules = rules_of(numbers, instruments)
    account = Account.start(ENVIRONMENTS, instruments, 10_000.0)
    for name, (low, high) in SCALES.items():
        getattr(account, name)[:] = rng.uniform(low, high, ENVIRONMENTS)
    scale = account.price_scale.copy()
    fills = Fills.empty(ENVIRONMENTS, instruments)
    for t in range(ROWS - 1):
        row = np.full(ENVIRONMENTS, t)
        before = account.copy()
        step(account, market, row, random_orders(rng, ENVIRONMENTS, instruments), rules, fills)
        check_step(before, account, market, t, fills, numbers)
    closing = account.copy()
    close_out(account, market, np.full(ENVIRONMENTS, ROWS - 1), rules, fills)
    alive = ~account.terminated
    paid = account.fees + account.slippage
    np.testing.assert_allclose(
        account.equity[alive], (closing.equity - paid)[alive], rtol=1e-9, atol=1e-6
    )
    assert (account.quantity == 0).all()
    assert (account.financing == 0).all()
    assert (account.price_scale == scale).all()


def check_step(
    before: Account,
    after: Account,
    market: Market,
    t: int,
    fills: Fills,
    numbers: dict[str, Any],
) -> None:
    """The identity from the fills alone, and what must never happen."""
    now = market.close[t] * before.price_scale[:, None]
    then = market.close[t + 1] * before.price_scale[:, None]
    volume = market.volume[t + 1] / before.price_scale[:, None]
    gain = (before.quantity * (then - now)).sum(axis=1)
    for e in range(ENVIRONMENTS):
        quantity = before.quantity[e].copy()
        ordered = np.zeros(market.instruments)
        totals = np.zeros(3)
        for fill in fills.of(e):
            n = fill.instrument
            assert market.traded[t + 1, n]
            # Only a take that an order of this very bar set can slip.
            assert fill.slippage == 0 or fill.reason != "take" or ordered[n] > 0
            slip = fill.slippage / fill.quantity  # signed: a buyer paid that much more
            gain[e] += fill.quantity * (then[e, n] - fill.price + slip)
            quantity[n] += fill.quantity
            ordered[n] += abs(fill.quantity) * (fill.reason == "order")
            totals += fill.fee, fill.slippage, abs(fill.quantity) * fill.price
        sums = after.fees[e], after.slippage[e], after.traded_notional[e]
        np.testing.assert_allclose(totals, sums, rtol=1e-12)
        if not after.terminated[e]:
            np.testing.assert_allclose(quantity, after.quantity[e], atol=1e-9)
        if numbers["participation"] > 0:
            assert (ordered <= numbers["participation"] * volume[e] * (1 + 1e-12)).all()
        if numbers["max_turnover"] > 0:
            most = numbers["max_turnover"] * before.equity[e]
            assert ordered @ now[e] <= most * (1 + 1e-9)
    expected = before.equity + gain - after.fees - after.slippage - after.financing
    alive = ~after.terminated
    np.testing.assert_allclose(after.equity[alive], expected[alive], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(
        after.equity[alive], worth(after, then)[alive], rtol=1e-12, atol=1e-6
    )
    ruined = after.terminated & ~before.terminated
    assert (expected[ruined] <= 1e-6).all()
    assert (after.equity[after.terminated] == 0).all()
    for name in ("cash", "equity", "peak_equity", "quantity", "fees", "slippage", "financing"):
        assert np.isfinite(getattr(after, name)).all()
    assert (np.isnan(after.entry_price) == (after.quantity == 0)).all()
    assert (after.equity >= 0).all()
    assert (after.peak_equity >= after.equity).all()
    if numbers["lowest_weight"] == 0:
        assert (after.quantity >= 0).all()


@pytest.mark.parametrize("instruments", [1, 3])
def test_accounts_stepped_together_equal_each_stepped_alone_bit_for_bit(instruments: int) -> None:
    rng = np.random.default_rng(5)
    market = random_market(300, instruments, 5)
    numbers = {name: values[-1] for name, values in NUMBERS.items() if name != "highest_weight"}
    rules = rules_of({**numbers, "no_trade_band": 0.02, "participation": 0.1}, instruments)
    environments = 33
    starts = rng.integers(0, 100, environments)
    together = Account.start(environments, instruments, 10_000.0)
    alone = [Account.start(1, instruments, 10_000.0) for _ in range(environments)]
    fills, single = Fills.empty(environments, instruments), Fills.empty(1, instruments)
    for k in range(150):
        wanted = random_orders(rng, environments, instruments)
        step(together, market, starts + k, wanted, rules, fills)
        for e in range(environments):
            mine = Orders(*(np.ascontiguousarray(array[e : e + 1]) for array in wanted))
            step(alone[e], market, starts[e : e + 1] + k, mine, rules, single)
            assert single.of(0) == fills.of(e)
            assert alone[e].balances.tobytes() == together.balances[e : e + 1].tobytes()
            assert alone[e].positions.tobytes() == together.positions[e : e + 1].tobytes()
            assert (alone[e].daily_volume[0] == together.daily_volume[e]).all()
    assert together.ambiguous.sum() > 0


def test_the_same_orders_give_the_same_bits_again() -> None:
    market = random_market(100, 2, 9)

    def run() -> bytes:
        rng = np.random.default_rng(1)
        account, fills = Account.start(4, 2, 1e4), Fills.empty(4, 2)
        rules = Rules.plain(2, fee_bps=5, impact_bps=9)
        for t in range(99):
            step(account, market, np.full(4, t), random_orders(rng, 4, 2), rules, fills)
        return account.balances.tobytes() + account.positions.tobytes()

    assert run() == run()
