"""The kernel against the oracle: same orders, same bars, every number compared after every step.

First worked examples, computed by hand from docs/simulator.md, so that the oracle itself is
trusted; then random configurations in which every rule fires often (asserted); then hypothesis,
which shrinks a disagreement to a few bars. Must not know how the kernel is written.
"""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.simulator import kernel
from trade_pipeline_tests.simulator import oracle
from trade_pipeline_tests.simulator.oracle import DAY_MS, HOUR_MS, NONE, Order

BATCHES, CONFIGURATIONS = 4, 54  # configurations of each batch; a batch is one test
STEPS = 1_000  # of each configuration
FEW_ENVIRONMENTS = 3  # of every eighth configuration; one of the others
RELATIVE_TOLERANCE = 1e-9
FIRED_AT_LEAST = {  # in every batch
    "order": 30_000,
    "stop": 6_000,
    "take": 4_000,
    "liquidation": 400,
    "slice_end": 900,
    "gap stop": 600,
    "take that never rested": 100,
    "gap take": 500,
    "liquidation at the open": 50,
    "liquidation at its level": 50,
    "liquidation before stop": 3,
    "stop before liquidation": 20,
    "liquidation at the extremes": 100,
    "ambiguous": 2_000,
    "ruin": 100,
    "flip": 7_000,
    "growth": 3_000,
    "leverage scaled": 2_000,
    "partial": 2_000,
    "cut to nothing": 200,
    "flip cut before zero": 200,
    "minimum notional": 4_000,
    "no-trade band": 500,
    "turnover cap": 2_000,
    "position cap": 5_000,
    "expired": 4_000,
    "level at or below zero": 900,
    "impact": 9_000,
    "impact of all the volume": 400,
    "tier up": 100,
    "tier falls back": 40,
    "maker": 1_000,
    "fee minimum": 9_000,
    "fee maximum": 3_000,
    "cash interest": 5_000,
    "short proceeds": 2_000,
    "funding from the market": 6_000,
    "constant funding": 4_000,
    "no funding stamp": 10_000,
    "financing is income": 7_000,
}
SMALL_EQUITY = 1_003.7  # of hypothesis' cases
MINUTE_MS = 60_000

# ------------------------------------------------------------------ worked by hand


def bar(
    open_: float,
    high: float,
    low: float,
    close: float,
    volume: float = 1e9,
    traded: bool = True,
    day: float = 1,
    funding: float = 0.0,
) -> oracle.Bar:
    prices = [open_], [high], [low], [close]
    return oracle.Bar(round(day * DAY_MS), *prices, [volume], [traded], [funding])


def flat_bar(price: float, day: float = 0, **others: float) -> oracle.Bar:
    return bar(price, price, price, price, day=day, **others)


def side_by_side(*bars: oracle.Bar) -> oracle.Bar:
    columns = (
        [column[0] for column in group] for group in zip(*(b[1:] for b in bars), strict=True)
    )
    return oracle.Bar(bars[0].close_ts, *columns)


def one_step(
    order: Order, then: oracle.Bar, equity: float = 1000.0, **rules: Any
) -> oracle.Account:
    """A flat account's first step, decided at a close of 100."""
    account = oracle.Account(1, equity, oracle.Rules(**rules))
    oracle.step(account, flat_bar(100.0), then, [order])
    return account


def test_a_buy_pays_slippage_and_fee_at_the_next_open() -> None:
    account = one_step(
        Order(0.5), bar(110, 125, 105, 120), fee_bps=10, slippage_bps=100, max_leverage=5
    )
    # 0.5 * 1000 / 100 = 5 pieces at 110 * 1.01 = 111.1, fee 0.001 * 555.5
    assert account.fills == [oracle.Fill(0, 5.0, *approx(111.1, 0.5555, 5.5), "order")]
    assert account.cash == pytest.approx(1000 - 555.5 - 0.5555)
    assert account.equity == pytest.approx(443.9445 + 600)
    assert account.entry == approx(111.1)
    assert account.peak_equity == account.equity


def test_a_flip_closes_first_and_takes_the_new_fills_price() -> None:
    account = one_step(Order(0.5, stop_fraction=0.5), flat_bar(100.0, day=1))
    then = bar(120, 130, 110, 125, day=2)
    oracle.step(account, flat_bar(110.0, day=1), then, [Order(-0.5, take_fraction=0.5)])
    # equity at the close of 110: 500 + 550 = 1050; -0.5 * 1050 / 110 = -4.7727 pieces
    assert [fill.quantity for fill in account.fills] == approx(-5.0, -525 / 110)
    assert account.entry == [120.0]
    assert account.take == [60.0]
    assert math.isnan(account.stop[0])
    assert account.equity == pytest.approx(500 + 600 + 525 / 110 * 120 - 525 / 110 * 125)


def test_growth_averages_the_entry_and_a_reduction_keeps_it() -> None:
    account = one_step(Order(0.5, stop_fraction=0.5), flat_bar(100.0, day=1))  # 5 at 100
    oracle.step(account, flat_bar(100.0, 1), flat_bar(120.0, 2), [Order(1.0, stop_fraction=0.1)])
    assert account.quantity == approx(1100 / 120)  # cap 1 * equity 1100 at the open: 1100 / 120
    entry = (5 * 100 + (1100 / 120 - 5) * 120) / (1100 / 120)
    assert account.entry == approx(entry)
    assert account.stop == approx(entry * 0.9)
    oracle.step(account, flat_bar(120.0, 2), flat_bar(130.0, 3), [Order(0.1, stop_fraction=0.3)])
    assert account.quantity == approx(110 / 120)
    assert account.entry == approx(entry)
    assert account.stop == approx(entry * 0.9)
    oracle.step(account, flat_bar(130.0, 3), flat_bar(130.0, 4), [Order(0.0)])
    assert account.quantity == [0.0]
    assert math.isnan(account.entry[0]) and math.isnan(account.stop[0])


def test_the_stop_wins_on_the_entry_bar_and_the_bar_is_ambiguous() -> None:
    order = Order(1.0, stop_fraction=0.05, take_fraction=0.05)
    account = one_step(order, bar(100, 106, 94, 100), slippage_bps=0, fee_bps=0)
    assert [(fill.price, fill.reason) for fill in account.fills] == [(100, "order"), (95, "stop")]
    assert (account.equity, account.ambiguous) == (950.0, 1)


