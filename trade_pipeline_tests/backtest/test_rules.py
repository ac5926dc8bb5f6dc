"""What holds for every rule: sides, caps, gaps, and how many bars it needs."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.protocol import Plan, PlannedRule
from trade_pipeline.backtest.rules import lowered_leverage, too_few_bars
from trade_pipeline.backtest.strategies import StrategyError, baseline
from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.baselines import BaselineSettings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.training.dataset import Dataset
from trade_pipeline_tests.backtest.rule_markets import (
    MARKETS,
    environment,
    market,
    planned,
    rule,
)
from trade_pipeline_tests.small_project import EXPERIMENT

HOLD = rule(kind="buy_and_hold")


@pytest.mark.parametrize("limits", [{}, {"max_turnover": 0.3}, {"costs": {"participation": 0.01}}])
def test_a_position_of_the_wrong_side_is_traded_away_however_slowly(limits: dict[str, Any]) -> None:
    close = np.concatenate([np.linspace(100, 150, 40), np.linspace(150, 90, 60)])
    dataset = replace(market(close), volume=np.full((100, 1), 20_000.0))
    for entry in (
        rule(kind="donchian", entry=5, exit=3, short=True),
        rule(kind="rsi_reversion", period=5, short=True),
        rule(kind="momentum", lookback=4, short=True),
    ):
        result = backtest(dataset, np.array([[0, 100]]), environment(**limits), baseline(entry))
        (key,) = dataset.instruments
        side = -1 if entry.kind != "rsi_reversion" else 1
        assert result.summary["open_positions"][key] * side > 0, entry.label
        signs = set(np.sign(np.cumsum(result.fills["quantity"].to_numpy()).round(9)))
        assert {-1.0, 1.0} <= signs, entry.label


@pytest.mark.parametrize("kind", ["donchian", "rsi_reversion", "momentum"])
def test_selling_short_needs_an_environment_that_allows_it(kind: str) -> None:
    dataset = MARKETS["one"]()
    strategy = baseline(rule(kind=kind, short=True))
    only_long = environment(actions={"kind": "weights", "short": False})
    with pytest.raises(StrategyError, match=r"sells short, but environment\.actions\.short is"):
        strategy.start(dataset, only_long)
    actions = {"environment": {"window": 4, "actions": {"kind": "weights"}}}
    with pytest.raises(SettingsError, match=f"baseline {kind}.* sells short, but variant base"):
        parse_settings(
            {**EXPERIMENT, **actions, "baselines": [{"kind": kind, "short": True}]},
            ExperimentSettings,
            "x.yaml",
        )


def test_the_leverage_cap_lowers_every_signal() -> None:
    dataset = MARKETS["two"]()
    for kind in ("donchian", "rsi_reversion", "momentum"):
        entry = {"kind": kind, "short": True}
        if kind == "momentum":
            entry["lookback"] = 20
        weights = planned(rule(**entry), dataset, max_leverage=0.6, max_position=0.6).weights
        assert set(np.abs(weights).ravel()) == {0.0, 0.3}


def test_a_plan_starts_anew_after_a_gap() -> None:
    dataset = MARKETS["one"]()
    (_, b) = dataset.segments[1].tolist()
    for entry in (
        rule(kind="donchian"),
        rule(kind="rsi_reversion"),
        rule(kind="momentum", lookback=20),
        rule(kind="volatility_target", window=20),
        rule(kind="inverse_volatility", window=20),
    ):
        later = planned(entry, dataset).weights[b:]
        changed = {
            name: np.concatenate([getattr(dataset, name)[:b] * 3, getattr(dataset, name)[b:]])
            for name in ("open", "high", "low", "close")
        }
        np.testing.assert_array_equal(
            planned(entry, replace(dataset, **changed)).weights[b:], later
        )
        assert not later[:10].any()


@pytest.mark.parametrize(
    ("entry", "needed"),
    [
        (rule(kind="flat"), 1),
        (rule(kind="sma_cross", fast=3, slow=8), 8),
        (rule(kind="donchian", entry=8, exit=3), 9),
        (rule(kind="donchian", entry=3, exit=8), 9),
        (rule(kind="rsi_reversion", period=8), 9),
        (rule(kind="momentum", lookback=5, skip=3), 9),
        (rule(kind="volatility_target", window=8), 9),
        (rule(kind="inverse_volatility", window=8), 9),
    ],
    ids=lambda one: getattr(one, "label", None),
)
def test_a_rule_that_never_has_the_bars_it_needs_is_told_and_it_is_true(
    entry: BaselineSettings, needed: int
) -> None:
    strategy = baseline(entry)
    assert getattr(strategy, "bars_needed") == needed  # noqa: B009 - a protocol does not have it
    walks = np.random.default_rng(0).normal(0, 0.01, (30, 20)).cumsum(axis=1)
    weights = np.stack([planned(entry, market(100 * np.exp(one))).weights for one in walks])
    decided = weights.any(axis=(0, 2))
    assert not decided[: needed - 1].any()
    assert decided[needed - 1] or entry.kind == "flat"

    # Twenty bars before a gap, then as many as it needs, and one that the last decision fills at.
    rows = 20 + needed + 1
    dataset = market(np.linspace(100, 120, rows), segments=[(0, 20), (20, rows)])
    late = np.array([[rows - 3, rows]])
    assert too_few_bars(strategy, dataset, [late], 1) is None
    if entry.kind != "flat":
        said = too_few_bars(strategy, dataset, [late - 1], 1)
        assert said is not None
        assert said.startswith(f"{entry.label} needs {needed} bars without a gap")
        assert f"there are {needed - 1} at most" in said
        assert too_few_bars(strategy, dataset, [late - 1, late], 1) is None


def test_who_is_no_rule_of_ours_is_told_nothing() -> None:
    class Mine(PlannedRule):
        name = "mine"

        def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
            raise AssertionError("it is only asked who it is")

    assert too_few_bars(Mine(), market(np.linspace(100, 120, 5)), [], 1) is None


def test_what_was_liquidated_is_opened_again_while_the_signal_stands() -> None:
    rising = 100 * 1.1 ** np.arange(60)  # a short sale doubles its debt within eight bars
    entry = rule(kind="rsi_reversion", period=5, short=True)
    result = backtest(market(rising), np.array([[0, 60]]), environment(), baseline(entry))
    closed = result.fills.filter(pl.col("reason") == "liquidation")
    assert closed.height > 2
    opened = result.fills.filter(pl.col("reason") == "order")["row"].to_list()
    assert set(closed["row"] + 1) - {60} <= set(opened)
    (said,) = result.mishaps
    assert said.startswith(f"{closed.height} position(s) of {entry.label} were liquidated")
    calm = backtest(market(rising), np.array([[0, 60]]), environment(), baseline(HOLD))
    assert calm.mishaps == ()


def test_leverage_that_a_rule_cannot_get_is_told() -> None:
    strategy = baseline(rule(kind="volatility_target", max_leverage=3.0))
    said = lowered_leverage(strategy, 1, environment())
    assert said is not None
    assert said.startswith("volatility_target_0p15_60_max_leverage_3 may take 3 times equity")
    assert "caps it at 1; raise environment.max_leverage and max_position" in said
    high = {"max_leverage": 3.0}
    assert "caps it at 1;" in str(lowered_leverage(strategy, 1, environment(**high)))
    assert lowered_leverage(strategy, 3, environment(**high)) is None
    assert lowered_leverage(strategy, 1, environment(**high, max_position=3.0)) is None
    assert lowered_leverage(baseline(rule(kind="buy_and_hold")), 1, environment()) is None
    # Its default is no wish: all rules take what the environment allows.
    usual = baseline(rule(kind="volatility_target"))
    assert lowered_leverage(usual, 1, environment(max_leverage=0.5, max_position=0.5)) is None
