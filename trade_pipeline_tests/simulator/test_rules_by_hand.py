"""Costs that depend on size, history and time, and the caps, worked by hand through the kernel.

docs/simulator.md sections 0 to 5; the plain cases are in test_kernel_orders and
test_kernel_brackets. Every account starts with 1000 and may be levered ten times.
"""

from typing import Any

import numpy as np
import pytest

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import Fill, Rules, close_out
from trade_pipeline_tests.simulator.markets import (
    DAY_MS,
    NAN,
    Run,
    flat_bar,
    hold,
    market,
    orders,
)

HOUR_MS = 3_600_000
FLAT = flat_bar(100.0)


def daily(rows: int) -> dict[str, Any]:
    """Row r closes r + 1 days after 1970 began."""
    ts = np.arange(rows) * DAY_MS
    return {"ts": ts, "close_ts": ts + DAY_MS}


def finish(run: Run) -> list[Fill]:
    close_out(run.account, run.market, run.row, run.rules, run.fills)
    return run.fills.of(0)


# ------------------------------------------------------------------ slippage that grows


def test_a_partial_fill_slips_by_the_root_of_what_it_takes() -> None:
    run = Run(market([FLAT] * 2, volume=16.0), participation=0.25, impact_bps=100.0)
    (fill,) = run.step(orders(0.9))
    # 9 wanted, 0.25 x 16 = 4 filled: a quarter of the volume, half of 100 bps
    assert fill.quantity == 4.0
    assert (fill.price, fill.slippage) == (pytest.approx(100.5), pytest.approx(2.0))
    assert run.cash == pytest.approx(1000 - 402)
    assert run.equity == pytest.approx(998.0)


def test_each_leg_of_a_flip_slips_by_its_own_size() -> None:
    run = Run(market([FLAT] * 3, volume=45.0))
    run.step(orders(0.5))
    run.change(impact_bps=90.0)
    closing, opening = run.step(orders(-2.0))
    # 5 of 45 are a ninth: 30 bps; 20 of 45 four ninths: 60 bps
    assert (closing.quantity, closing.price) == (-5.0, pytest.approx(99.7))
    assert (opening.quantity, opening.price) == (-20.0, pytest.approx(99.4))
    assert run.account.entry_price[0, 0] == pytest.approx(99.4)
    assert run.account.slippage[0] == pytest.approx(5 * 0.3 + 20 * 0.6)


@pytest.mark.parametrize("volume", [5.0, 4.0, 0.0])
def test_impact_is_never_more_than_that_of_the_whole_volume(volume: float) -> None:
    run = Run(market([FLAT] * 2, volume=volume), slippage_bps=20.0, impact_bps=80.0)
    (fill,) = run.step(orders(0.5))
    assert fill.price == pytest.approx(101.0)


def test_a_gap_through_the_stop_fills_at_the_open_with_the_impact_of_the_position() -> None:
    bars = market([FLAT, FLAT, (130, 135, 128, 129)], volume=[1e9, 1e9, 20.0])
    run = Run(bars)
    run.step(orders(-0.5, stop=0.25))  # 5 short, stop 125
    run.change(impact_bps=100.0)
    (fill,) = run.step(hold())
    # 5 of 20: 50 bps of the open of 130
    assert fill.reason == "stop"
    assert fill.price == pytest.approx(130.65)
    assert fill.slippage == pytest.approx(5 * 0.65)


def test_a_liquidation_slips_by_its_size_and_the_participation_cap_does_not_bind_it() -> None:
    bars = market([FLAT, FLAT, (100, 100, 80, 85)], volume=[1e9, 1e9, 200.0])
    run = Run(bars, maintenance_margin=0.1)
    run.step(orders(5.0, stop=0.2))  # 50 pieces, cash -4000, level 4000 / 45 before the stop at 80
    run.change(impact_bps=100.0, participation=0.01, min_notional=1e9)
    (fill,) = run.step(hold())
    assert (fill.quantity, fill.reason) == (-50.0, "liquidation")
    assert fill.price == pytest.approx(4000 / 45 * 0.995)  # 50 of 200: 50 bps


def test_a_stop_before_the_liquidation_on_the_entry_bar_leaves_something() -> None:
    run = Run(market([FLAT, (100, 101, 80, 85)]), maintenance_margin=0.1, fee_bps=10)
    entry, stop = run.step(orders(5.0, stop=0.08))
    # 50 at 100 and a fee of 5: cash -4005, level 4005 / 45 = 89 below the stop at 92
    assert (entry.reason, stop.reason, stop.price) == ("order", "stop", pytest.approx(92.0))
    assert run.equity == pytest.approx(1000 - 5 - 50 * 8 - 4.6)


