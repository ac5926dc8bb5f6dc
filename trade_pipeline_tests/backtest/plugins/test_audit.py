"""No shipped rule looks ahead, and a strategy that does is found with row and instrument."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trade_pipeline.backtest.plugins.audit import audit_strategy, beginning, excerpt
from trade_pipeline.backtest.protocol import Plan, PlannedRule, Strategy
from trade_pipeline.backtest.strategies import PolicyStrategy, StrategyError, baseline
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import Account, Orders
from trade_pipeline.training.dataset import Dataset
from trade_pipeline_tests.backtest.rule_markets import environment, market
from trade_pipeline_tests.backtest.test_engine_compiled import EVERY
from trade_pipeline_tests.training import synthetic, untrained

KEYS = (("demo.A.1h",), ("demo.A.1h", "demo.B.1h"))
DATASET, PAIR = (synthetic.dataset(keys) for keys in KEYS)
ENVIRONMENT = synthetic.experiment().environment


@pytest.mark.parametrize("keys", KEYS, ids=["one", "two"])
@pytest.mark.parametrize("settings", EVERY, ids=lambda one: one.kind)
def test_no_shipped_rule_looks_ahead(settings: Any, keys: tuple[str, ...]) -> None:
    dataset = DATASET if len(keys) == 1 else PAIR
    environment = synthetic.experiment(keys).environment
    strategy = baseline(settings)
    assert isinstance(strategy, PlannedRule)
    assert not audit_strategy(strategy, dataset, environment)
    whole = strategy.decide(dataset, environment)
    for rows in range(1, len(dataset.ts), 5):
        plan = strategy.decide(beginning(dataset, rows), environment)
        for mine, other in zip(plan, whole, strict=True):
            if other is not None:
                assert np.array_equal(mine, other[:rows], equal_nan=other.dtype != np.bool_), rows


def test_no_policy_looks_ahead() -> None:
    runner = untrained.policy(DATASET, ENVIRONMENT, 2, "lstm")
    assert not audit_strategy(PolicyStrategy(runner), DATASET, ENVIRONMENT, [40, 300, 470])


class Asked:
    """Long or flat bar by bar, by a function of the dataset and the row."""

    name = "asked"

    def __init__(self, above: Callable[[Dataset, int], Any]) -> None:
        self._above = above

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        self._dataset = dataset

    def orders(self, row: int, account: Account) -> Orders:
        none = np.full((1, len(self._dataset.instruments)), np.nan)
        long = np.asarray(self._above(self._dataset, row), np.float64).reshape(none.shape)
        return Orders(long, np.zeros(none.shape, np.bool_), none, none)


class Planned(PlannedRule):
    """The same ahead, by a function of the dataset alone."""

    name = "planned"

    def __init__(self, weights: Callable[[Dataset], Any]) -> None:
        self._weights = weights

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        weights = np.array(self._weights(dataset), np.float64)
        return Plan(weights, np.zeros(weights.shape, np.bool_))


def next_close(dataset: Dataset, row: int) -> Any:
    later = min(row + 1, len(dataset.ts) - 1)
    return dataset.close[later] > dataset.close[row]


def test_a_look_at_the_next_close_is_found_on_the_last_row() -> None:
    found = audit_strategy(Asked(next_close), DATASET, ENVIRONMENT)
    assert len(found) > 2
    for one in found:
        assert one.row == one.rows - 1
        assert DATASET.close[one.row + 1, 0] > DATASET.close[one.row, 0]
        assert (one.instrument, one.what) == ("demo.A.1h", "the order's target_weight")
        assert (one.prefix, one.whole) == (0.0, 1.0)
        assert one.time.timestamp() * 1000 == DATASET.close_ts[one.row]
    said = str(found[0])
    for word in (
        f"on row {found[0].row} (2021-01",
        "target_weight of demo.A.1h is 0",
        "but 1 when",
    ):
        assert word in said


def test_the_instrument_at_fault_is_named() -> None:
    def cheat(dataset: Dataset, row: int) -> Any:
        return [0.5, next_close(dataset, row)[1] / 2]

    found = audit_strategy(Asked(cheat), PAIR, synthetic.experiment(KEYS[1]).environment)
    assert {one.instrument for one in found} == {"demo.B.1h"}


@pytest.mark.parametrize(
    "weights",
    [
        lambda dataset: np.append(dataset.close[1:] > dataset.close[:-1], [[False]], axis=0),
        lambda dataset: dataset.close < dataset.close.mean(axis=0),
        lambda dataset: (dataset.close - dataset.close.min()) / np.ptp(dataset.close),
        lambda dataset: np.full(dataset.close.shape, len(dataset.folds[0].test) / 10),
    ],
    ids=["next close", "mean of all", "range of all", "folds"],
)
def test_a_plan_that_looks_ahead_is_found(weights: Callable[[Dataset], Any]) -> None:
    found = audit_strategy(Planned(weights), DATASET, ENVIRONMENT)
    assert found
    assert {one.what for one in found} == {"the plan's weights"}
    assert all(one.row < one.rows for one in found)


WALK = market(100 * np.exp(np.random.default_rng(0).normal(0, 0.01, 20_000).cumsum()))
LONG_ONLY = environment(actions={"kind": "weights"})


def leaking(every: int, ahead: int, until: int = 20_000) -> Callable[[Dataset], Any]:
    """Weights that tell whether a later close is higher, on every so many rows up to one."""

    def weights(seen: Dataset) -> Any:
        number = (seen.ts - WALK.ts[0]) // synthetic.HOUR_MS
        later = np.zeros(seen.close.shape)
        rows = np.flatnonzero((number % every == 0) & (number < until))
        rows = rows[rows + ahead < len(seen.ts)]
        later[rows] = seen.close[rows + ahead] > seen.close[rows]
        return later

    return weights


@pytest.mark.parametrize("every, ahead", [(10, 1), (63, 1), (97, 5), (250, 64)])
def test_a_leak_on_few_rows_is_found_asked_or_planned(every: int, ahead: int) -> None:
    dataset = excerpt(WALK, 0, 2223)
    weights = leaking(every, ahead)
    asked = Asked(lambda seen, row: weights(seen)[row])
    for strategy in (Planned(weights), asked):
        found = audit_strategy(strategy, dataset, LONG_ONLY)
        assert found
        for one in found:
            assert one.row % every == 0 and one.rows - ahead <= one.row < one.rows
            assert dataset.close[one.row + ahead, 0] > dataset.close[one.row, 0]
            assert one.time.timestamp() * 1000 == dataset.close_ts[one.row]


def test_a_leak_far_from_the_stretch_is_found() -> None:
    found = audit_strategy(Planned(leaking(30, 5, until=8_000)), WALK, LONG_ONLY)
    assert found and all(one.row < 8_000 for one in found)


def test_orders_are_audited_beside_a_clean_plan() -> None:
    class Both(Asked):
        def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
            return Plan(np.zeros(dataset.close.shape), np.ones(dataset.close.shape, np.bool_))

    found = audit_strategy(Both(next_close), DATASET, ENVIRONMENT)
    assert {one.what for one in found} == {"the order's target_weight"}


def test_a_strategy_that_needs_later_rows_to_exist_is_found() -> None:
    def beyond(dataset: Dataset, row: int) -> Any:
        return dataset.close[row + 1] > dataset.close[row] if row + 1 < 558 else [0.0]

    found = audit_strategy(Asked(beyond), DATASET, ENVIRONMENT, [100])
    (one,) = found
    assert (one.row, one.instrument) == (99, "")
    assert "with the data ending at row 99" in str(one) and "IndexError" in str(one)


class Remembering(Asked):
    """Counts bars that closed higher since it started, and sells after three."""

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        super().start(dataset, environment)
        self._seen = 0

    def orders(self, row: int, account: Account) -> Orders:
        self._seen += int(self._dataset.close[row, 0] > self._dataset.close[row - 1, 0])
        given = super().orders(row, account)
        return given._replace(target_weight=np.full((1, 1), float(self._seen % 4 < 3)))


def test_an_honest_strategy_with_a_memory_passes() -> None:
    strategy = Remembering(lambda dataset, row: [0.0])
    assert not audit_strategy(strategy, DATASET, ENVIRONMENT)


def test_randomness_without_a_seed_is_told_apart() -> None:
    generator = np.random.default_rng(0)
    strategies: list[Strategy] = [
        Asked(lambda dataset, row: generator.random(1)),
        Planned(lambda dataset: generator.random(dataset.close.shape)),
    ]
    for strategy in strategies:
        with pytest.raises(
            StrategyError, match=r"decides otherwise when it is started again.*seed"
        ):
            audit_strategy(strategy, DATASET, ENVIRONMENT)


def test_an_account_is_only_read() -> None:
    class Thief(Asked):
        def orders(self, row: int, account: Account) -> Orders:
            account.cash[:] += 1000.0
            return super().orders(row, account)

    with pytest.raises(StrategyError, match="changes its account on row"):
        audit_strategy(Thief(lambda dataset, row: [0.0]), DATASET, ENVIRONMENT)


@pytest.mark.parametrize("rows", [0, 558, -3])
def test_a_beginning_outside_the_dataset_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=f"rows {rows} must lie in 1 to 557"):
        audit_strategy(baseline(EVERY[0]), DATASET, ENVIRONMENT, [rows])


def test_a_beginning_holds_nothing_of_later_rows() -> None:
    cut = beginning(DATASET, 420)
    assert cut.segments.tolist() == [[0, 397], [397, 420]]
    assert cut.folds[0].test.tolist() == [[394, 397], [397, 420]]
    assert cut.market.rows == len(cut.features) == len(cut.close_ts) == 420


def test_an_excerpt_holds_nothing_of_rows_around_it() -> None:
    cut = excerpt(DATASET, 395, 460)
    assert cut.segments.tolist() == [[0, 2], [2, 59], [59, 65]]
    assert cut.folds[0].test.tolist() == [[0, 2], [2, 59], [59, 65]]
    np.testing.assert_array_equal(cut.close, DATASET.close[395:460])
