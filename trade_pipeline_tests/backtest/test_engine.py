from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from trade_pipeline.backtest.engine import BacktestResult, backtest
from trade_pipeline.backtest.strategies import PolicyStrategy, Strategy, baseline
from trade_pipeline.evaluation.trades import FILL_SCHEMA
from trade_pipeline.settings.experiment import (
    BuyAndHoldBaseline,
    EnvironmentSettings,
    RandomBaseline,
)
from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.simulator.kernel import Account, Orders
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.policy import Normalizer, PolicyError, PolicyNetwork, PolicyRunner
from trade_pipeline.training.splits import SplitError
from trade_pipeline.training.trainer import policy_specification
from trade_pipeline.training.validation import evaluation_equity
from trade_pipeline_tests.training import synthetic

ONE, TWO = ("demo.A.1h",), ("demo.A.1h", "demo.B.1h")


def random_policy(dataset: Dataset, keys: tuple[str, ...], seed: int = 0) -> PolicyRunner:
    """A policy that trades a lot: untrained, with large last weights."""
    environment, algorithm = synthetic.experiment(keys).variant("base")
    trial = synthetic.experiment(keys).trials()["base.f0.s0"]
    spec = policy_specification(dataset, environment, algorithm, trial)
    torch.manual_seed(seed)
    network = PolicyNetwork(spec["network"])
    with torch.no_grad():
        network.action.weight *= 20
    return PolicyRunner(
        spec, Normalizer.fit(dataset.features, dataset.folds[0].train, "standard"), network
    )


@pytest.mark.parametrize("keys", [ONE, TWO], ids=["TradingEnv", "PortfolioEnv"])
def test_a_backtest_equals_the_evaluation_episodes_bit_for_bit(keys: tuple[str, ...]) -> None:
    dataset = synthetic.dataset(keys)
    test = dataset.folds[0].test
    environment = synthetic.experiment(keys).environment
    assert (test[:, 1] - test[:, 0]).tolist() == [3, 57, 47, 57]  # the first holds no episode
    fills = 0
    for seed in range(4):
        runner = random_policy(dataset, keys, seed)
        result = backtest(dataset, test, environment, PolicyStrategy(runner))
        episodes = evaluation_equity(
            runner, dataset.market, runner.features(dataset), test, environment
        )
        assert result.equity.tobytes() == episodes.tobytes()
        assert len(result.equity) == 1 + sum(rows - environment.window for rows in (57, 47, 57))
        assert result.summary["slices"] == 3
        fills += result.fills.height
    assert fills > 100


@pytest.mark.parametrize("keys", [ONE, TWO], ids=["brackets", "weights"])
def test_every_slice_end_but_the_last_closes_positions(keys: tuple[str, ...]) -> None:
    dataset = synthetic.dataset(keys)
    environment = synthetic.experiment(keys).environment
    test = dataset.folds[0].test
    strategy = baseline(BuyAndHoldBaseline(kind="buy_and_hold"))
    result = backtest(dataset, test, environment, strategy)
    closed = result.fills.filter(pl.col("reason") == "slice_end")
    assert closed["row"].unique(maintain_order=True).to_list() == [test[1, 1] - 1, test[2, 1] - 1]
    assert set(result.summary["open_positions"]) == set(keys)
    ends = np.flatnonzero(np.diff(result.slice_number))
    assert (result.exposure[ends - 1] == 0).all()
    assert result.exposure[-1] > 0


def test_equity_changes_by_what_fills_and_marks_explain() -> None:
    dataset = synthetic.dataset(TWO)
    environment = synthetic.experiment(TWO).environment
    strategy = baseline(RandomBaseline(kind="random", seed=3))
    result = backtest(dataset, dataset.folds[0].test, environment, strategy)
    fills = result.fills
    cash = -(fills["quantity"] * fills["price"]).to_numpy().sum() - fills["fee"].to_numpy().sum()
    last = result.row[-1]
    marked = sum(
        quantity * dataset.close[last, TWO.index(name)]
        for name, quantity in result.summary["open_positions"].items()
    )
    expected = environment.initial_equity + cash - result.financing.sum() + marked
    assert result.equity[-1] == pytest.approx(expected, rel=1e-12)
    assert fills.schema == pl.Schema(FILL_SCHEMA)
    assert result.summary["fees"] == pytest.approx(fills["fee"].sum())
    assert result.turnover.sum() == pytest.approx((fills["quantity"] * fills["price"]).abs().sum())


