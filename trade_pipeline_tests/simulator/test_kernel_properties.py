"""What holds for the kernel at every step, whatever is ordered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.simulator.kernel import (
    REASONS,
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
TAKE = REASONS.index("take")

rules_strategy = st.builds(
    Rules,
    fee_bps=st.sampled_from([0.0, 10.0]),
    slippage_bps=st.sampled_from([0.0, 5.0]),
    borrow_rate=st.sampled_from([0.0, 0.1]),
    interest_rate=st.sampled_from([0.0, 0.1]),
    lot_size=st.sampled_from([0.0, 0.1, 1.0]),
    tick_size=st.sampled_from([0.0, 0.01]),
    min_notional=st.sampled_from([0.0, 500.0]),
    participation=st.sampled_from([0.0, 0.05]),
    max_leverage=st.sampled_from([1.0, 5.0]),
    maintenance_margin=st.sampled_from([0.0, 0.05]),
    no_trade_band=st.sampled_from([0.0, 0.1]),
)


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), rules_strategy)
def test_equity_changes_by_price_gains_less_fees_slippage_and_financing(
    seed: int, instruments: int, rules: Rules
) -> None:
    rng = np.random.default_rng(seed)
    market = random_market(ROWS, instruments, seed, volatility=0.03)
    account = Account.start(ENVIRONMENTS, instruments, 10_000.0)
    fills = Fills.empty(ENVIRONMENTS, instruments)
    for t in range(ROWS - 1):
        row = np.full(ENVIRONMENTS, t)
        before = account.copy()
        step(account, market, row, random_orders(rng, ENVIRONMENTS, instruments), rules, fills)
        check_step(before, account, market, t, fills, rules)
    closing = account.copy()
    close_out(account, market, np.full(ENVIRONMENTS, ROWS - 1), rules, fills)
    alive = ~account.terminated
    paid = account.fees + account.slippage
    np.testing.assert_allclose(
        account.equity[alive], (closing.equity - paid)[alive], rtol=1e-9, atol=1e-6
    )
    assert (account.quantity == 0).all()


def check_step(
    before: Account, after: Account, market: Market, t: int, fills: Fills, rules: Rules
) -> None:
    """The identity from the fills alone, and what must never happen."""
    gain = (before.quantity * (market.close[t + 1] - market.close[t])).sum(axis=1)
    for e in range(ENVIRONMENTS):
        quantity = before.quantity[e].copy()
        for fill in fills.of(e):
            assert market.traded[t + 1, fill.instrument]
            slip = fill.slippage / fill.quantity  # signed: a buyer paid that much more
            gain[e] += fill.quantity * (market.close[t + 1, fill.instrument] - fill.price + slip)
            quantity[fill.instrument] += fill.quantity
        if not after.terminated[e]:
            np.testing.assert_allclose(quantity, after.quantity[e], atol=1e-9)
    expected = before.equity + gain - after.fees - after.slippage - after.financing
    alive = ~after.terminated
    np.testing.assert_allclose(after.equity[alive], expected[alive], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(
        after.equity[alive], worth(after, market.close[t + 1])[alive], rtol=1e-12, atol=1e-6
    )
    ruined = after.terminated & ~before.terminated
    assert (expected[ruined] <= 1e-6).all()
    assert (after.equity[after.terminated] == 0).all()
    for name in ("cash", "equity", "peak_equity", "quantity", "fees", "slippage", "financing"):
        assert np.isfinite(getattr(after, name)).all()
    assert (np.isnan(after.entry_price) == (after.quantity == 0)).all()
    assert (after.equity >= 0).all()
    assert (after.peak_equity >= after.equity).all()
    entries = fills.count > 0
    if rules.participation > 0 and entries.any():
        for e in np.flatnonzero(entries):
            for n in range(market.instruments):
                ordered = sum(
                    abs(fill.quantity)
                    for fill in fills.of(e)
                    if fill.instrument == n and fill.reason == "order"
                )
                assert ordered <= rules.participation * market.volume[t + 1, n] * (1 + 1e-12)


@pytest.mark.parametrize("instruments", [1, 3])
def test_accounts_stepped_together_equal_each_stepped_alone_bit_for_bit(instruments: int) -> None:
    rng = np.random.default_rng(5)
    market = random_market(300, instruments, 5)
    rules = Rules(5, 2, 0.05, 0.05, 0.1, 0.01, 10, 0.1, 3, 0.05, 0.02)
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
    assert together.ambiguous.sum() > 0


def test_the_same_orders_give_the_same_bits_again() -> None:
    market = random_market(100, 2, 9)

    def run() -> bytes:
        rng = np.random.default_rng(1)
        account, fills = Account.start(4, 2, 1e4), Fills.empty(4, 2)
        for t in range(99):
            step(account, market, np.full(4, t), random_orders(rng, 4, 2), Rules(fee_bps=5), fills)
        return account.balances.tobytes() + account.positions.tobytes()

    assert run() == run()
