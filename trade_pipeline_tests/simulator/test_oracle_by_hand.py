"""The oracle itself, worked by hand from docs/simulator.md, so that it can be trusted.

Knows nothing of the kernel. What the two agree on is in test_oracle.
"""

import math
from typing import Any

import pytest

from trade_pipeline_tests.simulator import oracle
from trade_pipeline_tests.simulator.oracle import DAY_MS, Order


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
