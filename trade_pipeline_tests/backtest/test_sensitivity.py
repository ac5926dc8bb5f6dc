"""Cost and delay tables: what changes is the costs or the bar that decisions know, nothing else."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from trade_pipeline.backtest import sensitivity as subject
from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.protocol import Strategy
from trade_pipeline.backtest.sensitivity import BarLater, Run, sensitivity, with_costs
from trade_pipeline.backtest.strategies import PolicyStrategy, baseline
from trade_pipeline.settings.baselines import SmaCrossBaseline
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import Account, Orders
from trade_pipeline.training.dataset import Dataset
from trade_pipeline_tests.backtest.step_by_step import Asked
from trade_pipeline_tests.training import synthetic, untrained

KEYS = ("demo.A.1h",)
ACTIONS = {"kind": "weights"}
CROSS = baseline(SmaCrossBaseline(kind="sma_cross", fast=3, slow=9))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthetic.dataset(KEYS)


@pytest.fixture(scope="module")
def environment() -> EnvironmentSettings:
    return synthetic.experiment(KEYS).environment


class Foresight:
    """Knows the next bar's close: what a leak looks like from outside."""

    name = "foresight"

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        close = dataset.close[:, 0]
        self._up = np.append(close[1:] > close[:-1], False)

    def orders(self, row: int, account: Account) -> Orders:
        none = np.full((1, 1), np.nan)
        weight = np.array([[float(self._up[row])]])
        return Orders(weight, np.zeros((1, 1), np.bool_), none, none)


def table(dataset: Dataset, environment: EnvironmentSettings, strategy: Strategy) -> pl.DataFrame:
    runs = {strategy.name: [Run(dataset, fold.test, strategy) for fold in dataset.folds]}
    return sensitivity(runs, environment)


def value(found: pl.DataFrame, name: str, figure: str) -> float:
    return float(found.filter(pl.col("name") == name)[figure].item())


def test_a_row_for_each_cost_and_a_late_bar(
    dataset: Dataset, environment: EnvironmentSettings
) -> None:
    found = table(dataset, environment, CROSS)
    assert found.schema == subject.SCHEMA
    assert found["name"].to_list() == ["as configured", "no costs", "costs x2", "one bar later"]
    returns = [value(found, name, "total_return") for name in ("no costs", "as configured")]
    assert returns[0] > returns[1] > value(found, "costs x2", "total_return")
    plain = backtest(dataset, dataset.folds[0].test, environment, CROSS)
    grown = plain.equity[-1] / plain.equity[0] - 1
    assert value(found, "as configured", "total_return") == pytest.approx(grown, abs=1e-12)


def test_what_knows_the_next_bar_loses_it_when_a_bar_late(
    dataset: Dataset, environment: EnvironmentSettings
) -> None:
    free = with_costs(environment, 0.0)
    assert free is not None
    found = table(dataset, free, Foresight())
    assert value(found, "as configured", "sharpe") > 3 * abs(
        value(found, "one bar later", "sharpe")
    )


def test_costs_are_scaled_where_a_fill_pays_and_nowhere_else() -> None:
    tiers = [
        {"volume": 0, "maker_bps": 16, "taker_bps": 26},
        {"volume": 1e5, "maker_bps": 8, "taker_bps": 18},
    ]
    for fee, doubled in (
        ({"kind": "flat", "bps": 3.0}, {"kind": "flat", "bps": 6.0}),
        (
            {"kind": "maker_taker", "tiers": tiers},
            {
                "kind": "maker_taker",
                "tiers": [
                    {"volume": 0, "maker_bps": 32, "taker_bps": 52},
                    {"volume": 1e5, "maker_bps": 16, "taker_bps": 36},
                ],
            },
        ),
        (
            {"kind": "per_share", "per_share": 0.005, "minimum": 1.0, "maximum_fraction": 0.01},
            {"kind": "per_share", "per_share": 0.01, "minimum": 2.0, "maximum_fraction": 0.01},
        ),
    ):
        costs = {
            "fee": fee,
            "slippage": {"kind": "impact", "bps": 1.0, "impact_bps": 50.0},
            "borrow_rate": 0.1,
            "lot_size": 0.5,
        }
        given = EnvironmentSettings.model_validate(
            {"window": 4, "actions": ACTIONS, "costs": costs}
        )
        changed = costs | {
            "fee": doubled,
            "slippage": {"kind": "impact", "bps": 2.0, "impact_bps": 100.0},
        }
        assert with_costs(given, 2.0) == EnvironmentSettings.model_validate(
            {"window": 4, "actions": ACTIONS, "costs": changed}
        )


def test_costs_that_leave_no_price_have_no_figures(
    dataset: Dataset, environment: EnvironmentSettings
) -> None:
    costs = {**environment.costs.model_dump(), "slippage": {"kind": "fixed", "bps": 6000.0}}
    dear = EnvironmentSettings.model_validate({**environment.model_dump(), "costs": costs})
    assert with_costs(dear, 2.0) is None
    found = table(dataset, dear, CROSS).filter(pl.col("name") == "costs x2")
    assert found["total_return"].to_list() == [None]


def test_a_bar_late_is_the_same_asked_or_planned(
    dataset: Dataset, environment: EnvironmentSettings
) -> None:
    part = dataset.folds[0].test + np.array([1, 0])
    planned = backtest(dataset, part, environment, BarLater(CROSS))
    asked = backtest(dataset, part, environment, Asked(BarLater(CROSS)))
    on_time = backtest(dataset, part, environment, CROSS)
    assert planned.equity.tobytes() == asked.equity.tobytes()
    assert planned.equity.tobytes() != on_time.equity.tobytes()


def test_a_late_policy_sees_the_features_of_the_bar_before(
    dataset: Dataset, environment: EnvironmentSettings
) -> None:
    strategy = PolicyStrategy(untrained.policy(dataset, environment, 2))
    found = table(dataset, environment, strategy)
    rolled = replace(dataset, features=np.roll(dataset.features, 1, axis=0))
    late = backtest(rolled, dataset.folds[0].test + np.array([1, 0]), environment, strategy)
    grown = late.equity[-1] / late.equity[0] - 1
    assert value(found, "one bar later", "total_return") == pytest.approx(grown, abs=1e-12)
    assert value(found, "as configured", "total_return") != pytest.approx(grown, abs=1e-9)
