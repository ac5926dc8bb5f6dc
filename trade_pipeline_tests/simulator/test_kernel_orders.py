"""Orders, costs and marks, worked by hand: docs/simulator.md sections 0, 1, 2 and 5."""

import numpy as np
import pytest

from trade_pipeline.simulator.kernel import Account, Fills, Rules, close_out, step
from trade_pipeline_tests.simulator.markets import (
    DAY_MS,
    MINUTE_MS,
    Run,
    flat_bar,
    hold,
    market,
    orders,
)


def test_quantity_is_fixed_at_the_close_and_trades_at_the_next_open_with_costs() -> None:
    run = Run(market([flat_bar(100), (110, 121, 110, 120)]), fee_bps=10, slippage_bps=100)
    (fill,) = run.step(orders(0.5))
    # 0.5 x 1000 / 100 = 5 at 110 x 1.01 = 111.1; fee 0.1 % of 555.5
    assert fill.reason == "order"
    assert fill.quantity == 5.0
    assert fill.price == pytest.approx(111.1)
    assert fill.fee == pytest.approx(0.5555)
    assert fill.slippage == pytest.approx(5.5)
    assert run.cash == pytest.approx(1000 - 555.5 - 0.5555)
    assert run.equity == pytest.approx(1000 - 555.5 - 0.5555 + 600)
    assert run.account.entry_price[0, 0] == pytest.approx(111.1)
    assert run.account.traded_notional[0] == pytest.approx(555.5)
    assert run.account.peak_equity[0] == run.equity


def test_sells_fill_below_the_open() -> None:
    run = Run(market([flat_bar(100), flat_bar(100)]), slippage_bps=100)
    (fill,) = run.step(orders(-0.5))
    assert (fill.quantity, fill.price) == (-5.0, 99.0)
    assert run.cash == 1495.0
    assert run.equity == 995.0


def test_hold_keeps_quantity_and_a_hold_weight_is_never_read() -> None:
    run = Run(market([flat_bar(100), flat_bar(200), flat_bar(300)]))
    run.step(orders(0.5))
    assert run.step(orders(np.nan, hold=True)) == []
    assert run.quantity() == 5.0


def test_average_entry_weighs_fill_prices_and_a_reduction_leaves_it() -> None:
    bars = [flat_bar(100), flat_bar(100), flat_bar(200), flat_bar(200)]
    run = Run(market(bars))
    run.step(orders(0.5))  # 5 at 100
    run.step(orders(1.0))  # equity 1000: 10 at close 100; 5 more at 200
    assert run.quantity() == 10.0
    assert run.account.entry_price[0, 0] == pytest.approx(150.0)
    (fill,) = run.step(orders(0.4))  # equity 1500: 3 at close 200
    assert fill.quantity == pytest.approx(-7.0)
    assert run.account.entry_price[0, 0] == pytest.approx(150.0)


def test_a_flip_goes_through_zero_in_two_fills_and_takes_the_new_entry() -> None:
    run = Run(market([flat_bar(100), flat_bar(100), flat_bar(100)]), slippage_bps=100)
    run.step(orders(0.5))
    first, second = run.step(orders(-0.5))
    assert first.quantity == -5.0
    assert second.quantity == pytest.approx(-0.5 * 995 / 100)
    assert run.quantity() == pytest.approx(-4.975)
    assert run.account.entry_price[0, 0] == 99.0


def test_flat_has_no_entry_and_no_levels() -> None:
    run = Run(market([flat_bar(100)] * 3))
    run.step(orders(0.5, stop=0.1, take=0.1))
    run.step(orders(0.0))
    assert run.quantity() == 0.0
    for levels in (run.account.entry_price, run.account.stop_price, run.account.take_price):
        assert np.isnan(levels).all()


@pytest.mark.parametrize(("weight", "expected"), [(0.57, 5.0), (-0.57, -5.0), (0.09, 0.0)])
def test_lots_round_toward_zero(weight: float, expected: float) -> None:
    run = Run(market([flat_bar(100), flat_bar(100)]), lot_size=1.0)
    run.step(orders(weight))
    assert run.quantity() == expected


def test_participation_fills_part_of_the_order_in_whole_lots() -> None:
    run = Run(market([flat_bar(100)] * 2, volume=37.0), participation=0.1, lot_size=1.0)
    (fill,) = run.step(orders(0.9))
    assert fill.quantity == 3.0  # 9 wanted, 3.7 allowed


