"""Stops, take-profits and liquidation, worked by hand: docs/simulator.md sections 3 and 4."""

import numpy as np
import pytest

from trade_pipeline.simulator.kernel import Fill
from trade_pipeline_tests.simulator.markets import Bar, Run, flat_bar, hold, market, orders


def long_then(bar: Bar, *, stop: float = 0.25, take: float = 0.25, **rules: float) -> list[Fill]:
    """Half of 1000 long at 100, levels 75 and 125 unless told, then one bar."""
    run = Run(market([flat_bar(100), flat_bar(100), bar]), **rules)
    run.step(orders(0.5, stop, take))
    return run.step(hold())


def short_then(bar: Bar) -> list[Fill]:
    """Half of 1000 short at 100, levels 125 and 75, then one bar."""
    run = Run(market([flat_bar(100), flat_bar(100), bar]))
    run.step(orders(-0.5, 0.25, 0.25))
    return run.step(hold())


@pytest.mark.parametrize(
    ("bar", "price", "reason"),
    [
        ((100, 105, 75, 100), 75.0, "stop"),
        ((100, 125, 95, 100), 125.0, "take"),
        ((70, 130, 65, 100), 70.0, "stop"),  # gap through the stop
        ((75, 130, 75, 100), 75.0, "stop"),  # opens at the stop
        ((130, 135, 70, 100), 130.0, "take"),  # gap through the take
        ((125, 130, 70, 100), 125.0, "take"),  # opens at the take
        ((100, 130, 70, 100), 75.0, "stop"),  # both touched: the stop
    ],
)
def test_a_long_leaves_at(bar: Bar, price: float, reason: str) -> None:
    (fill,) = long_then(bar)
    assert (fill.quantity, fill.price, fill.reason) == (-5.0, price, reason)


@pytest.mark.parametrize(
    ("bar", "price", "reason"),
    [
        ((100, 125, 95, 100), 125.0, "stop"),
        ((100, 105, 75, 100), 75.0, "take"),
        ((130, 135, 70, 100), 130.0, "stop"),
        ((70, 130, 65, 100), 70.0, "take"),
        ((100, 130, 70, 100), 125.0, "stop"),
    ],
)
def test_a_short_leaves_at(bar: Bar, price: float, reason: str) -> None:
    (fill,) = short_then(bar)
    assert (fill.quantity, fill.price, fill.reason) == (5.0, price, reason)


def test_a_bar_between_the_levels_changes_nothing() -> None:
    assert long_then((100, 124, 76, 100)) == []
    assert short_then((100, 124, 76, 100)) == []


@pytest.mark.parametrize(
    ("bar", "count"), [((100, 130, 70, 100), 1), ((70, 130, 65, 100), 0), ((100, 105, 70, 100), 0)]
)
def test_only_a_bar_that_touches_both_without_a_gap_is_ambiguous(bar: Bar, count: int) -> None:
    run = Run(market([flat_bar(100), flat_bar(100), bar]))
    run.step(orders(0.5, 0.25, 0.25))
    run.step(hold())
    assert run.account.ambiguous[0] == count


def test_stops_slip_and_take_profits_do_not_and_both_pay_the_fee() -> None:
    rules = {"stop": 0.1, "take": 0.1, "slippage_bps": 100.0, "fee_bps": 10.0}
    # entry 101: stop 90.9, take 111.1
    (stopped,) = long_then((100, 105, 80, 100), **rules)
    assert stopped.price == pytest.approx(90.9 * 0.99)
    assert stopped.slippage == pytest.approx(abs(stopped.quantity) * 0.909)
    assert stopped.fee == pytest.approx(abs(stopped.quantity) * stopped.price * 1e-3)
    (taken,) = long_then((100, 120, 95, 100), **rules)
    assert taken.price == pytest.approx(111.1)
    assert taken.slippage == 0.0
    assert taken.fee == pytest.approx(abs(taken.quantity) * 111.1 * 1e-3)
    (gapped,) = long_then((85, 90, 80, 88), **rules)
    assert gapped.price == pytest.approx(85 * 0.99)
    (lucky,) = long_then((115, 120, 110, 112), **rules)
    assert lucky.price == 115.0