def test_a_take_profit_pays_no_slippage_even_on_a_gap() -> None:
    order = Order(-1.0, stop_fraction=0.5, take_fraction=0.1)
    account = one_step(order, bar(100, 101, 95, 96), slippage_bps=50)
    assert account.entry == [99.5]
    assert account.take == approx(89.55)
    hold = [Order(0.0, hold=True)]
    touched = bar(90, 91, 85, 86, day=2)
    oracle.step(account, flat_bar(96.0, 1), touched, hold)
    assert account.fills == [oracle.Fill(0, 10.0, *approx(89.55), 0.0, 0.0, "take")]
    account = one_step(order, bar(100, 101, 95, 96), slippage_bps=50)
    oracle.step(account, flat_bar(96.0, 1), bar(80, 91, 80, 86, day=2), hold)
    assert account.fills == [oracle.Fill(0, 10.0, 80.0, 0.0, 0.0, "take")]


def test_a_gap_through_the_stop_fills_at_the_open_with_slippage() -> None:
    account = one_step(Order(-1.0, stop_fraction=0.1), flat_bar(100.0, 1), slippage_bps=100)
    assert account.stop == approx(108.9)
    then = bar(120, 121, 90, 100, day=2)
    oracle.step(account, flat_bar(100.0, 1), then, [Order(0.0, hold=True)])
    assert account.fills == [oracle.Fill(0, 10.0, *approx(121.2, 0.0, 12.0), "stop")]


def test_levels_are_rounded_away_from_the_entry() -> None:
    order = Order(1.0, stop_fraction=0.033, take_fraction=0.033)
    account = one_step(order, flat_bar(100.0, 1), tick_size=0.5)
    assert (account.stop, account.take) == ([96.5], [103.5])
    account = one_step(order._replace(target_weight=-1.0), flat_bar(100.0, 1), tick_size=0.5)
    assert (account.stop, account.take) == ([103.5], [96.5])
    assert math.isnan(one_step(Order(1.0, stop_fraction=1.0), flat_bar(100.0, 1)).stop[0])
    assert math.isnan(one_step(Order(-1.0, take_fraction=1.2), flat_bar(100.0, 1)).take[0])


def test_the_nearer_of_stop_and_liquidation_closes_a_single_position() -> None:
    # 40 pieces at 100 on 1000: cash -3000; level 3000 / (40 * 0.9) = 83.33
    rules = {"max_leverage": 5.0, "maintenance_margin": 0.1}
    then = bar(100, 101, 80, 90)
    bare = one_step(Order(4.0), then, **rules)
    assert bare.fills[1:] == [oracle.Fill(0, -40.0, *approx(3000 / 36, 0, 0), "liquidation")]
    near = one_step(Order(4.0, stop_fraction=0.1), then, **rules)
    assert (near.fills[1].price, near.fills[1].reason) == (90.0, "stop")
    far = one_step(Order(4.0, stop_fraction=0.18), then, **rules)
    assert (far.fills[1].price, far.fills[1].reason) == (pytest.approx(3000 / 36), "liquidation")
    # short 40 at 100: cash 5000; level 5000 / (40 * 1.1) = 113.6
    short = one_step(Order(-4.0), bar(100, 115, 99, 110), **rules)
    assert short.fills[1] == oracle.Fill(0, 40.0, *approx(5000 / 44, 0, 0), "liquidation")
    assert one_step(Order(1.0), bar(100, 101, 1, 90), **rules).quantity == [10.0]  # no debt


def test_a_breach_at_the_open_liquidates_there_and_equity_below_zero_is_ruin() -> None:
    account = one_step(Order(4.0), flat_bar(100.0, 1), max_leverage=5, maintenance_margin=0.1)
    hold = [Order(0.0, hold=True)]
    oracle.step(account, flat_bar(100.0, 1), bar(70, 90, 60, 80, day=2), hold)
    assert account.fills == [oracle.Fill(0, -40.0, 70.0, 0.0, 0.0, "liquidation")]
    assert (account.equity, account.cash, account.terminated) == (0.0, 0.0, True)
    assert account.peak_equity == 1000.0
    oracle.step(account, flat_bar(80.0, 2), flat_bar(80.0, 3), [Order(1.0)])
    assert account.fills == []


def test_increases_share_one_factor_under_the_leverage_cap() -> None:
    account = oracle.Account(2, 1000.0, oracle.Rules(max_leverage=1.5, lot_size=0.5))
    now, then = side_by_side(*[flat_bar(100.0)] * 2), side_by_side(*[flat_bar(100.0, 1)] * 2)
    oracle.step(account, now, then, [Order(1.1), Order(-0.9)])
    # wanted 11 * 100 + 9 * 100 = 2000 against 1500: factor 0.75 gives 8.25 and -6.75
    assert account.quantity == [8.0, -6.5]
    oracle.step(account, then, then, [Order(0.0), Order(-1.6)])
    # the reduction makes room first: held 650, wanted 950, allowed 1500: factor 850 / 950
    assert account.quantity == [0.0, -15.0]


def test_the_participation_cap_takes_the_reduction_first() -> None:
    account = one_step(Order(0.5), flat_bar(100.0, 1), participation=0.1, lot_size=1.0)
    order = [Order(-0.5)]
    thin, thick = bar(100, 100, 100, 100, 37.0), bar(100, 100, 100, 100, 78.0)
    oracle.step(account, thin, thin, order)
    assert account.quantity == [2.0]  # 3.7 pieces allowed: 3 after rounding
    oracle.step(account, thin, thick, order)
    assert [fill.quantity for fill in account.fills] == [-2.0, -5.0]  # 7.8 allowed
    oracle.step(account, thin, thin, [Order(0.5)])
    assert account.quantity == [-2.0]
    oracle.step(account, thin, thin, [Order(0.5)])
    assert account.quantity == [1.0]  # 2 back, 1.7 left for the increase


def test_a_small_leg_trades_only_when_it_ends_flat() -> None:
    assert one_step(Order(0.1), flat_bar(100.0, 1), min_notional=101.0).fills == []
    account = one_step(Order(0.15), flat_bar(100.0, 1), min_notional=101.0)
    assert account.quantity == [1.5]
    oracle.step(account, flat_bar(100.0), flat_bar(100.0, 1), [Order(0.1)])
    assert account.quantity == [1.5]
    oracle.step(account, flat_bar(100.0), flat_bar(60.0, 1), [Order(0.0)])
    assert account.quantity == [0.0]


def test_a_change_inside_the_no_trade_band_is_left_alone() -> None:
    account = one_step(Order(0.5), flat_bar(100.0, 1), no_trade_band=0.1)
    for weight, quantity in ((0.59, 5.0), (0.41, 5.0), (0.61, 6.1), (0.0, 0.0), (0.05, 0.5)):
        oracle.step(account, flat_bar(100.0), flat_bar(100.0, 1), [Order(weight)])
        assert account.quantity == approx(quantity)