# ------------------------------------------------------------------ fees


def test_fee_tiers_rise_at_once_and_fall_back_after_thirty_days() -> None:
    run = Run(market([FLAT] * 40, **daily(40)), tiers=[(0, 2, 10), (900, 1, 5)])
    paid = []
    for day in range(1, 36):
        run.step(orders(0.95 if day % 2 else 0.94))  # 950 on the first day, then about 10 each
        paid.append(run.account.fees[0] / run.account.traded_notional[0] * 1e4)
    # day 1 is one of the thirty that end with day 30; those that end with day 31 hold 300
    assert paid == pytest.approx([10.0] + [5.0] * 29 + [10.0] * 5)
    (exit_,) = run.step(orders(0.0))
    assert exit_.fee == pytest.approx(1e-3 * -exit_.quantity * 100)
    (entry,) = run.step(orders(0.5))
    assert entry.fee == pytest.approx(5e-4 * entry.quantity * 100)


def test_a_take_profit_pays_the_makers_rate_of_its_tier_and_a_stop_the_takers() -> None:
    rules = {"tiers": [(0, 2, 10), (900, 1, 5)]}
    for weight, maker, taker in ((0.5, 2e-4, 1e-3), (0.9, 1e-4, 5e-4)):
        for bar, price, rate in (
            ((100, 120, 99, 110), 110, maker),
            ((100, 101, 80, 90), 90, taker),
        ):
            run = Run(market([FLAT, FLAT, bar], **daily(3)), **rules)
            run.step(orders(weight, 0.1, 0.1))
            (fill,) = run.step(hold())
            assert fill.price == pytest.approx(price)
            assert fill.fee == pytest.approx(rate * weight * 10 * price)


def test_volume_traded_inside_a_step_moves_its_own_tier_only_afterwards() -> None:
    run = Run(market([FLAT] * 4, **daily(4)), tiers=[(0, 0, 10), (400, 0, 5)])
    run.step(orders(0.3))
    closing, opening = run.step(orders(-2.0))  # 300 before it, whatever the first leg trades
    assert closing.fee == pytest.approx(0.3)
    assert opening.fee == pytest.approx(1e-3 * 2 * 999.7)
    (exit_,) = run.step(orders(0.0))
    assert exit_.fee == pytest.approx(5e-4 * 2 * 999.7)


def test_what_a_slice_end_traded_counts_for_the_tiers() -> None:
    run = Run(market([FLAT] * 3, **daily(3)), tiers=[(0, 0, 10), (900, 0, 5)])
    run.step(orders(0.5))
    (closing,) = finish(run)
    assert closing.fee == pytest.approx(0.5)  # 500 before it
    run.step(orders(0.5))
    assert run.account.fees[0] == pytest.approx(5e-4 * run.account.traded_notional[0])


@pytest.mark.parametrize(
    ("numbers", "fee"),
    [
        ({}, 0.05),  # 10 pieces at 0.005
        ({"fee_bps": 2.0}, 0.25),  # 0.0002 x 1000 more
        ({"fee_minimum": 1.0}, 1.0),
        ({"fee_minimum": 1.0, "fee_maximum_fraction": 0.0005}, 0.5),  # the maximum wins
        ({"fee_maximum_fraction": 0.00002}, 0.02),
    ],
)
def test_a_fee_a_share_lies_between_its_minimum_and_its_maximum(
    numbers: dict[str, float], fee: float
) -> None:
    run = Run(market([FLAT] * 2), fee_per_share=0.005, **numbers)
    (fill,) = run.step(orders(1.0))
    assert fill.fee == pytest.approx(fee)
    assert run.cash == pytest.approx(-fee)


def test_the_minimum_fee_is_paid_by_every_leg_and_bracket() -> None:
    run = Run(market([FLAT, FLAT, (100, 120, 99, 110)]), fee_minimum=1.0)
    run.step(orders(0.5))
    closing, opening, stop = run.step(orders(-0.5, stop=0.1))
    assert (closing.fee, opening.fee, stop.fee) == (1.0, 1.0, 1.0)
    assert (closing.reason, opening.reason, stop.reason) == ("order", "order", "stop")
    assert run.account.fees[0] == 3.0


# ------------------------------------------------------------------ time