def test_participation_spends_its_volume_on_the_reduction_of_a_flip_first() -> None:
    run = Run(market([flat_bar(100)] * 3, volume=[1e9, 1e9, 70.0]), participation=0.1)
    run.step(orders(0.5))
    first, second = run.step(orders(-0.5))
    assert (first.quantity, second.quantity) == (-5.0, pytest.approx(-2.0))


def test_a_flip_cut_before_zero_has_no_increase() -> None:
    run = Run(market([flat_bar(100)] * 3, volume=[1e9, 1e9, 35.0]), participation=0.1, lot_size=1.0)
    run.step(orders(0.5))
    (fill,) = run.step(orders(-0.5))
    assert fill.quantity == -3.0
    assert run.quantity() == 2.0


def test_orders_below_the_minimum_notional_do_not_trade_unless_they_end_flat() -> None:
    run = Run(market([flat_bar(100)] * 6), min_notional=250.0)
    assert run.step(orders(0.2)) == []  # 200
    assert len(run.step(orders(0.3))) == 1  # 300
    assert run.step(orders(0.5)) == []  # grows by 200
    assert run.step(orders(0.1)) == []  # reduces by 200
    run.change(min_notional=1e6)
    assert [fill.quantity for fill in run.step(orders(0.0))] == [-3.0]


def test_a_flip_may_close_and_not_reopen_below_the_minimum_notional() -> None:
    run = Run(market([flat_bar(100)] * 3), min_notional=250.0)
    run.step(orders(0.3))
    (fill,) = run.step(orders(-0.2))
    assert fill.quantity == -3.0
    assert run.quantity() == 0.0


def test_the_no_trade_band_keeps_small_changes_but_never_an_exit() -> None:
    run = Run(market([flat_bar(100)] * 5), no_trade_band=0.1)
    run.step(orders(0.05))  # from flat: trades
    assert run.quantity() == pytest.approx(0.5)
    assert run.step(orders(0.1499)) == []
    assert len(run.step(orders(0.1501))) == 1
    assert len(run.step(orders(0.0))) == 1


def test_gross_exposure_is_capped_at_the_open_by_one_factor_after_all_reductions() -> None:
    bars = [[flat_bar(100)] * 3, [flat_bar(100)] * 3, [flat_bar(100), flat_bar(200), flat_bar(100)]]
    run = Run(market(bars), max_leverage=1.0)
    run.step(orders([0.5, 0.0, 0.0]))
    fills = run.step(orders([0.2, 0.5, -0.3]))
    # At the open: 2 left of instrument 0 (held 200 of 1000); wanted 5 x 200 + 3 x 100 = 1300
    assert [(fill.instrument, fill.quantity) for fill in fills] == [
        (0, pytest.approx(-3.0)),
        (1, pytest.approx(5 * 800 / 1300)),
        (2, pytest.approx(-3 * 800 / 1300)),
    ]
    gross = np.abs(run.account.quantity[0]) @ np.array([100.0, 200.0, 100.0])
    assert gross == pytest.approx(1000.0)


def test_the_capped_increase_is_rounded_to_lots() -> None:
    run = Run(market([flat_bar(100), flat_bar(130)]), max_leverage=1.0, lot_size=1.0)
    run.step(orders(1.0))
    assert run.quantity() == 7.0  # 10 wanted, 1000 / 130 = 7.69


def test_no_increase_fills_while_gross_is_over_the_cap() -> None:
    run = Run(market([[flat_bar(100)] * 2, [flat_bar(100)] * 2, [flat_bar(150), flat_bar(100)]]))
    run.step(orders([-0.9, 0.0]))
    run.change(max_leverage=1.0)
    assert run.step(orders([-0.9, 0.1])) == []  # 1350 short on 550 of equity


def test_a_weekend_is_three_days_of_borrow() -> None:
    ts = np.array([0, 1, 4]) * DAY_MS
    run = Run(market([flat_bar(100)] * 3, ts=ts, close_ts=ts + DAY_MS), borrow_rate=0.365)
    run.step(orders(-0.5))
    assert run.account.financing[0] == 0.0  # nothing was carried into the first interval
    run.step(hold())
    assert run.account.financing[0] == pytest.approx(3 / 365 * 0.365 * 500)
    assert run.cash == pytest.approx(1500 - 1.5)