def test_financing_is_charged_on_what_was_carried() -> None:
    rules = {"borrow_rate": 0.1, "interest_rate": 0.2, "max_leverage": 3.0}
    account = one_step(Order(-1.0), flat_bar(100.0, 1), **rules)
    assert account.financing == 0.0
    hold = [Order(0.0, hold=True)]
    oracle.step(account, flat_bar(110.0, 0), flat_bar(110.0, 73), hold)  # a fifth of a year
    assert account.financing == pytest.approx(0.2 * 0.1 * 10 * 110)
    assert account.cash == pytest.approx(2000 - 22)
    account = one_step(Order(3.0), flat_bar(100.0, 1), **rules)
    oracle.step(account, flat_bar(100.0, 0), flat_bar(100.0, 73), hold)
    assert account.financing == pytest.approx(0.2 * 0.2 * 2000)


def test_nothing_fills_on_an_untraded_bar_but_financing_runs() -> None:
    account = one_step(Order(-1.0, stop_fraction=0.1), flat_bar(100.0, 1), borrow_rate=0.365)
    asleep = bar(200, 200, 200, 200, 0.0, traded=False, day=2)
    oracle.step(account, flat_bar(100.0, 1), asleep, [Order(1.0)])
    assert account.fills == []
    assert account.financing == pytest.approx(1.0)
    assert account.terminated  # 2000 - 1 - 10 * 200, marked all the same


def test_cross_margin_is_tested_at_all_adverse_extremes_together() -> None:
    rules = oracle.Rules(max_leverage=4.0, maintenance_margin=0.1)
    account = oracle.Account(2, 1000.0, rules)
    now = side_by_side(flat_bar(100.0), flat_bar(100.0))
    then = side_by_side(bar(100, 105, 90, 104), bar(100, 110, 95, 96))
    orders = [Order(2.0, take_fraction=0.04), Order(-2.0, take_fraction=0.04)]
    oracle.step(account, now, then, orders)
    # 1000 - 20 * 10 - 20 * 10 = 600 against 0.1 * (1800 + 2200) = 400: both take profit
    assert [fill.reason for fill in account.fills] == ["order", "order", "take", "take"]
    assert (account.equity, account.ambiguous) == (1160.0, 0)
    account = oracle.Account(2, 1000.0, rules)
    worse = side_by_side(bar(100, 105, 80, 104), bar(100, 115, 95, 96))
    oracle.step(account, now, worse, orders)
    # 1000 - 20 * 20 - 20 * 15 = 300 against 0.1 * (1600 + 2300) = 390: everything closes
    assert [fill.price for fill in account.fills] == [100.0, 100.0, 80.0, 115.0]
    assert [fill.reason for fill in account.fills[2:]] == ["liquidation"] * 2
    assert (account.equity, account.ambiguous) == (300.0, 1)
    account = oracle.Account(2, 1000.0, rules)
    oracle.step(account, now, worse, [orders[0]._replace(stop_fraction=0.02), orders[1]])
    # the stop at 98 leaves 1000 - 40 - 300 = 660 against 230; both levels of the first touched
    assert [fill.price for fill in account.fills] == [100.0, 100.0, 98.0, 96.0]
    assert (account.equity, account.ambiguous) == (1040.0, 1)


def test_a_slice_end_closes_at_the_close_with_costs() -> None:
    account = one_step(Order(-0.5), flat_bar(100.0, 1))
    account.rules = oracle.Rules(fee_bps=100, slippage_bps=200)
    oracle.close_out(account, flat_bar(110.0, 1))
    assert account.fills == [oracle.Fill(0, 5.0, *approx(112.2, 5.61, 11.0), "slice_end")]
    assert account.equity == account.cash == pytest.approx(1500 - 561 - 5.61)


def test_impact_grows_with_the_square_root_of_the_share_of_the_volume() -> None:
    rules = {"slippage_bps": 10.0, "impact_bps": 100.0}

    def bought_at(volume: float, scale: float = 1.0) -> float:
        account = oracle.Account(1, 1000.0, oracle.Rules(**rules))
        account.slippage_scale = scale
        oracle.step(account, flat_bar(100.0), bar(100, 101, 99, 100, volume), [Order(1.0)])
        (fill,) = account.fills
        assert fill.slippage == pytest.approx(10 * (fill.price - 100))
        return fill.price

    # 10 of 40 pieces: root of a quarter, 10 + 100 / 2 = 60 bps
    assert bought_at(40.0) == pytest.approx(100.6)
    assert bought_at(40.0, scale=2.0) == pytest.approx(101.2)
    assert bought_at(10.0) == bought_at(5.0) == bought_at(0.0) == pytest.approx(101.1)


def test_a_stop_has_the_impact_of_the_whole_position() -> None:
    rules = {"slippage_bps": 0.0, "impact_bps": 100.0}
    account = one_step(Order(1.0, stop_fraction=0.1), bar(100, 101, 80, 90, 1000.0), **rules)
    # the entry slips 100 sqrt(10 / 1000) = 10 bps, so does the stop at 100.1 * 0.9 = 90.09
    assert [fill.price for fill in account.fills] == approx(100.1, 90.09 * 0.999)


def test_a_fee_a_share_has_a_minimum_and_the_maximum_wins() -> None:
    rules = {"fee_per_share": 0.005}  # 10 pieces at 100: 0.05
    for more, fee in (
        ({}, 0.05),
        ({"fee_bps": 1.0}, 0.15),  # 0.0001 * 1000 on top
        ({"fee_minimum": 1.0}, 1.0),
        ({"fee_minimum": 0.04}, 0.05),
        ({"fee_minimum": 1.0, "fee_maximum_fraction": 0.0005}, 0.5),
        ({"fee_maximum_fraction": 0.00001}, 0.01),
    ):
        assert one_step(Order(1.0), flat_bar(100.0, 1), **rules, **more).fees == pytest.approx(fee)
    account = oracle.Account(1, 1000.0, oracle.Rules(fee_minimum=1.0))
    account.fee_scale = 3.0
    oracle.step(account, flat_bar(100.0), flat_bar(100.0, 1), [Order(1.0)])
    assert account.fees == 3.0