def test_funding_is_paid_at_its_stamps_and_at_no_other_time() -> None:
    ts = np.arange(26) * HOUR_MS
    bars = market([FLAT] * 26, ts=ts, close_ts=ts + HOUR_MS)
    for weight, side in ((0.5, 1.0), (-0.5, -1.0)):
        run = Run(bars, funding_rate=0.001)
        run.step(orders(weight))
        paid = [run.account.financing[0]]
        for _ in range(24):
            run.step(hold())
            paid.append(run.account.financing[0])
        # row r closes at r + 1 o'clock; what is carried from 8, 16 and 24 o'clock on pays
        expected = np.zeros(25)
        expected[[7, 15, 23]] = side * 0.5
        np.testing.assert_allclose(paid, expected)
        assert run.equity == pytest.approx(1000 - side * 1.5)


def test_the_markets_own_funding_is_that_of_the_interval_which_ends_with_its_row() -> None:
    run = Run(market([FLAT] * 4, funding=[0.9, 0.9, 0.01, -0.02]))
    run.step(orders(-0.5))
    assert run.account.financing[0] == 0.0  # nothing was carried
    run.step(hold())
    assert run.account.financing[0] == pytest.approx(-5.0)  # a short receives
    run.step(orders(0.5))  # it is carried all the same
    assert run.account.financing[0] == pytest.approx(10.0)
    assert run.equity == pytest.approx(995.0)


def test_funding_is_paid_on_an_untraded_bar_too() -> None:
    bars = market([FLAT] * 3, traded=[1, 1, 0], funding=[0, 0, 0.01])
    run = Run(bars)
    run.step(orders(0.5))
    assert run.step(orders(0.0)) == []
    assert run.account.financing[0] == pytest.approx(5.0)
    assert run.equity == pytest.approx(995.0)


def weekend(**numbers: float) -> Run:
    """Friday's bar carried to Monday's."""
    ts = np.array([0, 1, 4]) * DAY_MS
    return Run(market([FLAT] * 3, ts=ts, close_ts=ts + DAY_MS), **numbers)


def test_a_weekend_is_three_days_of_interest_and_nine_fundings() -> None:
    debt = weekend(interest_rate=0.365, cash_rate=0.365)
    debt.step(orders(3.0))
    debt.change(cash_rate=0.0)
    debt.step(hold())
    owed = 3000 - 1001  # the first day's thousand in cash earned one
    assert debt.account.financing[0] == pytest.approx(3 * 0.001 * owed)
    idle = weekend(cash_rate=0.365)
    idle.step(hold())
    idle.step(hold())
    assert idle.account.financing[0] == pytest.approx(-3 * 1.001)
    perpetual = weekend(funding_rate=0.0001)
    perpetual.step(orders(1.0))
    perpetual.step(hold())
    assert perpetual.account.financing[0] == pytest.approx(9 * 0.1)


def test_cash_from_a_short_sale_earns_nothing() -> None:
    bars = market([FLAT, FLAT, flat_bar(160), flat_bar(160)], **daily(4))
    run = Run(bars)
    run.step(orders(-1.0))  # cash 2000, 10 short
    run.change(cash_rate=0.365)
    run.step(hold())
    assert run.account.financing[0] == pytest.approx(-1.0)  # 2000 - 1000
    run.step(hold())
    assert run.account.financing[0] == pytest.approx(-0.401)  # 2001 - 1600
    assert run.equity == pytest.approx(2001.401 - 1600)
    short = Run(bars, borrow_rate=0.365)
    short.step(orders(-1.0))
    short.change(cash_rate=0.365, borrow_rate=0.73)
    short.step(hold())
    assert short.account.financing[0] == pytest.approx(2.0 - 1.0)


def test_a_short_above_all_cash_earns_nothing_at_all() -> None:
    both = [[FLAT, FLAT]] * 2 + [[FLAT, flat_bar(150)]] * 2
    run = Run(market(both, **daily(4)))
    run.step(orders([1.5, -1.0]))  # cash 500, 1000 short
    run.change(cash_rate=0.365, interest_rate=0.365)
    run.step(hold(2))
    assert run.account.financing[0] == 0.0


# ------------------------------------------------------------------ caps on orders