def test_the_stop_works_on_the_entry_bar() -> None:
    run = Run(market([flat_bar(100), (100, 101, 85, 99)]))
    entered, stopped = run.step(orders(0.5, 0.1))
    assert (entered.reason, stopped.reason) == ("order", "stop")
    assert stopped.price == pytest.approx(90.0)
    assert run.quantity() == 0.0
    assert run.equity == pytest.approx(950.0)


def test_an_entry_whose_slippage_passes_its_own_stop_leaves_at_the_open() -> None:
    run = Run(market([flat_bar(100), flat_bar(100)]), slippage_bps=100)
    entered, stopped = run.step(orders(0.5, 0.005))
    assert entered.price == 101.0
    assert (stopped.reason, stopped.price) == ("stop", 99.0)


def test_levels_are_anchored_anew_only_by_growth() -> None:
    run = Run(market([flat_bar(100), flat_bar(100), flat_bar(104), flat_bar(104), flat_bar(104)]))
    run.step(orders(0.4, 0.1, 0.2))  # 4 at 100
    assert (run.stop(), run.take()) == (pytest.approx(90.0), pytest.approx(120.0))
    run.step(orders(0.8, 0.2))  # 4 more at 104: entry 102
    assert run.stop() == pytest.approx(102 * 0.8)
    assert np.isnan(run.take())  # that order had no take
    run.step(orders(0.1, 0.05, 0.05))  # a reduction leaves levels alone
    assert run.stop() == pytest.approx(102 * 0.8)
    assert np.isnan(run.take())
    run.step(hold())
    assert run.stop() == pytest.approx(102 * 0.8)


def test_a_flip_anchors_levels_at_the_new_entry() -> None:
    run = Run(market([flat_bar(100), flat_bar(100), flat_bar(102)]))
    run.step(orders(0.5, 0.1))
    run.step(orders(-0.5, 0.1, 0.1))
    assert run.stop() == pytest.approx(102 * 1.1)
    assert run.take() == pytest.approx(102 * 0.9)


def test_ticks_round_levels_away_from_the_entry() -> None:
    bars = market([flat_bar(101), flat_bar(101)])
    long = Run(bars, tick_size=0.5)
    long.step(orders(0.5, 0.03, 0.03))  # 97.97 and 104.03
    assert (long.stop(), long.take()) == (97.5, 104.5)
    short = Run(bars, tick_size=0.5)
    short.step(orders(-0.5, 0.03, 0.03))  # 104.03 and 97.97
    assert (short.stop(), short.take()) == (104.5, 97.5)


def test_levels_at_or_below_zero_are_none() -> None:
    bars = market([flat_bar(1), flat_bar(1)])
    long = Run(bars, tick_size=0.5)
    long.step(orders(0.5, 0.6))  # 0.4 rounds down to 0
    assert np.isnan(long.stop())
    short = Run(bars)
    short.step(orders(-0.5, take=1.5))
    assert np.isnan(short.take())


def test_brackets_sleep_on_an_untraded_bar() -> None:
    bars = market(
        [flat_bar(100), flat_bar(100), flat_bar(80), flat_bar(80)],
        traded=[True, True, False, True],
    )
    run = Run(bars)
    run.step(orders(0.5, 0.1))
    assert run.step(hold()) == []
    (fill,) = run.step(hold())
    assert (fill.reason, fill.price) == ("stop", 80.0)


LEVERED = {"maintenance_margin": 0.1}  # 5x long of 1000 at 100: 50, cash -4000, L = 88.89


@pytest.mark.parametrize(
    ("stop", "bar", "price", "reason"),
    [
        (0.05, (100, 100, 80, 85), 95.0, "stop"),  # nearer than L
        (0.20, (100, 100, 70, 85), 4000 / 45, "liquidation"),  # farther than L
        (0.20, (100, 100, 89, 95), None, ""),  # L not touched
        (0.05, (100, 100, 94, 95), 95.0, "stop"),
        (0.20, (85, 90, 85, 86), 85.0, "liquidation"),  # margin gone at the open
        (0.05, (85, 90, 85, 86), 85.0, "stop"),  # the gap stop comes first
    ],
)
def test_whichever_of_stop_and_liquidation_is_nearer(
    stop: float, bar: Bar, price: float | None, reason: str
) -> None:
    run = Run(market([flat_bar(100), flat_bar(100), bar]), **LEVERED)
    run.step(orders(5.0, stop))
    fills = run.step(hold())
    if price is None:
        assert fills == []
    else:
        assert [(fill.reason, fill.price) for fill in fills] == [(reason, pytest.approx(price))]