@pytest.mark.parametrize(
    ("day", "fee"),
    [
        (2, 0.5),  # the 1000 of the first day are the second tier's: 5 bps of 1000
        (30, 0.5),  # days 1 to 30
        (31, 1.0),  # days 2 to 31: first tier again
        (30 + 23.9 / 24, 0.5),  # days count from midnight
    ],
)
def test_a_fee_tier_looks_back_thirty_days_and_no_step_sees_itself(day: float, fee: float) -> None:
    tiers = {"tiers": [(0.0, 4.0, 10.0), (1000.0, 2.0, 5.0)]}
    account = one_step(Order(1.0), flat_bar(100.0, 1), **tiers)
    assert account.fees == pytest.approx(1.0)
    cash = account.cash
    oracle.step(account, flat_bar(100.0, 1), flat_bar(100.0, day), [Order(0.0)])
    assert account.fees == pytest.approx(fee)
    assert account.cash == pytest.approx(cash + 1000 - fee)


def test_a_take_profit_pays_as_a_maker() -> None:
    order = Order(1.0, take_fraction=0.1)
    account = one_step(order, bar(100, 120, 100, 115), tiers=[(0.0, 2.0, 10.0)])
    assert [fill.fee for fill in account.fills] == approx(1.0, 0.22)  # 2 bps of 1100


def test_cash_earns_unless_a_short_sale_brought_it_in() -> None:
    hold = [Order(0.0, hold=True)]
    account = one_step(Order(0.0, hold=True), flat_bar(100.0, 1), cash_rate=0.365)
    assert [account.financing, account.equity] == approx(-1.0, 1001.0)  # a day of 0.1 %
    account = oracle.Account(1, 1000.0, oracle.Rules(cash_rate=0.365))
    oracle.step(account, flat_bar(100.0, 1), flat_bar(100.0, 1), [Order(-1.0)])
    for close, income in ((100.0, 1.0), (110.0, 0.9), (90.0, 1.1)):  # 2000 less 10 pieces
        account.cash = 2000.0
        oracle.step(account, flat_bar(close, 1), flat_bar(100.0, 2), hold)
        assert account.financing == pytest.approx(-income)
    account.cash = 2000.0
    oracle.step(account, flat_bar(250.0, 1), flat_bar(100.0, 2), hold)
    assert account.financing == 0.0  # 2500 short; nothing of the cash is its own


@pytest.mark.parametrize(
    ("begin", "end", "stamps"),  # hours
    [(24, 48, 3), (25, 32, 0), (25, 33, 1), (24, 25, 1), (16, 24, 1), (23, 24, 0), (24, 24.5, 1)],
)
def test_constant_funding_is_paid_at_its_stamps(begin: float, end: float, stamps: int) -> None:
    hold = [Order(0.0, hold=True)]
    for weight, side in ((1.0, 1), (-1.0, -1)):
        account = oracle.Account(1, 1000.0, oracle.Rules(funding_rate=0.001))
        oracle.step(account, flat_bar(100.0), flat_bar(100.0), [Order(weight)])
        cash = account.cash
        now, then = flat_bar(120.0, begin / 24), flat_bar(130.0, end / 24)
        oracle.step(account, now, then, hold)
        # 10 pieces at the close of 120, a thousandth each time
        assert account.financing == pytest.approx(side * 1.2 * stamps)
        assert account.cash == pytest.approx(cash - side * 1.2 * stamps)


def test_funding_of_the_market_is_added_on_what_was_carried() -> None:
    account = one_step(Order(1.0), flat_bar(100.0, 1, funding=0.5), funding_rate=0.001)
    assert account.financing == 0.0  # nothing was carried
    then = flat_bar(130.0, 1.5, funding=-0.004)
    oracle.step(account, flat_bar(120.0, 1, funding=0.5), then, [Order(0.0)])
    assert account.financing == pytest.approx(1200 * (-0.004 + 2 * 0.001))  # 24 and 32 o'clock


def test_weights_are_cut_to_the_position_cap() -> None:
    rules = {"lowest_weight": 0.0, "highest_weight": 0.5}
    assert one_step(Order(1.0), flat_bar(100.0, 1), **rules).quantity == [5.0]
    assert one_step(Order(0.4), flat_bar(100.0, 1), **rules).quantity == [4.0]
    assert one_step(Order(-1.0), flat_bar(100.0, 1), **rules).fills == []
    rules["lowest_weight"] = -0.3
    assert one_step(Order(-1.0), flat_bar(100.0, 1), **rules).quantity == [-3.0]


def test_the_turnover_cap_moves_every_target_by_one_factor() -> None:
    rules = oracle.Rules(max_turnover=0.5, lot_size=[0.0, 1.0], max_leverage=2.0)
    account = oracle.Account(2, 1000.0, rules)
    now, then = side_by_side(*[flat_bar(100.0)] * 2), side_by_side(*[flat_bar(100.0, 1)] * 2)
    oracle.step(account, now, then, [Order(0.5), Order(-1.0)])
    # 500 + 1000 wanted, 500 allowed: a third of 5, and of -10 in whole lots
    assert account.quantity == approx(5 / 3, -3.0)
    oracle.step(account, now, then, [Order(0.0), Order(0.2)])
    # 500 / 3 + 500 wanted: 0.75 of it; -3 + trunc(0.75 * 5) is 0: no flip is left
    assert account.quantity == approx(5 / 3 * 0.25, 0.0)
    assert one_step(Order(0.5), flat_bar(100.0, 1), max_turnover=0.5).quantity == [
        5.0
    ]  # as allowed


def test_each_instrument_has_its_own_lot_tick_and_minimum() -> None:
    rules = oracle.Rules(lot_size=[0.0, 2.0], tick_size=[1.0, 0.0], min_notional=[400.0, 0.0])
    account = oracle.Account(2, 1000.0, rules)
    now, then = side_by_side(*[flat_bar(100.0)] * 2), side_by_side(*[flat_bar(100.0, 1)] * 2)
    oracle.step(account, now, then, [Order(0.45, stop_fraction=0.125), Order(0.35, False, 0.125)])
    assert account.quantity == [4.5, 2.0]
    assert account.stop == [87.0, 87.5]
    oracle.step(account, then, then, [Order(0.1), Order(0.0)])
    assert account.quantity == [4.5, 0.0]


def test_a_price_scale_multiplies_prices_and_divides_volumes() -> None:
    account = oracle.Account(1, 1000.0, oracle.Rules(participation=0.5))
    account.price_scale = 2.0
    oracle.step(account, flat_bar(100.0), bar(110, 120, 100, 105, 12.0), [Order(0.8)])
    # 0.8 * 1000 / 200 = 4 pieces, 0.5 * 12 / 2 = 3 filled, at 220; marked at 210
    assert account.fills == [oracle.Fill(0, 3.0, 220.0, 0.0, 0.0, "order")]
    assert account.equity == 1000 - 3 * 10