def test_the_turnover_cap_moves_all_targets_by_one_factor() -> None:
    run = Run(market([[FLAT, FLAT]] * 3), max_turnover=0.5, lot_size=[0.0, 1.0])
    first, second = run.step(orders([0.5, -1.0]))
    # 1500 wanted, 500 allowed: a third of 5, and of -10 in whole lots
    assert (first.quantity, second.quantity) == (pytest.approx(5 / 3), -3.0)
    first, second = run.step(orders([0.0, 0.2]))
    # 500 / 3 + 500 wanted: three quarters; 0.75 x 5 in whole lots ends flat, not long
    assert (first.quantity, second.quantity) == (pytest.approx(-5 / 4), 3.0)
    assert run.quantity(1) == 0.0


def test_the_turnover_cap_counts_what_cannot_trade_and_leaves_what_holds() -> None:
    bars = market([[FLAT, FLAT, FLAT]] * 3, traded=[[1, 1, 1], [1, 1, 1], [1, 0, 1]])
    run = Run(bars)
    run.step(orders([0.0, 0.0, 0.7]))
    run.change(max_turnover=0.4)
    three = orders([0.4, 0.4, 0.0])
    three.hold[0, 2] = True
    (fill,) = run.step(three)
    # 800 wanted, half of it allowed, of which the second expires
    assert (fill.instrument, fill.quantity) == (0, 2.0)
    assert run.quantity(2) == 7.0


def test_an_exit_cut_by_the_turnover_cap_is_no_exit_and_needs_the_minimum_notional() -> None:
    run = Run(market([FLAT] * 5))
    run.step(orders(1.0))
    run.change(max_turnover=0.4, min_notional=450.0)
    assert run.step(orders(0.0)) == []  # 4 pieces are 400
    run.change(max_turnover=0.5)
    (fill,) = run.step(orders(0.0))
    assert fill.quantity == -5.0
    run.change(min_notional=1e9)
    (fill,) = run.step(orders(0.0))  # 500 of 500 allowed: ends flat
    assert (fill.quantity, run.quantity()) == (-5.0, 0.0)


def test_an_exit_cut_by_participation_needs_the_minimum_notional() -> None:
    run = Run(market([FLAT] * 3, volume=[1e9, 1e9, 40.0]))
    run.step(orders(1.0))
    run.change(participation=0.1, min_notional=450.0)
    assert run.step(orders(0.0)) == []
    assert run.quantity() == 10.0


def test_the_band_is_asked_before_the_turnover_cap() -> None:
    run = Run(market([[FLAT, FLAT]] * 3))
    run.step(orders([0.5, 0.5]))
    run.change(no_trade_band=0.1, max_turnover=0.2)
    (fill,) = run.step(orders([0.55, 0.7]))  # 50 is inside the band; 200 of 200 allowed
    assert (fill.instrument, fill.quantity) == (1, pytest.approx(2.0))


def test_the_position_cap_cuts_targets_and_not_what_prices_made() -> None:
    run = Run(market([FLAT, FLAT, flat_bar(300)] + [flat_bar(300)] * 3))
    run.change(lowest_weight=-0.2, highest_weight=0.5)
    run.step(orders(3.0))
    assert run.quantity() == 5.0
    run.step(hold())
    assert run.step(hold()) == []  # 1500 of 2000 stay
    (fill,) = run.step(orders(0.9))  # half of 2000
    assert fill.quantity == pytest.approx(-5 / 3)
    closing, opening = run.step(orders(-0.9))  # a fifth of 2000
    assert opening.quantity == pytest.approx(-4 / 3)
    assert closing.quantity == pytest.approx(-10 / 3)


def test_an_account_without_shorts_sells_what_it_has_and_no_more() -> None:
    run = Run(market([FLAT] * 4), lowest_weight=0.0)
    assert run.step(orders(-1.0)) == []
    run.step(orders(0.5))
    (fill,) = run.step(orders(-1.0))
    assert (fill.quantity, run.quantity()) == (-5.0, 0.0)


def test_each_instrument_has_its_own_lot_tick_and_minimum() -> None:
    run = Run(
        market([[FLAT, FLAT, FLAT]] * 3),
        lot_size=[0.0, 2.0, 0.0],
        tick_size=[1.0, 0.0, 8.0],
        min_notional=[0.0, 0.0, 600.0],
    )
    first, second = run.step(orders([0.35, 0.35, 0.55], stop=0.125))
    assert (first.quantity, second.quantity) == (3.5, 2.0)  # the third is below its minimum
    wanted = orders([0.0, 0.0, 0.65], stop=0.125)
    wanted.hold[0, :2] = True
    (third,) = run.step(wanted)
    assert third.quantity == 6.5
    assert [run.stop(n) for n in range(3)] == [87.0, 87.5, 80.0]


