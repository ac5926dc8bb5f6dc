"""The engine's compiled ways give what one bar after the other gives, to the last bit."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trade_pipeline.backtest import planned
from trade_pipeline.backtest.engine import BacktestResult, backtest
from trade_pipeline.backtest.planned import PlanError
from trade_pipeline.backtest.rules import SmaCross
from trade_pipeline.backtest.strategies import (
    Plan,
    PlannedStrategy,
    PolicyStrategy,
    Strategy,
    baseline,
)
from trade_pipeline.settings.baselines import (
    BuyAndHoldBaseline,
    DonchianBaseline,
    EqualWeightBaseline,
    FlatBaseline,
    InverseVolatilityBaseline,
    MomentumBaseline,
    RandomBaseline,
    RsiReversionBaseline,
    SmaCrossBaseline,
    VolatilityTargetBaseline,
)
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator import recording
from trade_pipeline.simulator.kernel import Account, Orders
from trade_pipeline.training import policy
from trade_pipeline.training.dataset import Dataset
from trade_pipeline_tests.backtest import step_by_step
from trade_pipeline_tests.backtest.step_by_step import Asked
from trade_pipeline_tests.training import synthetic, untrained

KEYS = {
    1: ("demo.A.1h",),
    2: ("demo.A.1h", "demo.B.1h"),
    9: tuple(f"demo.{letter}.1h" for letter in "ABCDEFGHI"),
}
DATASETS = {count: synthetic.dataset(keys) for count, keys in KEYS.items()}
EVERY = (
    FlatBaseline(kind="flat"),
    BuyAndHoldBaseline(kind="buy_and_hold"),
    RandomBaseline(kind="random", seed=1),
    SmaCrossBaseline(kind="sma_cross", fast=3, slow=9),
    EqualWeightBaseline(kind="equal_weight"),
    DonchianBaseline(kind="donchian", entry=6, exit=3, short=True),
    RsiReversionBaseline(kind="rsi_reversion", period=4, short=True),
    MomentumBaseline(kind="momentum", lookback=5, short=True),
    VolatilityTargetBaseline(kind="volatility_target", window=6, target=0.5),
    InverseVolatilityBaseline(kind="inverse_volatility", window=6, rebalance=5),
)
TIERS = {
    "kind": "maker_taker",
    "tiers": [
        {"volume": 0, "maker_bps": 5, "taker_bps": 10},
        {"volume": 300_000, "maker_bps": -0.0, "taker_bps": 4},
    ],
}
COSTLY = {
    "fee": TIERS,
    "slippage": {"kind": "impact", "bps": 1, "impact_bps": 30},
    "borrow_rate": 0.5,
    "interest_rate": 0.4,
    "cash_rate": 0.1,
    "funding_rate": 0.001,
    "lot_size": 0.5,
    "tick_size": 0.25,
    "min_notional": 20.0,
    "participation": 0.4,
}


def environment_of(instruments: int, **changes: Any) -> EnvironmentSettings:
    made = synthetic.experiment(KEYS[instruments]).environment.model_dump()
    return EnvironmentSettings.model_validate({**made, **changes})


def assert_same(found: BacktestResult, expected: BacktestResult) -> None:
    """Every array bit for bit, every table row for row, the summary key for key."""
    for field in fields(BacktestResult):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, field.name
            assert ours.tobytes() == theirs.tobytes(), field.name
        elif isinstance(theirs, pl.DataFrame):
            assert ours.schema == theirs.schema
            assert ours.rows() == theirs.rows(), field.name
        else:
            assert repr(ours) == repr(theirs), field.name


def check(
    dataset: Dataset, environment: EnvironmentSettings, strategy: Strategy, segments: Any = None
) -> BacktestResult:
    """Compiled, asked bar by bar and the oracle give the same, which is returned."""
    segments = dataset.folds[0].test if segments is None else segments
    found = backtest(dataset, segments, environment, strategy)
    expected = step_by_step.run(dataset, segments, environment, strategy)
    assert_same(found, expected)
    assert_same(backtest(dataset, segments, environment, Asked(strategy)), expected)
    return found


@pytest.mark.parametrize("costs", [{}, COSTLY], ids=["plain", "costly"])
@pytest.mark.parametrize("instruments", sorted(KEYS))
@pytest.mark.parametrize("rule", EVERY, ids=lambda one: one.kind)
def test_every_baseline_gives_the_same_bits_compiled(
    rule: Any, instruments: int, costs: dict[str, Any]
) -> None:
    environment = environment_of(instruments, costs=costs)
    strategy = baseline(rule)
    assert isinstance(strategy, PlannedStrategy)
    result = check(DATASETS[instruments], environment, strategy)
    assert result.fills.is_empty() == (rule.kind == "flat")


@pytest.mark.parametrize("costs", [{}, COSTLY], ids=["plain", "costly"])
@pytest.mark.parametrize("network", sorted(untrained.NETWORKS))
@pytest.mark.parametrize("instruments", [1, 2])
def test_every_policy_gives_the_same_bits_compiled(
    instruments: int, network: str, costs: dict[str, Any]
) -> None:
    environment = environment_of(instruments, costs=costs)
    dataset = DATASETS[instruments]
    runner = untrained.policy(dataset, environment, 2, network)
    assert check(dataset, environment, PolicyStrategy(runner)).fills.height


class Given:
    """Orders out of arrays, both ways."""

    name = "given"

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.asked = 0

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        self.asked = 0
        self._close = dataset.close

    def orders(self, row: int, account: Account) -> Orders:
        self.asked += 1
        plan = self._plan
        held = account.quantity[0]
        keep = plan.hold[row] & (held != 0) & (np.sign(held) != -np.sign(plan.weights[row]))
        if plan.band is not None:
            for n in np.flatnonzero(keep & ~np.isnan(plan.band[row])):
                weight = held[n] * self._close[row, n] / account.equity[0]
                most = plan.band[row, n] * abs(plan.weights[row, n])
                keep[n] = abs(weight - plan.weights[row, n]) <= most
        none = np.full(keep.shape, np.nan)
        stop = none if plan.stop_fraction is None else plan.stop_fraction[row]
        take = none if plan.take_fraction is None else plan.take_fraction[row]
        return Orders(plan.weights[row][None], keep[None], stop[None], take[None])

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        return self._plan


def drawn_plan(rng: np.random.Generator, shape: tuple[int, int], most: float) -> Plan:
    """Positions of both sides, flat and held stretches, near and far levels."""
    calm = rng.random(shape) < rng.choice([0.0, 0.7, 0.97])
    weights = np.where(rng.random(shape) < 0.4, 0.0, rng.uniform(-most, most, shape))

    def some(size: float) -> NDArray[np.float64] | None:
        drawn = np.where(rng.random(shape) < 0.3, np.nan, rng.exponential(size, shape))
        return None if rng.random() < 0.2 else drawn

    return Plan(weights, calm, some(0.02), some(0.02), some(0.5) if rng.random() < 0.5 else None)


def shaken(dataset: Dataset, rng: np.random.Generator, size: float) -> Dataset:
    """The same bars with a few jumps, up and down, that stay."""
    jumps = np.where(rng.random(dataset.close.shape) < 0.01, rng.normal(0, size), 0.0)
    factor = np.exp(np.cumsum(jumps, axis=0))
    names = ("open", "high", "low", "close")
    return replace(dataset, **{name: getattr(dataset, name) * factor for name in names})


@given(
    seed=st.integers(0, 2**32 - 1),
    instruments=st.sampled_from(sorted(KEYS)),
    leverage=st.sampled_from([1.0, 3.0, 15.0]),
    size=st.sampled_from([0.0, 0.05, 0.3]),
    costly=st.booleans(),
    limits=st.fixed_dictionaries(
        {
            "maintenance_margin": st.sampled_from([0.0, 0.05]),
            "no_trade_band": st.sampled_from([0.0, 0.05]),
            "max_turnover": st.sampled_from([None, 0.5]),
            "window": st.integers(1, 5),
        }
    ),
)
@settings(max_examples=120, deadline=None)
def test_any_plan_gives_the_same_bits_compiled(
    seed: int,
    instruments: int,
    leverage: float,
    size: float,
    costly: bool,
    limits: dict[str, Any],
) -> None:
    rng = np.random.default_rng(seed)
    dataset = shaken(DATASETS[instruments], rng, size)
    changes = {
        "actions": {"kind": "weights", "short": True},
        "max_leverage": leverage,
        "max_position": leverage,
        "costs": COSTLY if costly else {},
    }
    environment = environment_of(instruments, **changes, **limits)
    strategy = Given(drawn_plan(rng, dataset.close.shape, leverage))
    check(dataset, environment, strategy)


def test_the_plans_that_are_drawn_reach_everything_that_can_happen() -> None:
    reasons: set[str] = set()
    ruined = ambiguous = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        dataset = shaken(DATASETS[1], rng, 0.3)
        environment = environment_of(
            1,
            actions={"kind": "weights", "short": True},
            max_leverage=15.0,
            max_position=15.0,
        )
        plan = drawn_plan(rng, dataset.close.shape, 15.0)
        result = check(dataset, environment, Given(plan))
        reasons |= set(result.fills["reason"])
        ruined += result.summary["terminated"]
        ambiguous += result.summary["ambiguous_bars"]
    assert reasons == {"order", "stop", "take", "liquidation", "slice_end"}
    assert 0 < ruined < 30
    assert ambiguous


@pytest.mark.parametrize("rows", [1, 7])
def test_pieces_and_full_buffers_change_no_bit(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "ROWS_AT_A_TIME", rows)
    monkeypatch.setattr(policy, "ROWS_AT_A_TIME", rows)
    monkeypatch.setattr(recording, "ENTRIES_AT_A_TIME", 1)
    for instruments in (1, 2):
        dataset, environment = DATASETS[instruments], environment_of(instruments)
        check(dataset, environment, baseline(EVERY[2]))
        runner = untrained.policy(dataset, environment, kind="lstm")
        check(dataset, environment, PolicyStrategy(runner))


def test_a_plan_is_used_instead_of_asking() -> None:
    dataset, environment = DATASETS[1], environment_of(1)
    strategy = Given(drawn_plan(np.random.default_rng(0), dataset.close.shape, 1.0))
    backtest(dataset, dataset.folds[0].test, environment, strategy)
    assert strategy.asked == 0
    backtest(dataset, dataset.folds[0].test, environment, Asked(strategy))
    assert strategy.asked == sum(rows - environment.window for rows in (57, 47, 57))


class Contrary(SmaCross):
    """Says other orders than the rule it is made from, whose plan it still has."""

    def orders(self, row: int, account: Account) -> Orders:
        told = super().orders(row, account)
        return told._replace(target_weight=-told.target_weight)


def test_who_overrides_orders_alone_is_asked() -> None:
    dataset, environment = DATASETS[1], environment_of(1)
    strategy = Contrary(SmaCrossBaseline(kind="sma_cross", fast=3, slow=9))
    found = backtest(dataset, dataset.folds[0].test, environment, strategy)
    expected = step_by_step.run(dataset, dataset.folds[0].test, environment, strategy)
    assert_same(found, expected)
    assert (found.fills["quantity"] < 0).any()


class Silenced(PolicyStrategy):
    """A policy that somebody keeps from trading."""

    def orders(self, row: int, account: Account) -> Orders:
        told = super().orders(row, account)
        return told._replace(target_weight=np.zeros((1, 1)))


def test_a_policy_whose_orders_are_changed_is_asked() -> None:
    dataset, environment = DATASETS[1], environment_of(1)
    runner = untrained.policy(dataset, environment)
    segments = dataset.folds[0].test
    assert backtest(dataset, segments, environment, PolicyStrategy(runner)).fills.height
    assert backtest(dataset, segments, environment, Silenced(runner)).fills.is_empty()


def test_a_plan_that_is_none_is_refused_with_the_row() -> None:
    dataset, environment = DATASETS[2], environment_of(2)
    segments = dataset.folds[0].test
    fine = Plan(np.zeros(dataset.close.shape), np.zeros(dataset.close.shape, np.bool_))
    row = int(segments[1, 0]) + 20

    def spoiled(value: float) -> NDArray[np.float64]:
        array = np.zeros(dataset.close.shape)
        array[row, 1] = value
        return array

    for plan, message in (
        (fine._replace(weights=spoiled(np.nan)), f"weights of row {row}, instrument 1 is nan"),
        (fine._replace(stop_fraction=spoiled(-0.1)), f"stop_fraction of row {row}, .* is -0.1"),
        (fine._replace(band=spoiled(-0.1)), f"band of row {row}, .* is -0.1"),
        (fine._replace(weights=fine.weights[:-1]), "weights has shape"),
        (
            fine._replace(hold=fine.weights),  # type: ignore[arg-type]
            "hold has dtype float64",
        ),
    ):
        with pytest.raises(PlanError, match=message):
            backtest(dataset, segments, environment, Given(plan))
    before = fine.weights.copy()
    before[0] = np.nan  # a rule that has no value before its first decision
    strategy = Given(fine._replace(weights=before))
    assert backtest(dataset, segments, environment, strategy).fills.is_empty()