def test_a_slice_end_slips_by_its_own_rows_volume_and_is_volume_for_the_tiers() -> None:
    tiers = [(0.0, 0.0, 100.0), (1000.0, 0.0, 10.0), (1990.0, 0.0, 1.0)]
    account = one_step(Order(1.0), flat_bar(100.0, 1), tiers=tiers, impact_bps=100.0)
    # 1e9 of volume: the entry's slippage is 0.01 sqrt(1e-8); at the end 10 of 40 pieces: 50 bps
    oracle.close_out(account, bar(90, 110, 80, 100, volume=40.0, traded=False))
    (fill,) = account.fills
    assert fill == oracle.Fill(0, -10.0, *approx(99.5, 0.995, 5.0), "slice_end")
    assert account.financing == 0.0
    oracle.step(account, flat_bar(100.0, 1), flat_bar(100.0, 2), [Order(0.5)])
    assert account.fees == pytest.approx(1e-4 * account.traded_notional)


def approx(*numbers: float) -> list[float]:
    """Unpackable, unlike `pytest.approx` of a list."""
    return [pytest.approx(number) for number in numbers]


# ------------------------------------------------------------------ in lockstep

NAMES = {  # the oracle's and the kernel's
    "cash": "cash",
    "equity": "equity",
    "peak_equity": "peak_equity",
    "fees": "fees",
    "slippage": "slippage",
    "financing": "financing",
    "traded_notional": "traded_notional",
    "ambiguous": "ambiguous",
    "terminated": "terminated",
    "quantity": "quantity",
    "entry": "entry_price",
    "stop": "stop_price",
    "take": "take_price",
}
ONE_AN_ACCOUNT = 9  # of the names; the others have one number an instrument


Scales = list[tuple[float, float, float]]  # fee, slippage and price of each environment


class Lockstep:
    """The same accounts in the kernel and in the oracle."""

    def __init__(
        self,
        market: kernel.Market,
        numbers: dict[str, Any],
        environments: int,
        equity: float,
        scales: Scales | None = None,
        simulator: Any = kernel,  # or a copy of it, which test_mutations made worse
    ) -> None:
        self.market, self.numbers, self.equity, self.simulator = market, numbers, equity, simulator
        self.shape = environments, market.close.shape[1]
        self.rules = simulator.Rules.plain(self.shape[1], **numbers)
        self.scales = scales or [(1.0, 1.0, 1.0)] * environments
        columns = {
            name: getattr(market, name)
            for name in oracle.Bar._fields
            if name != "funding" or market.funding is not None
        }
        columns.setdefault("funding", np.zeros(market.close.shape))
        lists = (columns[name].tolist() for name in oracle.Bar._fields)
        self.bars = [oracle.Bar(*row) for row in zip(*lists, strict=True)]
        self.compared = self.fills_compared = self.unequal_bits = 0
        self.seen: Counter[str] = Counter()
        self.oracles: list[oracle.Account] = []
        self.restart()

    def restart(self) -> None:
        """Fresh accounts on both sides."""
        self.seen = self.fired()
        self.account = self.simulator.Account.start(*self.shape, self.equity)
        self.fills = self.simulator.Fills.empty(*self.shape)
        rules = oracle.Rules(**self.numbers)
        self.oracles = [oracle.Account(self.shape[1], self.equity, rules) for _ in self.scales]
        for e, (account, scales) in enumerate(zip(self.oracles, self.scales, strict=True)):
            account.fee_scale, account.slippage_scale, account.price_scale = scales
            self.account.fee_scale[e] = account.fee_scale
            self.account.slippage_scale[e] = account.slippage_scale
            self.account.price_scale[e] = account.price_scale
        self.views = [getattr(self.account, name) for name in NAMES.values()]

    def fired(self) -> Counter[str]:
        """How often each rule fired in all accounts so far."""
        seen = self.seen.copy()
        for account in self.oracles:
            seen.update(account.seen)
            seen["ambiguous"] += account.ambiguous
        return seen

    def step(self, row: list[int], orders: kernel.Orders) -> None:
        rows = np.array(row)
        self.simulator.step(self.account, self.market, rows, orders, self.rules, self.fills)
        lists = [array.tolist() for array in orders]
        for e, account in enumerate(self.oracles):
            wishes = [Order(*wish) for wish in zip(*(values[e] for values in lists), strict=True)]
            oracle.step(account, self.bars[row[e]], self.bars[row[e] + 1], wishes)
        self.compare(f"step from row {row}")

    def close_out(self, row: list[int]) -> None:
        rows = np.array(row)
        self.simulator.close_out(self.account, self.market, rows, self.rules, self.fills)
        for e, account in enumerate(self.oracles):
            oracle.close_out(account, self.bars[row[e]])
        self.compare(f"close_out on row {row}")

    def compare(self, when: str) -> None:
        for e, account in enumerate(self.oracles):
            where = f"{when}, environment {e}"
            actual = [view[e].tolist() for view in self.views]
            expected = [getattr(account, name) for name in NAMES]
            for k, name in enumerate(NAMES):
                pair = actual[k], expected[k]
                self.close(*(pair if k >= ONE_AN_ACCOUNT else ([v] for v in pair)), where, name)
            fills, wanted = self.fills.of(e), account.fills
            names = [(fill.instrument, fill.reason) for fill in wanted]
            assert [(fill.instrument, fill.reason) for fill in fills] == names, (
                f"{where}: the kernel's fills {fills}, the oracle's {wanted}; {self.numbers}"
            )
            self.fills_compared += len(fills)
            for mine, theirs in zip(fills, wanted, strict=True):
                self.close(mine[1:5], theirs[1:5], where, "fill")

    def close(self, actual: Any, expected: Any, where: str, name: str) -> None:
        """Every number alike to the last bit is counted; beyond the tolerance it is an error."""
        self.compared += len(expected)
        for a, b in zip(actual, expected, strict=True):
            if a == b or (a != a and b != b):
                continue
            self.unequal_bits += 1
            # what cancels to nearly nothing is measured against the account, not against itself
            nothing = RELATIVE_TOLERANCE * self.equity
            assert math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE, abs_tol=nothing), (
                f"{where}: {name} is {actual!r}, the oracle says {expected!r}; {self.numbers}"
            )