def test_a_shared_leverage_factor_rounds_each_to_its_own_lot_before_the_minimum() -> None:
    run = Run(market([[FLAT, FLAT]] * 2), lot_size=[1.0, 0.0], min_notional=[0.0, 460.0])
    run.change(max_leverage=1.0)
    (fill,) = run.step(orders([1.1, 0.9]))
    # 2000 wanted, half of it: 5.5 in whole lots; 4.5 are 450, below the minimum
    assert (fill.instrument, fill.quantity) == (0, 5.0)


# ------------------------------------------------------------------ scales, marks, ruin


def test_a_price_scale_multiplies_prices_and_divides_volumes() -> None:
    bars = market([FLAT, (110, 130, 90, 105), FLAT], volume=24.0)
    run = Run(bars, participation=0.25, tick_size=1.0)
    run.account.price_scale[:] = 2.0
    (fill,) = run.step(orders(0.8, stop=0.375, take=0.375))
    # 0.8 x 1000 / 200 = 4 wanted, a quarter of 12 filled at 220; levels 137.5 and 302.5
    assert (fill.quantity, fill.price) == (3.0, 220.0)
    assert (run.stop(), run.take()) == (137.0, 303.0)
    assert run.equity == 1000 - 3 * 10
    (end,) = finish(run)
    assert (end.quantity, end.price) == (-3.0, 210.0)


def test_fee_and_slippage_scales_multiply_what_is_paid() -> None:
    rules = {"slippage_bps": 10.0, "impact_bps": 90.0, "fee_minimum": 1.0, "fee_bps": 10.0}
    run = Run(market([FLAT] * 2, volume=0.0), **rules)
    run.account.fee_scale[:] = 3.0
    run.account.slippage_scale[:] = 0.5
    (fill,) = run.step(orders(0.5))  # 5 pieces, 100 bps, a fee below its minimum
    assert (fill.price, fill.fee) == (pytest.approx(100.5), 3.0)


def test_a_missing_bar_fills_nothing_and_marks_the_position() -> None:
    bars = market(
        [[FLAT, FLAT], [FLAT, FLAT], [FLAT, (100, 130, 90, 120)], [flat_bar(80), flat_bar(120)]],
        traded=[[1, 1], [1, 1], [0, 1], [1, 1]],
    )
    run = Run(bars)
    run.step(orders([0.5, 0.0], stop=0.1))
    (fill,) = run.step(orders([0.0, 0.5]))  # the first one's exit expires
    assert (fill.instrument, fill.quantity) == (1, 5.0)
    assert run.equity == 1000 + 5 * 20
    (fill,) = run.step(hold(2))  # its stop wakes and fills at the gap
    assert (fill.instrument, fill.price, fill.reason) == (0, 80.0, "stop")


def test_two_instruments_ambiguous_in_one_bar_count_twice() -> None:
    run = Run(market([[FLAT, FLAT], [(100, 120, 80, 100)] * 2]))
    fills = run.step(orders([0.5, -0.5], 0.1, 0.1))
    assert [fill.reason for fill in fills[2:]] == ["stop", "stop"]
    assert run.account.ambiguous[0] == 2


def test_a_ruined_account_has_no_nan_but_the_levels_it_does_not_have() -> None:
    rules = {"maintenance_margin": 0.1, "interest_rate": 0.365, "fee_bps": 10.0, "impact_bps": 50.0}
    rules = {**rules, "cash_rate": 0.1, "funding_rate": 0.001}
    run = Run(market([FLAT, FLAT, (60, 70, 50, 65), FLAT, FLAT], volume=0.0, **daily(5)))
    run.step(orders(5.0))  # 50 pieces, cash -4000
    run.change(**rules)
    (fill,) = run.step(hold())
    # interest 4, three fundings of 5; sold at the open of 60 less 50 bps: 59.7, fee 2.985
    assert (fill.reason, fill.price) == ("liquidation", pytest.approx(59.7))
    account = run.account
    assert account.terminated[0]
    assert (run.equity, run.cash, run.quantity()) == (0.0, 0.0, 0.0)
    assert account.peak_equity[0] == 1000.0
    assert account.fees[0] == pytest.approx(2.985)
    assert account.slippage[0] == pytest.approx(15.0)
    assert account.financing[0] == pytest.approx(19.0)
    assert account.traded_notional[0] == pytest.approx(2985.0)
    for _ in range(2):
        assert run.step(orders(NAN, hold=True)) == []
        for name in ("cash", "equity", "fees", "slippage", "financing", "traded_notional"):
            assert getattr(account, name)[0] == 0.0
        assert account.peak_equity[0] == 1000.0
        assert np.isnan(account.entry_price).all()
    assert finish(run) == []


