from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from trade_pipeline.backtest.engine import BacktestResult, backtest
from trade_pipeline.backtest.strategies import PolicyStrategy, Strategy, baseline
from trade_pipeline.evaluation.trades import FILL_SCHEMA
from trade_pipeline.settings.baselines import BuyAndHoldBaseline, RandomBaseline
from trade_pipeline.settings.experiment import EnvironmentSettings
from trade_pipeline.simulator.env import PortfolioEnv, SimulatedEnv, TradingEnv
from trade_pipeline.simulator.kernel import Account, Orders
from trade_pipeline.training.compiled_network import weight_shapes
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.policy import PolicyError, PolicyRunner
from trade_pipeline.training.splits import SplitError
from trade_pipeline.training.validation import evaluate
from trade_pipeline_tests.training import synthetic, untrained

ONE, TWO = ("demo.A.1h",), ("demo.A.1h", "demo.B.1h")


@pytest.mark.parametrize("network", sorted(untrained.NETWORKS))
@pytest.mark.parametrize("keys", [ONE, TWO], ids=["brackets", "weights"])
def test_a_backtest_equals_the_evaluation_of_training_bit_for_bit(
    keys: tuple[str, ...], network: str
) -> None:
    dataset = synthetic.dataset(keys)
    test = dataset.folds[0].test
    environment = synthetic.experiment(keys).environment
    assert (test[:, 1] - test[:, 0]).tolist() == [3, 57, 47, 57]  # the first holds no episode
    fills = 0
    for seed in range(4):
        runner = untrained.policy(dataset, environment, seed, network)
        result = backtest(dataset, test, environment, PolicyStrategy(runner))
        evaluated = evaluate(runner, dataset.market, runner.features(dataset), test, environment)
        assert result.equity.tobytes() == evaluated.equity.tobytes()
        assert result.fills.height == evaluated.fills
        assert len(result.equity) == 1 + sum(rows - environment.window for rows in (57, 47, 57))
        assert result.summary["slices"] == 3
        fills += result.fills.height
    assert fills > 100


@pytest.mark.parametrize("keys", [ONE, TWO], ids=["TradingEnv", "PortfolioEnv"])
def test_an_evaluation_equals_an_episode_of_the_training_environment(
    keys: tuple[str, ...],
) -> None:
    dataset = synthetic.dataset(keys)
    environment = synthetic.experiment(keys).environment
    segment = dataset.folds[0].test[1]
    runner = untrained.policy(dataset, environment)
    features = runner.features(dataset)
    if len(keys) == 1:
        episodes: SimulatedEnv = TradingEnv(
            dataset.market, features, segment[None], environment, flat_actions=True
        )
    else:
        episodes = PortfolioEnv(dataset.market, features, segment[None], environment)
    seen, _ = episodes.reset(options={"segment": tuple(segment)})
    equity, ended = [environment.initial_equity], False
    while not ended:
        seen, _, terminated, truncated, info = episodes.step(runner.act(seen))
        equity.append(info["equity"])
        ended = terminated or truncated
    evaluated = evaluate(runner, dataset.market, features, segment[None], environment).equity
    assert evaluated.tolist() == equity


def test_a_recurrent_policy_forgets_at_the_start_of_each_slice() -> None:
    dataset = synthetic.dataset()
    environment = synthetic.experiment().environment
    test = dataset.folds[0].test[1:]
    runner = untrained.policy(dataset, environment, kind="lstm")
    strategy = PolicyStrategy(runner)
    strategy.start(dataset, environment)
    account = Account.start(1, 1, environment.initial_equity)

    def decisions(first: int) -> list[Orders]:
        return [strategy.orders(first + step, account) for step in range(5)]

    starts = [int(a) + environment.window - 1 for a, _ in test]
    alone = decisions(starts[1])
    decisions(starts[0])
    after_another = decisions(starts[1])
    np.testing.assert_equal(after_another, alone)


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
    strategy = PolicyStrategy(untrained.policy(dataset, synthetic.experiment().environment))
    with pytest.raises(PolicyError, match=f"trained with {next(iter(change))}"):
        backtest(dataset, dataset.folds[0].test, environment, strategy)


def run(dataset: Dataset, strategy: Strategy) -> BacktestResult:
    return backtest(dataset, dataset.folds[0].test, synthetic.experiment().environment, strategy)


def long_once(dataset: Dataset, environment: EnvironmentSettings) -> PolicyRunner:
    """Goes long on the first bar of a slice and holds."""
    policy = untrained.policy(dataset, environment)
    weights = {
        name: np.zeros(shape, np.float32)
        for name, shape in weight_shapes(policy.specification["network"]).items()
    }
    exposure = environment.window * len(dataset.feature_names)
    weights["trunk.layers.0.weight"][0, exposure] = 1.0
    weights["action.weight"][0, 0] = 10.0  # hold what is held
    weights["action.bias"][2] = 1.0  # long
    return PolicyRunner(policy.specification, policy.normalizer, weights)


def test_a_slice_end_that_ruins_ends_backtest_and_evaluation_alike() -> None:
    dataset = synthetic.dataset()
    fee = {"kind": "per_share", "per_share": 0.0, "minimum": 60_000.0}
    environment = synthetic.experiment(environment={"costs": {"fee": fee}}).environment
    test = dataset.folds[0].test
    assert len(test) > 1
    policy = long_once(dataset, environment)
    result = backtest(dataset, test, environment, PolicyStrategy(policy))
    assert result.summary["terminated"]
    assert result.summary["fills"]["slice_end"] == 1
    assert result.row[-1] + 1 in test[:-1, 1]
    equity = evaluate(policy, dataset.market, policy.features(dataset), test, environment).equity
    assert equity.tolist() == result.equity.tolist()
    assert equity[-1] == 0.0