def random_market(rng: np.random.Generator, rows: int, instruments: int) -> kernel.Market:
    """Volatile prices with a gap at every open; some bars untraded, none of them the first."""
    volatility = rng.choice([0.003, 0.03, 0.1, 0.25], size=instruments)
    gap = volatility * rng.choice([0.2, 1.0, 2.0], size=instruments)
    traded = rng.random((rows, instruments)) >= rng.choice([0.0, 0.1, 0.3])
    traded[0] = True
    price = np.empty((4, rows, instruments))
    home = rng.choice([1.3, 97.0, 21_000.0], size=instruments) * np.exp(
        rng.normal(size=instruments)
    )
    close = home
    for t in range(rows):
        pull = (home / close) ** 0.03  # else a thousand bars end at nothing or in the sky
        open_ = close * pull * np.exp(gap * rng.normal(size=instruments))
        end = open_ * np.exp(volatility * rng.normal(size=instruments))
        up, down = np.exp(volatility * rng.exponential(0.6, size=(2, instruments)))
        high, low = np.maximum(open_, end) * up, np.minimum(open_, end) / down
        price[:, t] = np.where(traded[t], (open_, high, low, end), close)
        close = price[3, t]
    volume = np.where(traded, np.exp(rng.normal(0.0, 1.5, size=traded.shape)) * 1e5 / price[3], 0.0)
    volume[rng.random(volume.shape) < 0.02] = 0.0  # traded bars of no reported volume among them
    length = int(rng.choice([15 * MINUTE_MS, HOUR_MS, DAY_MS]))
    ts = np.cumsum(rng.choice([1, 1, 1, 3, 1, 1, 1, 40], size=rows, p=WAITS)) * length
    funding = np.where(rng.random(price[0].shape) < 0.3, rng.normal(0, 2e-3, price[0].shape), 0.0)
    stamps = None if rng.random() < 0.5 else funding
    return kernel.Market(ts, ts + length, *price, volume, traded, stamps)


WAITS = [0.15, 0.15, 0.15, 0.24, 0.1, 0.1, 0.1, 0.01]


def rule_choices(equity: float) -> dict[str, list[Any]]:
    """What configurations draw from; the first of each list is the plainest."""
    return {
        "fee_bps": [0.0, 7.3, 26.0],
        "tiers": [
            (),
            [(0.0, 1.3, 11.7), (3.1 * equity, 0.0, 6.1), (41.0 * equity, 0.7, 2.9)],
            [(0.0, 9.0, 9.0), (0.9 * equity, 5.0, 3.3)],
        ],
        "fee_per_share": [0.0, 0.0035, 1e-7 * equity],
        "fee_minimum": [0.0, 3e-5 * equity, 4e-4 * equity],
        "fee_maximum_fraction": [math.inf, 0.005, 0.0007],
        "slippage_bps": [0.0, 4.7, 60.0],
        "impact_bps": [0.0, 13.1, 190.0],
        "borrow_rate": [0.0, 0.07, 1.9],
        "interest_rate": [0.0, 0.05, 1.3],
        "cash_rate": [0.0, 0.04, 0.7],
        "funding_rate": [0.0, 1.3e-4, -2.1e-3],
        "funding_hours": [8, 1, 24],
        "lot_size": [0.0, 0.003, 0.1, 1.0],
        "tick_size": [0.0, 0.01, 0.5],
        "min_notional": [0.0, 0.01 * equity, 0.2 * equity],
        "participation": [0.0, 0.0, 0.01, 0.3],
        "max_leverage": [1.0, 0.7, 2.0, 3.0, 5.0, 8.0],
        "maintenance_margin": [0.0, 0.05, 0.1, 0.2],
        "no_trade_band": [0.0, 0.02, 0.2],
        "max_turnover": [0.0, 0.0, 0.07, 0.4, 1.7],
        "lowest_weight": [-math.inf, -math.inf, 0.0, -0.35],
        "highest_weight": [math.inf, math.inf, 0.3, 1.0],
    }


OF_EACH_INSTRUMENT = ("lot_size", "tick_size", "min_notional")


def random_numbers(rng: np.random.Generator, equity: float, instruments: int) -> dict[str, Any]:
    """Most options are left alone as often as not; without leverage little happens."""
    numbers: dict[str, Any] = {}
    for name, values in rule_choices(equity).items():
        if name in OF_EACH_INSTRUMENT and rng.random() < 0.4:
            numbers[name] = [values[k] for k in rng.integers(len(values), size=instruments)]
        elif rng.random() < (1.0 if name in ("max_leverage", "maintenance_margin") else 0.45):
            numbers[name] = values[rng.integers(len(values))]
    return numbers


def random_orders(
    rng: np.random.Generator, environments: int, instruments: int, weight: float
) -> kernel.Orders:
    """Longs, shorts, holds and exits; nearly half of the fractions are none."""
    shape = (environments, instruments)
    weights = rng.uniform(-weight, weight, size=shape) / math.sqrt(instruments)
    fractions = np.exp(rng.normal(-3.5 if rng.random() < 0.6 else -1.2, 1.0, size=(2, *shape)))
    fractions[rng.random(fractions.shape) < 0.4] = np.nan
    return kernel.Orders(
        target_weight=np.where(rng.random(shape) < 0.1, 0.0, weights),
        hold=rng.random(shape) < (0.2 if rng.random() < 0.5 else 0.8),
        stop_fraction=fractions[0].copy(),
        take_fraction=fractions[1].copy(),
    )


def random_scales(rng: np.random.Generator, environments: int) -> Scales:
    """All 1 as often as not."""
    choices = [1.0] if rng.random() < 0.5 else [1.0, 0.37, 2.9]
    return [tuple(float(rng.choice(choices)) for _ in range(3)) for _ in range(environments)]


def run(
    seed: int, instruments: int, environments: int, steps: int, simulator: Any = kernel
) -> Lockstep:
    """Steps of one random configuration; who is ruined or nearly so begins anew."""
    rng = np.random.default_rng(seed)
    equity = 10_000.0 * float(np.exp(rng.normal()))
    market = random_market(rng, steps + 101, instruments)
    numbers = random_numbers(rng, equity, instruments)
    scales = random_scales(rng, environments)
    both = Lockstep(market, numbers, environments, equity, scales, simulator)
    weight = both.numbers.get("max_leverage", 1.0) * float(rng.choice([0.5, 1.3, 2.0]))
    row = rng.integers(0, 100, size=environments).tolist()
    dead_for = 0
    for _ in range(steps):
        both.step(row, random_orders(rng, environments, instruments, weight))
        row = [each + 1 for each in row]
        if rng.random() < 0.02:
            both.close_out(row)
        poor = min(account.equity for account in both.oracles) < 0.1 * equity
        dead_for += poor
        if dead_for > 5 or max(account.equity for account in both.oracles) > 30 * equity:
            dead_for = 0
            both.scales = random_scales(rng, environments)
            both.restart()
    return both