def test_a_slice_end_slips_by_the_volume_of_its_own_row_even_where_nothing_traded() -> None:
    bars = market([FLAT, flat_bar(100)], volume=[7.0, 0.0], traded=[1, 0])
    run = Run(bars, impact_bps=100.0, fee_minimum=2.0)
    run.account.positions["quantity"] = 5.0
    run.account.positions["entry_price"] = 100.0
    run.row[:] = 1
    (fill,) = finish(run)
    assert (fill.price, fill.fee, fill.reason) == (99.0, 2.0, "slice_end")
    assert run.equity == 1000 + 495 - 2
    assert run.account.traded_notional[0] == 495.0


# ------------------------------------------------------------------ from the settings


@pytest.mark.parametrize(
    ("costs", "others", "numbers"),
    [
        ({}, {}, {"fee_bps": 10.0, "slippage_bps": 2.0}),
        (
            {
                "fee": {
                    "kind": "maker_taker",
                    "tiers": [
                        {"volume": 0, "maker_bps": 2, "taker_bps": 10},
                        {"volume": 900, "maker_bps": 1, "taker_bps": 5},
                    ],
                },
                "slippage": {"kind": "impact", "bps": 3, "impact_bps": 40},
                "cash_rate": 0.01,
                "borrow_rate": 0.02,
                "interest_rate": 0.03,
                "funding_rate": -0.001,
                "funding_hours": 4,
            },
            {"max_turnover": 0.3, "max_position": 0.4, "no_trade_band": 0.02, "max_leverage": 2},
            {
                "tiers": [(0.0, 2.0, 10.0), (900.0, 1.0, 5.0)],
                "slippage_bps": 3.0,
                "impact_bps": 40.0,
                "cash_rate": 0.01,
                "borrow_rate": 0.02,
                "interest_rate": 0.03,
                "funding_rate": -0.001,
                "funding_hours": 4,
                "max_turnover": 0.3,
                "highest_weight": 0.4,
                "no_trade_band": 0.02,
                "max_leverage": 2.0,
            },
        ),
        (
            {
                "fee": {
                    "kind": "per_share",
                    "per_share": 0.01,
                    "minimum": 1,
                    "maximum_fraction": 0.1,
                },
                "lot_size": [0.1, 1],
                "tick_size": 0.01,
                "min_notional": [5, 0],
                "participation": 0.1,
            },
            {"actions": {"kind": "weights", "short": True}},
            {
                "fee_per_share": 0.01,
                "fee_minimum": 1.0,
                "fee_maximum_fraction": 0.1,
                "slippage_bps": 2.0,
                "lot_size": [0.1, 1.0],
                "tick_size": 0.01,
                "min_notional": [5.0, 0.0],
                "participation": 0.1,
                "lowest_weight": -1.0,
            },
        ),
    ],
)
def test_the_settings_give_the_same_rules_as_their_plain_numbers(
    costs: dict[str, Any], others: dict[str, Any], numbers: dict[str, Any]
) -> None:
    settings = EnvironmentSettings.model_validate(
        {"actions": {"kind": "weights"}, **others, "costs": costs}
    )
    caps = {"maintenance_margin": 0.05, "lowest_weight": 0.0, "highest_weight": 1.0}
    expected = Rules.plain(2, **{**caps, **numbers})
    for name, mine, theirs in zip(expected._fields, Rules.of(settings, 2), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


def test_a_take_that_its_own_bar_has_crossed_is_no_resting_order() -> None:
    # Long 50 at 100 is worth 5,500 at 110; growing by a little must not sell all of it at 110 free
    run = Run(
        market([flat_bar(100), flat_bar(100), flat_bar(110), flat_bar(110)]),
        equity=10_000.0,
        tiers=[(0.0, 0.0, 10.0)],
        slippage_bps=50,
        max_leverage=2.0,
    )
    run.step(orders(0.5))
    run.step(hold())
    before = run.equity
    grown = run.step(orders(0.55, take=0.005))
    assert [fill.reason for fill in grown] == ["order", "take"]
    # 110 less 50 bps is 109.45, and 10 bps of that for all that is sold
    assert grown[1].price == pytest.approx(109.45)
    assert grown[1].fee == pytest.approx(1e-3 * -grown[1].quantity * 109.45)
    assert run.equity < before
