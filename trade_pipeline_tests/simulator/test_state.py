"""Bad bars are refused with their row, instrument and reason."""

import dataclasses

import numpy as np
import pytest

from trade_pipeline.settings.experiment import CostSettings, EnvironmentSettings, WeightActions
from trade_pipeline.simulator.kernel import Account, Fills, Market, MarketError, Rules
from trade_pipeline_tests.simulator.markets import flat_bar, market, random_market

GOOD = random_market(6, 2, seed=1)


def spoiled(name: str, index: tuple[int, ...], value: float) -> Market:
    array = getattr(GOOD, name).copy()
    array[index] = value
    return dataclasses.replace(GOOD, **{name: array})


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


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_volume_must_be_zero_or_more(value: float) -> None:
    with pytest.raises(MarketError, match=r"row 1 .*volume"):
        spoiled("volume", (1, 0), value)


def test_times_must_ascend() -> None:
    with pytest.raises(MarketError, match="row 4: ts 1 does not come after row 3"):
        spoiled("ts", (4,), 1)
    with pytest.raises(MarketError, match="row 4: close_ts"):
        spoiled("close_ts", (4,), GOOD.close_ts[3])
    with pytest.raises(MarketError, match=r"row 0: close_ts .* not after ts"):
        spoiled("close_ts", (0,), GOOD.ts[0])


def test_shapes_must_agree() -> None:
    with pytest.raises(MarketError, match=r"volume has shape \(6, 1\); \(6, 2\)"):
        dataclasses.replace(GOOD, volume=GOOD.volume[:, :1])
    with pytest.raises(MarketError, match="close has shape"):
        dataclasses.replace(GOOD, close=GOOD.close[:, 0])


def test_a_market_cannot_be_edited_and_leaves_the_callers_arrays_writable() -> None:
    close = GOOD.close.copy()
    bars = dataclasses.replace(GOOD, close=close)
    with pytest.raises(ValueError, match="read-only"):
        bars.close[0, 0] = 1.0
    assert close.flags.writeable


def test_rules_take_every_cost_and_limit_of_the_settings() -> None:
    settings = EnvironmentSettings(
        actions=WeightActions(kind="weights"),
        costs=CostSettings(fee_bps=1, slippage_bps=2, lot_size=3, participation=0.5),
        max_leverage=2,
        maintenance_margin=0.25,
        no_trade_band=0.125,
    )
    rules = Rules.of(settings)
    assert set(CostSettings.model_fields) <= set(Rules._fields)
    assert (rules.fee_bps, rules.slippage_bps, rules.lot_size) == (1.0, 2.0, 3.0)
    assert rules.participation == 0.5
    assert rules[-3:] == (2.0, 0.25, 0.125)
    assert all(type(value) is float for value in rules)


def test_an_account_copy_is_independent_and_views_write_through() -> None:
    account = Account.start(2, 1, 100.0)
    copy = account.copy()
    account.cash[0] = 5.0
    assert (account.balances["cash"][0], copy.cash[0]) == (5.0, 100.0)


def test_fills_are_empty_at_first() -> None:
    assert Fills.empty(2, 3).of(1) == []
    assert Fills.empty(2, 3).price.shape == (2, 12)


def test_one_instrument_needs_no_second_axis_in_the_builder() -> None:
    assert market([flat_bar(1), flat_bar(2)]).instruments == 1