@pytest.mark.parametrize("batch", range(BATCHES))
def test_the_kernel_agrees_with_the_oracle_and_every_rule_fired(batch: int) -> None:
    seen: Counter[str] = Counter()
    compared = unequal = 0
    for seed in range(batch * CONFIGURATIONS, (batch + 1) * CONFIGURATIONS):
        environments = FEW_ENVIRONMENTS if seed % 8 > 5 else 1
        both = run(seed, 5 if seed % 2 else 1, environments, STEPS)
        compared, unequal = compared + both.compared, unequal + both.unequal_bits
        seen.update(both.fired())
    for rule, least in FIRED_AT_LEAST.items():
        assert seen[rule] >= least, f"{rule} fired {seen[rule]} times; this test needs {least}"
    assert compared > 2_000_000
    # A new order of summation in the kernel is no mistake: write it into the oracle as well. While
    # bits agree, a comparison at a threshold cannot fall differently, so no seed is flaky.
    assert unequal == 0, f"{unequal} of {compared} numbers agree, but not to the last bit"


Case = tuple[kernel.Market, dict[str, Any], list[kernel.Orders], Scales]


def orders_of(wishes: list[list[tuple[Any, ...]]]) -> list[kernel.Orders]:
    """One account's; a list of wishes an instrument for each step."""
    return [
        kernel.Orders(*(np.array([column]) for column in zip(*step, strict=True)))
        for step in wishes
    ]


@st.composite
def small_cases(draw: st.DrawFn) -> Case:
    """Up to six steps of one or two instruments; everything shrinks towards nothing happening."""
    instruments, rows = draw(st.integers(1, 2)), draw(st.integers(2, 7))
    price, traded = np.empty((4, rows, instruments)), np.ones((rows, instruments), dtype=bool)
    close = np.array([97.13, 1.931][:instruments])
    percent = st.integers(0, 40)
    for t in range(rows):
        for n in range(instruments):
            traded[t, n] = t == 0 or draw(st.integers(0, 5)) != 5
            if traded[t, n]:
                gap, body = draw(st.integers(-40, 60)), draw(st.integers(-40, 60))
                open_ = close[n] * (1 + gap / 101)
                end = open_ * (1 + body / 103)
                high = max(open_, end) * (1 + draw(percent) / 107)
                low = min(open_, end) * (1 - draw(percent) / 109)
                price[:, t, n] = open_, high, low, end
            else:
                price[:, t, n] = close[n]
            close[n] = price[3, t, n]
    length = draw(st.sampled_from([DAY_MS, 3 * HOUR_MS, 7 * DAY_MS]))
    ts = np.arange(rows) * length
    volume = np.where(traded, draw(st.sampled_from([1e6, 37.3, 3.1, 0.0])), 0.0)
    rate = st.sampled_from([0.0, 0.0, 0.013, -0.009])
    funding = np.array([[draw(rate) for _ in range(instruments)] for _ in range(rows)])
    numbers = {
        name: draw(st.sampled_from(values)) for name, values in rule_choices(SMALL_EQUITY).items()
    }
    for name in OF_EACH_INSTRUMENT:
        if draw(st.booleans()):
            numbers[name] = [draw(st.sampled_from(rule_choices(SMALL_EQUITY)[name]))] * instruments
            numbers[name][-1] = numbers[name][0] / 2
    wish = st.tuples(
        st.integers(-13, 13).map(lambda tenths: tenths * 0.397),
        st.booleans(),
        st.sampled_from([NONE, 0.013, 0.041, 0.17, 1.1]),
        st.sampled_from([NONE, 0.013, 0.041, 0.17, 1.1]),
    )
    wishes = [[draw(wish) for _ in range(instruments)] for _ in range(rows - 1)]
    scales = [tuple(draw(st.sampled_from([1.0, 0.37, 2.9])) for _ in range(3))]
    market = kernel.Market(ts, ts + length, *price, volume, traded, funding)
    return market, numbers, orders_of(wishes), scales


@settings(max_examples=400, deadline=None, derandomize=True)
@given(case=small_cases())
def test_the_kernel_agrees_with_the_oracle_on_small_cases(case: Case) -> None:
    lockstep(case, equity=SMALL_EQUITY)


def lockstep(case: Case, equity: float) -> None:
    market, numbers, orders, scales = case
    both = Lockstep(market, numbers, 1, equity, scales)
    for row, order in enumerate(orders):
        both.step([row], order)
    both.close_out([len(orders)])
    assert both.unequal_bits == 0


@st.composite
def cases_full_of_ties(draw: st.DrawFn) -> Case:
    """Prices, fractions and weights in powers of two, where arithmetic is exact and levels meet."""
    instruments, rows = draw(st.integers(1, 2)), draw(st.integers(2, 6))
    level = st.sampled_from([64.0, 48.0, 56.0, 72.0, 80.0, 96.0, 32.0])
    price, traded = np.empty((4, rows, instruments)), np.ones((rows, instruments), dtype=bool)
    for t in range(rows):
        for n in range(instruments):
            traded[t, n] = t == 0 or draw(st.integers(0, 5)) != 5
            four = sorted(draw(level) for _ in range(4)) if traded[t, n] else [64.0] * 4
            low, one, other, high = four
            open_, close = (other, one) if draw(st.booleans()) else (one, other)
            price[:, t, n] = open_, high, low, close
    volume = np.where(traded, draw(st.sampled_from([1024.0, 8.0, 3.0])), 0.0)
    exact = {
        "tiers": [(), [(0.0, 0.0, 64.0), (512.0, 128.0, 256.0), (1024.0, 0.0, 1024.0)]],
        "fee_minimum": [0.0, 4.0, 8.0],
        "fee_per_share": [0.0, 0.5],
        "fee_maximum_fraction": [math.inf, 1 / 128, 1 / 64],
        "impact_bps": [0.0, 0.0, 2_500.0],
        "cash_rate": [0.0, 0.125],
        "funding_rate": [0.0, 0.125],
        "lot_size": [0.0, 1.0, 0.5],
        "tick_size": [0.0, 8.0, 16.0],
        "min_notional": [0.0, 128.0, 512.0],
        "participation": [0.0, 1.0],
        "max_leverage": [1.0, 2.0, 4.0],
        "maintenance_margin": [0.0, 0.25, 0.125],
        "no_trade_band": [0.0, 0.25, 0.5],
        "max_turnover": [0.0, 0.5, 1.0],
        "lowest_weight": [-math.inf, 0.0, -0.5],
        "highest_weight": [math.inf, 0.5, 1.0],
    }
    numbers = {name: draw(st.sampled_from(exact[name])) for name in exact}
    fraction = st.sampled_from([NONE, 0.0, 0.125, 0.25, 0.5, 1.0])
    wish = st.tuples(st.integers(-8, 8).map(lambda w: w / 2), st.booleans(), fraction, fraction)
    wishes = [[draw(wish) for _ in range(instruments)] for _ in range(rows - 1)]
    # bars that end at a stamp of the funding, before it or after it; tiers that end between them
    length = draw(st.sampled_from([8 * HOUR_MS, 4 * HOUR_MS, 8 * HOUR_MS + 1, 15 * DAY_MS]))
    ts = np.arange(rows) * length
    scales = [(1.0, 1.0, draw(st.sampled_from([1.0, 0.5])))]
    market = kernel.Market(ts, ts + length, *price, volume, traded)
    return market, numbers, orders_of(wishes), scales


