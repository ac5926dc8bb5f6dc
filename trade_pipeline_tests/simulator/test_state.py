"""Bad bars are refused with their row, instrument and reason; rules and accounts as arrays."""

from typing import Any

import numpy as np
import pytest

from trade_pipeline.settings.environment import (
    CostSettings,
    EnvironmentSettings,
    WeightActions,
)
from trade_pipeline.simulator.kernel import Account, Fills, Market, MarketError, Rules
from trade_pipeline.simulator.rules import STEPS
from trade_pipeline_tests.simulator.environments import market_of
from trade_pipeline_tests.simulator.markets import flat_bar, market, random_market

GOOD = random_market(6, 2, seed=1)


def spoiled(name: str, index: tuple[int, ...], value: float) -> Market:
    array = getattr(GOOD, name).copy()
    array[index] = value
    return market_of(GOOD, **{name: array})


@pytest.mark.parametrize("name", ["open", "high", "low", "close"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_prices_must_be_positive_numbers(name: str, value: float) -> None:
    with pytest.raises(MarketError, match=rf"row 3 \(ts \d+\), instrument 1: {name} .* positive"):
        spoiled(name, (3, 1), value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("low", 1e6, "above the open"), ("high", 1e-6, "below the open")],
)
def test_the_range_must_hold_open_and_close(name: str, value: float, reason: str) -> None:
    with pytest.raises(MarketError, match=rf"row 2 .*instrument 0: {name} .*{reason}"):
        spoiled(name, (2, 0), value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_volume_must_be_zero_or_more(value: float) -> None:
    with pytest.raises(MarketError, match=r"row 1 .*volume"):
        spoiled("volume", (1, 0), value)


@pytest.mark.parametrize("value", [np.nan, 1.0, -1.0])
def test_funding_must_be_a_rate(value: float) -> None:
    with pytest.raises(MarketError, match=r"row 1 .*instrument 1: funding .* between -1 and 1"):
        spoiled("funding", (1, 1), value)


def test_times_must_ascend() -> None:
    with pytest.raises(MarketError, match="row 4: ts 1 does not come after row 3"):
        spoiled("ts", (4,), 1)
    with pytest.raises(MarketError, match="row 4: close_ts"):
        spoiled("close_ts", (4,), GOOD.close_ts[3])
    with pytest.raises(MarketError, match=r"row 0: close_ts .* not after ts"):
        spoiled("close_ts", (0,), GOOD.ts[0])


def test_bars_out_of_order_are_refused_with_their_row() -> None:
    ts = GOOD.ts.copy()
    ts[[2, 3]] = ts[[3, 2]]
    with pytest.raises(MarketError, match=r"row 3: ts \d+ does not come after row 2"):
        market_of(GOOD, ts=ts)


def test_shapes_must_agree() -> None:
    with pytest.raises(MarketError, match=r"volume has shape \(6, 1\); \(6, 2\)"):
        market_of(GOOD, volume=GOOD.volume[:, :1])
    with pytest.raises(MarketError, match="close has shape"):
        market_of(GOOD, close=GOOD.close[:, 0])
    with pytest.raises(MarketError, match=r"ts has shape \(5,\)"):
        market_of(GOOD, ts=GOOD.ts[:5])
    with pytest.raises(MarketError, match="at least one row"):
        market_of(GOOD, slice(0, 0))


def test_a_market_cannot_be_edited_and_leaves_the_callers_arrays_writable() -> None:
    close = GOOD.close.copy()
    bars = market_of(GOOD, close=close)
    for name in ("ts", "close_ts", "open", "close", "volume", "funding", "traded"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(bars, name)[0] = 1
    assert close.flags.writeable
    close[0, 0] = -1.0
    assert bars.close[0, 0] == GOOD.close[0, 0]


def test_a_market_gives_back_what_it_was_made_of() -> None:
    values = {
        name: np.random.default_rng(2).uniform(0.1, 0.2, (6, 2)) for name in ("volume", "funding")
    }
    bars = market_of(GOOD, **values)
    for name in ("ts", "close_ts", "open", "high", "low", "close", "traded"):
        np.testing.assert_array_equal(getattr(bars, name), getattr(GOOD, name))
    for name, array in values.items():
        np.testing.assert_array_equal(getattr(bars, name), array)
    assert (bars.rows, bars.instruments) == (6, 2)


def test_a_pair_of_rows_is_a_view_of_them() -> None:
    pair = GOOD.pair(3)
    assert pair.rows == 2
    np.testing.assert_array_equal(pair.close, GOOD.close[3:5])
    np.testing.assert_array_equal(pair.ts, GOOD.ts[3:5])
    assert np.shares_memory(pair.bars, GOOD.bars)


def rules(instruments: int = 1, costs: dict[str, Any] | None = None, **limits: Any) -> Rules:
    settings = EnvironmentSettings(
        actions=limits.pop("actions", WeightActions(kind="weights")),
        costs=CostSettings.model_validate(costs or {}),
        **limits,
    )
    return Rules.of(settings, instruments)


def test_rules_take_every_limit_of_the_settings() -> None:
    found = rules(
        max_leverage=2,
        maintenance_margin=0.25,
        no_trade_band=0.125,
        max_turnover=0.75,
        max_position=1.5,
    )
    assert (found.max_leverage, found.maintenance_margin, found.no_trade_band) == (2, 0.25, 0.125)
    assert (found.max_turnover, found.lowest_weight, found.highest_weight) == (0.75, 0.0, 1.5)
    short = rules(actions=WeightActions(kind="weights", short=True), max_leverage=2, max_position=2)
    assert (short.lowest_weight, short.highest_weight, short.max_turnover) == (-2.0, 2.0, 0.0)


def test_rules_take_every_cost_of_the_settings() -> None:
    numbers = {
        "borrow_rate": 0.01,
        "interest_rate": 0.02,
        "cash_rate": 0.03,
        "funding_rate": -0.04,
        "participation": 0.05,
    }
    steps = {"lot_size": 3.0, "tick_size": 0.5, "min_notional": 10.0}
    kinds = {
        "fee": {"kind": "flat", "bps": 5},
        "slippage": {"kind": "fixed", "bps": 2},
        "funding_hours": 4,
    }
    assert set(CostSettings.model_fields) == {*numbers, *steps, *kinds}
    found = rules(2, {**numbers, **steps, **kinds})
    assert {name: getattr(found, name) for name in numbers} == numbers
    assert STEPS.names == tuple(steps)
    for name, value in steps.items():
        assert found.steps[name].tolist() == [value, value]
    assert found.fee_tiers.tolist() == [[0.0, 5e-4, 5e-4]]
    assert (found.slippage, found.impact, found.funding_ms) == (2e-4, 0.0, 4 * 3_600_000)
    assert found.fee_maximum_fraction == np.inf


def test_rules_take_every_kind_of_fee_and_slippage() -> None:
    tiers = [
        {"volume": 0, "maker_bps": 4, "taker_bps": 10},
        {"volume": 1e6, "maker_bps": 0, "taker_bps": 3},
    ]
    found = rules(
        costs={
            "fee": {"kind": "maker_taker", "tiers": tiers},
            "slippage": {"kind": "impact", "bps": 1, "impact_bps": 50},
        }
    )
    assert found.fee_tiers.tolist() == [[0.0, 4e-4, 1e-3], [1e6, 0.0, 3e-4]]
    assert (found.slippage, found.impact) == (1e-4, 5e-3)
    share = {"kind": "per_share", "per_share": 0.005, "minimum": 1, "maximum_fraction": 0.01}
    found = rules(costs={"fee": share})
    assert found.fee_tiers.tolist() == [[0.0, 0.0, 0.0]]
    assert (found.fee_per_share, found.fee_minimum, found.fee_maximum_fraction) == (0.005, 1, 0.01)


@pytest.mark.parametrize("name", ["lot_size", "tick_size", "min_notional"])
def test_steps_are_one_for_all_or_one_an_instrument(name: str) -> None:
    assert rules(2, {name: (1.0, 2.0)}).steps[name].tolist() == [1.0, 2.0]
    for listed in ((1.0,), (1.0, 2.0, 3.0)):
        with pytest.raises(
            ValueError, match=f"{name} lists {len(listed)} numbers for 2 instruments"
        ):
            rules(2, {name: listed})


def test_an_account_copy_is_independent_and_views_write_through() -> None:
    account = Account.start(2, 1, 100.0)
    copy = account.copy()
    account.cash[0] = 5.0
    account.daily_volume[0, 0] = 7.0
    assert (account.balances["cash"][0], copy.cash[0]) == (5.0, 100.0)
    assert copy.daily_volume[0, 0] == 0.0


def test_an_account_starts_flat_with_all_scales_at_one() -> None:
    account = Account.start(2, 3, 100.0)
    for name in ("cash", "equity", "peak_equity"):
        assert getattr(account, name).tolist() == [100.0, 100.0]
    for name in ("fee_scale", "slippage_scale", "price_scale"):
        assert getattr(account, name).tolist() == [1.0, 1.0]
    assert not account.quantity.any()
    for name in ("entry_price", "stop_price", "take_price"):
        assert np.isnan(getattr(account, name)).all()
    assert not account.terminated.any()


def test_some_accounts_can_be_taken_out() -> None:
    account = Account.start(3, 2, 100.0)
    account.cash[:] = [1.0, 2.0, 3.0]
    chosen = account.chosen(np.array([2, 0]))
    assert chosen.cash.tolist() == [3.0, 1.0]
    chosen.cash[:] = 9.0
    assert account.cash.tolist() == [1.0, 2.0, 3.0]


def test_fills_are_empty_at_first() -> None:
    assert Fills.empty(2, 3).of(1) == []
    assert Fills.empty(2, 3).price.shape == (2, 12)


def test_one_instrument_needs_no_second_axis_in_the_builder() -> None:
    assert market([flat_bar(1), flat_bar(2)]).instruments == 1


HOUR_MS = 3_600_000
COLUMNS = {name: getattr(GOOD, name) for name in ("open", "high", "low", "close", "volume")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ts": GOOD.ts.astype("datetime64[ns]")}, r"ts has dtype datetime64\[ns\]; milliseconds"),
        ({"ts": GOOD.ts + 0.5}, "ts has dtype float64; milliseconds"),
        ({"close_ts": GOOD.ts + 100 * HOUR_MS}, "row 0: it closes at .*, after the next bar"),
        ({"traded": np.full(GOOD.close.shape, np.nan)}, "traded has values of float64"),
        ({"traded": np.full(GOOD.close.shape, "False")}, "traded has values of"),
        ({"close": GOOD.close * 1e-300}, "row 0 .*close .* is not between 1e-15 and 1e"),
    ],
)
def test_what_would_be_misread_silently_is_refused(changes: dict[str, Any], message: str) -> None:
    whole = {"ts": GOOD.ts, "close_ts": GOOD.close_ts, **COLUMNS, "traded": GOOD.traded}
    with pytest.raises(MarketError, match=message):
        Market(**{**whole, **changes})


def test_a_pair_must_lie_in_the_market() -> None:
    with pytest.raises(MarketError, match="row 5 and the next"):
        GOOD.pair(5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cash", np.nan, "account 1: cash is not finite"),
        ("quantity", np.inf, "account 1: quantity is not finite"),
        ("fee_scale", np.nan, "account 1: fee_scale is not finite"),
        ("price_scale", 0.0, "account 1: price_scale 0.0"),
        ("peak_equity", 0.0, "account 1: .*peak_equity 0.0"),
        ("equity", -1.0, "account 1: .*equity -1.0"),
    ],
)
def test_an_account_that_no_step_could_have_left_is_refused(
    name: str, value: float, message: str
) -> None:
    account = Account.start(2, 1, 100.0)
    account.check()
    getattr(account, name)[1] = value
    with pytest.raises(ValueError, match=message):
        account.check()