def test_interest_is_paid_on_negative_cash_before_anything_trades() -> None:
    ts = np.arange(3) * DAY_MS
    run = Run(market([flat_bar(100)] * 3, ts=ts, close_ts=ts + DAY_MS), interest_rate=0.365)
    run.step(orders(3.0))
    assert run.cash == -2000.0
    run.step(orders(0.0))
    assert run.account.financing[0] == pytest.approx(2.0)
    assert run.equity == pytest.approx(998.0)


def test_on_an_untraded_bar_orders_expire_and_financing_runs() -> None:
    ts = np.arange(4) * DAY_MS
    run = Run(
        market([flat_bar(100)] * 4, traded=[True, True, False, True], ts=ts, close_ts=ts + DAY_MS),
        borrow_rate=0.365,
    )
    run.step(orders(-0.5))
    assert run.step(orders(0.0)) == []
    assert run.quantity() == -5.0
    assert run.account.financing[0] > 0
    assert run.step(hold()) == []  # the order is gone


def test_ruin_is_exactly_zero_and_final() -> None:
    run = Run(market([flat_bar(100), flat_bar(100), flat_bar(1000), flat_bar(10)]), fee_bps=10)
    run.step(orders(-0.5, stop=0.5, take=0.5))
    run.step(hold())
    assert run.account.terminated[0]
    assert (run.equity, run.cash, run.quantity()) == (0.0, 0.0, 0.0)
    assert run.account.peak_equity[0] == 1000.0
    assert run.step(orders(1.0)) == []
    assert (run.equity, run.cash, run.quantity()) == (0.0, 0.0, 0.0)
    assert run.account.fees[0] == 0.0


def test_close_out_closes_everything_at_the_close_with_costs() -> None:
    run = Run(market([[flat_bar(100)] * 2, [flat_bar(100), flat_bar(200)]]), fee_bps=10)
    run.change(slippage_bps=100)
    run.step(orders([0.5, -0.5], stop=0.5))
    close_out(run.account, run.market, run.row, run.rules, run.fills)
    first, second = run.fills.of(0)
    assert (first.quantity, first.price, first.reason) == (-5.0, 99.0, "slice_end")
    assert (second.quantity, second.price) == (5.0, pytest.approx(202.0))
    assert run.equity == run.cash
    assert run.account.fees[0] == pytest.approx(first.fee + second.fee)
    assert np.isnan(run.account.stop_price).all()


def test_close_out_can_ruin() -> None:
    run = Run(market([flat_bar(100), flat_bar(100)]), slippage_bps=6000)
    run.account.positions["quantity"] = 10.0
    run.account.positions["entry_price"] = 100.0
    run.account.cash[:] = -500.0
    close_out(run.account, run.market, run.row, run.rules, run.fills)
    assert run.equity == 0.0
    assert run.account.terminated[0]


def test_a_step_refuses_rows_weights_and_shapes_that_do_not_fit() -> None:
    run = Run(market([flat_bar(100)] * 2))
    with pytest.raises(ValueError, match=r"environment 0.*instrument 0 the target weight nan"):
        run.step(orders(np.nan))
    with pytest.raises(ValueError, match=r"environment 0.*instrument 0.* the stop -0.1"):
        run.step(orders(0.1, stop=-0.1))
    with pytest.raises(ValueError, match=r"target_weight has shape \(1, 2\)"):
        run.step(orders([0.1, 0.2]))
    run.row[:] = 1
    with pytest.raises(ValueError, match=r"row 1 must lie in \[0, 1\)"):
        run.step(orders(0.1))
    with pytest.raises(ValueError, match=r"holds 2 instruments, the market 1"):
        step(
            Account.start(1, 2, 1.0),
            run.market,
            np.zeros(1, np.int64),
            orders([0.1, 0.2]),
            Rules.plain(2),
            Fills.empty(1, 2),
        )
    with pytest.raises(ValueError, match=r"rows 7 to 7"):
        close_out(run.account, run.market, np.array([7]), run.rules, run.fills)


def test_one_minute_costs_a_minute() -> None:
    run = Run(market([flat_bar(100)] * 3), borrow_rate=0.1)
    run.step(orders(-0.5))
    run.step(hold())
    assert run.account.financing[0] == pytest.approx(MINUTE_MS / (365 * DAY_MS) * 0.1 * 500)