@settings(max_examples=500, deadline=None, derandomize=True)
@given(case=cases_full_of_ties())
def test_at_or_beyond_means_the_same_to_both(case: Case) -> None:
    lockstep(case, equity=1024.0)


START = (64.0, 64.0, 64.0, 64.0)  # open, high, low, close; 1024 buys 16


def market_of(bars: list[tuple[float, ...]], instruments: int = 1, hours: int = 24) -> Any:
    price = np.array(bars, dtype=float).T[:, :, None].repeat(instruments, axis=2)
    traded, ts = np.ones(price.shape[1:], dtype=bool), np.arange(len(bars)) * hours * HOUR_MS
    return kernel.Market(ts, ts + hours * HOUR_MS, *price, np.full(traded.shape, 1e6), traded)


@pytest.mark.parametrize(
    ("bars", "weights", "instruments", "rules", "reasons"),
    [
        # 64 pieces on a debt of 3072 are worth nothing at 48, and that is where the margin ends
        ([(64, 64, 48, 64)], [4.0], 1, {"max_leverage": 4.0}, ["order", "liquidation"]),
        ([(64, 64, 48, 64)], [4.0], 2, {"max_leverage": 4.0}, ["order"]),
        ([START, (48, 64, 48, 64)], [4.0, NONE], 2, {"max_leverage": 4.0}, ["order"]),
        # a margin of a quarter is used up, not breached, by buying four times the equity
        ([START], [4.0], 2, {"max_leverage": 4.0, "maintenance_margin": 0.25}, ["order"]),
        # a change as large as the band trades
        ([START, START], [0.5, 0.75], 1, {"no_trade_band": 0.25}, ["order", "order"]),
        ([START, START], [0.5, 0.75], 1, {"no_trade_band": 0.375}, ["order"]),
        # exposure as large as the cap is not scaled, and a leg as large as the minimum trades
        ([START], [1.0], 1, {"lot_size": 16.0}, ["order"]),
        ([START], [0.5], 1, {"min_notional": 512.0}, ["order"]),
        ([START], [0.5], 1, {"min_notional": 513.0}, []),
        ([START, START], [1.0, 0.5], 1, {"min_notional": 512.0}, ["order", "order"]),
        # turnover as large as its cap is not scaled
        ([START], [0.5], 1, {"max_turnover": 0.5, "lot_size": 8.0}, ["order"]),
        ([START], [0.5], 1, {"max_turnover": 0.49, "lot_size": 8.0}, []),
        # a weight at the position cap is not cut
        ([START], [0.5], 1, {"highest_weight": 0.5, "lot_size": 8.0}, ["order"]),
        ([START], [-0.5], 1, {"lowest_weight": -0.5, "lot_size": 8.0}, ["order"]),
    ],
)
def test_ties_at_the_thresholds(
    bars: list[tuple[float, ...]],
    weights: list[float],
    instruments: int,
    rules: dict[str, float],
    reasons: list[str],
) -> None:
    """Weight NONE holds; a second instrument, where there is one, stays flat."""
    both = Lockstep(market_of([START, *bars], instruments), rules, 1, 1024.0)
    happened = []
    for row, weight in enumerate(weights):
        wish = np.array([[weight, 0.0][:instruments]])
        none = np.full_like(wish, NONE)
        both.step([row], kernel.Orders(np.nan_to_num(wish), np.isnan(wish), none, none))
        happened += [fill.reason for fill in both.fills.of(0)]
    assert happened == reasons


@pytest.mark.parametrize(
    ("tier_from", "days", "fee"),
    [
        (512.0, 1, 1.0),  # 8 pieces at 64 traded before are enough for a tier from 512 on
        (513.0, 1, 4.0),
        (512.0, 29, 1.0),  # the thirtieth day
        (512.0, 30, 4.0),  # the thirty-first: forgotten
    ],
)
def test_ties_of_the_fee_tiers(tier_from: float, days: int, fee: float) -> None:
    tiers = [(0.0, 0.0, 78.125), (tier_from, 0.0, 19.53125)]  # 1/128 and 1/512
    both = Lockstep(market_of([START] * 3, hours=24 * days), {"tiers": tiers}, 1, 1024.0)
    for row, weight in enumerate([0.5, 0.0]):
        both.step([row], orders_of([[(weight, False, NONE, NONE)]])[0])
    assert both.oracles[0].fees == fee
    assert both.unequal_bits == 0


@pytest.mark.parametrize(("hours", "times"), [(8, 1), (7, 1), (2, 0), (16, 2), (4, 1), (24, 3)])
def test_ties_of_the_funding_stamps(hours: int, times: int) -> None:
    """Bars from 0 o'clock on: what is carried from the second close to the third."""
    both = Lockstep(market_of([START] * 3, hours=hours), {"funding_rate": 0.125}, 1, 1024.0)
    for row, weight in enumerate([1.0, 0.0]):
        both.step([row], orders_of([[(weight, False, NONE, NONE)]])[0])
    assert both.oracles[0].financing == 128.0 * times
    assert both.unequal_bits == 0


def test_a_stop_exactly_at_the_liquidation_level_is_a_stop() -> None:
    both = Lockstep(market_of([START, (64, 64, 40, 64)]), {"max_leverage": 4.0}, 1, 1024.0)
    both.step([0], orders_of([[(4.0, False, 0.25, NONE)]])[0])
    assert [fill.reason for fill in both.fills.of(0)] == ["order", "stop"]