def test_fills_are_in_time_order_and_orders_trade_at_their_bars_open() -> None:
    dataset = synthetic.dataset()
    result = run(dataset, baseline(RandomBaseline(kind="random")))
    assert result.fills["time"].is_sorted()
    assert set(result.fills["reason"]) >= {"order", "stop", "take", "slice_end"}
    orders = result.fills.filter(pl.col("reason") == "order")
    opened = dataset.open[orders["row"].to_numpy(), 0]
    np.testing.assert_allclose(orders["price"].to_numpy(), opened, rtol=1.01e-4)
    decided = result.orders.filter(pl.col("target_weight") != 0)
    assert decided["stop_fraction"].null_count() not in (0, decided.height)


def test_the_first_value_is_the_initial_equity_before_the_first_decision() -> None:
    dataset = synthetic.dataset()
    environment = synthetic.experiment().environment
    result = run(dataset, baseline(RandomBaseline(kind="random")))
    first = dataset.folds[0].test[1, 0] + environment.window - 1
    assert result.row[0] == first
    assert result.equity[0] == environment.initial_equity
    frame = result.equity_frame()
    assert frame.height == len(result.equity)
    assert frame["time"].dt.epoch("ms").to_list() == dataset.close_ts[result.row].tolist()


class Leveraged:
    """Asks for the same large weight on every bar."""

    name = "leveraged"

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        pass

    def orders(self, row: int, account: Account) -> Orders:
        none = np.full((1, 1), np.nan)
        return Orders(np.full((1, 1), 5.0), np.zeros((1, 1), np.bool_), none, none)


def test_ruin_ends_the_backtest_at_zero() -> None:
    dataset = synthetic.dataset()
    crash = replace(
        dataset,
        **{name: getattr(dataset, name).copy() for name in ("open", "high", "low", "close")},
    )
    row = int(dataset.folds[0].test[1, 0]) + 20
    for name in ("open", "high", "low", "close"):
        getattr(crash, name)[row:] *= 0.5
    environment = synthetic.experiment().environment.model_copy(
        update={"max_leverage": 5.0, "max_position": 5.0}
    )
    result = backtest(crash, dataset.folds[0].test, environment, Leveraged())
    assert result.summary["terminated"]
    assert result.equity[-1] == 0
    assert result.row[-1] <= row
    assert (result.equity[:-1] > 0).all()


def test_slices_too_short_for_the_window_are_said_with_the_numbers() -> None:
    dataset = synthetic.dataset()
    environment = synthetic.experiment().environment.model_copy(update={"window": 60})
    strategy = baseline(RandomBaseline(kind="random"))
    with pytest.raises(
        SplitError, match=r"experiment demo: .*\[3, 57, 47, 57\] rows, .* of 60 needs 62"
    ):
        backtest(dataset, dataset.folds[0].test, environment, strategy, "experiment demo")


@pytest.mark.parametrize(
    "change", [{"window": 5}, {"actions": {"kind": "brackets", "sizes": (0.5,)}}]
)
def test_a_policy_refuses_an_environment_it_was_not_trained_in(change: dict[str, Any]) -> None:
    dataset = synthetic.dataset()
    environment = EnvironmentSettings.model_validate(
        {**synthetic.experiment().environment.model_dump(), **change}
    )
    strategy = PolicyStrategy(random_policy(dataset, ONE))
    with pytest.raises(PolicyError, match=f"trained with {next(iter(change))}"):
        backtest(dataset, dataset.folds[0].test, environment, strategy)


def run(dataset: Dataset, strategy: Strategy) -> BacktestResult:
    return backtest(dataset, dataset.folds[0].test, synthetic.experiment().environment, strategy)


class LongOnce:
    """Goes long on the first bar of a slice and holds; decides for both ways of running."""

    name = "long_once"
    LONG, HOLD = np.array([2, 0, 0, 0]), np.array([0, 0, 0, 0])

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        self._mapping = mapping_for(environment, 1)

    def act(self, seen: Any) -> Any:
        return self.HOLD if seen["account"][0] else self.LONG

    def orders(self, row: int, account: Account) -> Orders:
        held = account.quantity[0, 0] != 0
        return self._mapping.to_orders((self.HOLD if held else self.LONG)[None])


def test_a_slice_end_that_ruins_ends_backtest_and_evaluation_alike() -> None:
    dataset = synthetic.dataset()
    fee = {"kind": "per_share", "per_share": 0.0, "minimum": 60_000.0}
    environment = synthetic.experiment(environment={"costs": {"fee": fee}}).environment
    test = dataset.folds[0].test
    assert len(test) > 1
    result = backtest(dataset, test, environment, LongOnce())
    assert result.summary["terminated"]
    assert result.summary["fills"]["slice_end"] == 1
    assert result.row[-1] + 1 in test[:-1, 1]
    equity = evaluation_equity(
        LongOnce(), dataset.market, dataset.features[:, 0], test, environment
    )
    assert equity.tolist() == result.equity.tolist()
    assert equity[-1] == 0.0