def test_a_short_is_liquidated_where_margin_ends() -> None:
    run = Run(market([flat_bar(100), flat_bar(100), (100, 130, 90, 120)]), **LEVERED)
    run.step(orders(-5.0, 0.2, 0.05))
    (fill,) = run.step(hold())
    assert (fill.reason, fill.price) == ("liquidation", pytest.approx(6000 / 55))
    assert run.account.ambiguous[0] == 1  # its stop and take were touched as well


def test_a_liquidation_pays_slippage_and_fee() -> None:
    run = Run(market([flat_bar(100), flat_bar(100), (100, 100, 80, 85)]), **LEVERED)
    run.step(orders(5.0))
    run.change(slippage_bps=100.0, fee_bps=10.0)
    (fill,) = run.step(hold())
    assert fill.price == pytest.approx(4000 / 45 * 0.99)
    assert fill.fee == pytest.approx(50 * fill.price * 1e-3)


def test_a_long_without_debt_is_never_liquidated() -> None:
    run = Run(market([flat_bar(100), flat_bar(100), (100, 100, 0.01, 0.02)]), **LEVERED)
    run.step(orders(0.9))
    assert run.step(hold()) == []
    assert run.equity == pytest.approx(100 + 9 * 0.02)


def pair(*bars: tuple[Bar, Bar], traded: object = True) -> Run:
    return Run(market(bars, traded=traded), maintenance_margin=0.1)


def test_several_positions_share_margin_at_their_adverse_extremes_after_the_stops() -> None:
    both = (flat_bar(100), flat_bar(100))
    run = pair(both, both, ((100, 101, 85, 100), (100, 110, 99, 100)))
    run.step(orders([2.5, -2.5]))
    # cash 1000; 25 x 85 - 25 x 110 = -625 leaves 375 < 0.1 x 4875
    fills = run.step(hold(2))
    assert [(fill.instrument, fill.price, fill.reason) for fill in fills] == [
        (0, 85.0, "liquidation"),
        (1, 110.0, "liquidation"),
    ]
    assert run.account.ambiguous[0] == 1
    stopped = pair(both, both, ((100, 101, 85, 100), (100, 110, 99, 100)))
    stopped.step(orders([2.5, -2.5], stop=[0.05, np.nan]))
    # the stop at 95 saves it: 875 - 25 x 10 = 625 >= 0.1 x 2750
    (fill,) = stopped.step(hold(2))
    assert (fill.instrument, fill.price, fill.reason) == (0, pytest.approx(95.0), "stop")
    assert stopped.account.ambiguous[0] == 0


def test_several_positions_are_liquidated_at_the_open_when_margin_is_gone_there() -> None:
    both = (flat_bar(100), flat_bar(100))
    run = pair(both, both, (flat_bar(80), flat_bar(99)))
    run.step(orders([4.0, 1.0]))
    fills = run.step(hold(2))
    assert [(fill.price, fill.reason) for fill in fills] == [
        (80.0, "liquidation"),
        (99.0, "liquidation"),
    ]
    assert run.account.ambiguous[0] == 0


def test_a_liquidation_leaves_positions_on_untraded_bars() -> None:
    both = (flat_bar(100), flat_bar(100))
    run = pair(both, both, (flat_bar(80), flat_bar(100)), traded=[[1, 1], [1, 1], [1, 0]])
    run.step(orders([4.0, 1.0]))
    (fill,) = run.step(hold(2))
    assert fill.instrument == 0
    assert run.quantity(1) == 10.0


def test_a_breach_that_nothing_can_answer_is_no_ambiguous_bar() -> None:
    both = (flat_bar(100), flat_bar(100))
    run = pair(both, both, (flat_bar(80), flat_bar(80)), traded=[[1, 1], [1, 1], [0, 0]])
    run.step(orders([4.0, 1.0]))
    assert run.step(hold(2)) == []
    assert run.account.ambiguous[0] == 0


def test_take_profits_follow_the_margin_test() -> None:
    both = (flat_bar(100), flat_bar(100))
    run = pair(both, both, ((100, 120, 99, 115), (100, 101, 99, 100)))
    run.step(orders([0.5, -0.5], take=[0.1, np.nan]))
    (fill,) = run.step(hold(2))
    assert (fill.instrument, fill.price, fill.reason) == (0, pytest.approx(110.0), "take")
