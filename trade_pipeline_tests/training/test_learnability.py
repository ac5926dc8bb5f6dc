"""What PPO finds where there is something to find, and that it finds nothing in noise.

*The market.* Simple returns of either sign are equally likely, so prices are a martingale: before
costs every strategy that does not know the future earns zero on average. Six bars of ten are calm
(moves of up to 2 bp), four are busy (30 to 60 bp). A bar opens where the last one closed, so an
order earns the bar after the one it was decided on, and costs 6 bp a side: to flip costs 12.

*The signal*, the only feature, is on a leaking row the next bar's return and on any other an
independent draw of the same distribution. Nothing else differs between a market that leaks and
one of pure noise: prices, costs, network and PPO's settings are the same objects.

*The oracle* knows all prices of the test part. A dynamic programme over the three positions gives
its orders, and these go through the same simulator. It bounds every strategy: a test tries all
sequences of actions on short stretches. PPO sees one bar ahead, not all. The best rule for that is
known exactly, because returns are symmetric and independent: go with a next return of more than
6 bp (the cost of one side), otherwise keep what is held. It reaches 97 to 98 % of the oracle's
return; a rule blind to costs reaches 66 to 75 %.

*The statistic* is the lower one-sided 95 % confidence bound (Student's t) of the mean return out of
sample. Seeds share their market and are averaged first; the 8 markets are the independent units.
On noise greedy policies enter once and hold, long or short by chance, and that is what is averaged.
A change of the random streams draws the statistic anew, and up to one draw in twenty lies above
zero by chance alone: repeat such a result on fresh market numbers before believing it.

Everything is trained by `train` on the training part and run by `backtest`, greedy, on a test part
that was never trained on. Market m draws from `default_rng([m, 0])` (prices) and `[m, 1]` (signal);
policies have seeds 0 to 7 on noise, and seed m where a market has one.
"""

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from trade_pipeline.backtest.engine import BacktestResult, backtest
from trade_pipeline.backtest.strategies import PolicyStrategy
from trade_pipeline.settings.experiment import Trial
from trade_pipeline.simulator.actions import FLAT, HOLD, LONG, SHORT, mapping_for
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline.training.trainer import train
from trade_pipeline_tests.training import synthetic

MARKETS, SEEDS = range(8), range(8)
ROWS = 4_000
LEAK, HALF_A_LEAK, NOISE = 1.0, 0.5, 0.0  # share of rows on which the signal is the next return

COSTS: dict[str, Any] = {"fee": {"kind": "flat", "bps": 5}, "slippage": {"kind": "fixed", "bps": 1}}
COST = 6e-4  # both, as a fraction of what is traded
CHANGES: dict[str, Any] = {
    "splits": {"kind": "fraction", "train": 0.8, "validation": 0.01, "test": 0.19},
    "environment": {
        "window": 4,
        "episode_bars": 100,
        "costs": COSTS,
        "actions": {"kind": "brackets"},  # hold, flat, long, short; all equity, no stops
    },
    "algorithm": {
        "kind": "ppo",
        "total_frames": 40_960,
        "environments": 128,
        "rollout_steps": 16,
        "batch_size": 512,
        "epochs": 4,
        "learning_rate": 1e-3,
        "gamma": 0.9,  # the signal reaches one bar ahead
        "entropy_coefficient": 0.01,
        "reward_scale": 100.0,
        "evaluation": {"keep": "last"},  # 32 rows of validation would choose by luck
        "network": {"kind": "mlp", "hidden": [32, 32], "activation": "tanh", "shared": True},
    },
}
ENVIRONMENT, ALGORITHM = synthetic.experiment(**CHANGES).variant("base")
MAPPING = mapping_for(ENVIRONMENT, 1)

# Quantile 0.95 of Student's t with 7 degrees of freedom, for 8 markets.
T_QUANTILE = 1.894579
POSITIONS = np.array([0.0, 1.0, -1.0])  # flat, long, short: in the order of their directions
DIRECTIONS = (FLAT, LONG, SHORT)

FloatArray = NDArray[np.float64]


class Outcome(NamedTuple):
    """What a policy did on the test part; `trades` counts positions opened, flips included."""

    earned: float
    trades: int


class Plan:
    """Takes given directions, one a row from `first` on."""

    name = "plan"

    def __init__(self, first: int, directions: list[int]) -> None:
        self._directions = dict(enumerate(directions, first))

    def start(self, dataset: Dataset, environment: Any) -> None:
        pass

    def orders(self, row: int, account: Any) -> Any:
        return MAPPING.to_orders(np.array([[self._directions[row], 0, 0, 0]]))


def returns(rng: np.random.Generator, count: int) -> FloatArray:
    """Simple returns of the market, symmetric and independent."""
    busy = rng.random(count) < 0.4
    size = np.where(busy, rng.uniform(30e-4, 60e-4, count), rng.uniform(0, 2e-4, count))
    return rng.choice([-1.0, 1.0], count) * size


def market(number: int, leak: float) -> Dataset:
    """Market `number`: the same prices for every `leak`, the share of rows that leak."""
    base = synthetic.dataset(lengths=(ROWS,), **CHANGES)
    rows = len(base.ts)
    moves = returns(np.random.default_rng([number, 0]), rows + 1)
    rng = np.random.default_rng([number, 1])
    signal = np.where(rng.random(rows) < leak, moves[1:], returns(rng, rows))
    closes = 100 * np.cumprod(1 + moves[:rows])[:, None]
    opens = np.concatenate([[[100.0]], closes[:-1]])
    return replace(
        base,
        open=opens,
        high=np.maximum(opens, closes),
        low=np.minimum(opens, closes),
        close=closes,
        volume=np.full((rows, 1), 1_000.0),
        traded=np.ones((rows, 1), np.bool_),
        features=signal.astype(np.float32)[:, None, None],
        feature_names=("signal",),
    )


@cache
def out_of_sample(number: int, leak: float, seed: int) -> Outcome:
    """Train a policy and run it greedily over the test part."""
    dataset = market(number, leak)
    with TemporaryDirectory() as store:
        trained = train(
            dataset=dataset,
            environment=ENVIRONMENT,
            algorithm=ALGORITHM,
            trial=Trial(f"base.f0.s{seed}", "base", 0, seed),
            staging=ArtifactLocation(Path(store), "policy"),
            report=lambda progress: None,
            clock=monotonic,
            tensorboard=False,
        )
        policy = PolicyStrategy(PolicyRunner.load(trained.reference.location))
    result = backtest(dataset, dataset.folds[0].test, ENVIRONMENT, policy)
    return Outcome(earned(result), trades(result))


def earned(result: BacktestResult) -> float:
    return float(result.equity[-1] / result.equity[0] - 1)


def trades(result: BacktestResult) -> int:
    """How many positions were opened; topping up a position opens none."""
    side = np.sign(np.cumsum(result.fills["quantity"].to_numpy()).round(6))
    return int(np.count_nonzero((np.diff(side, prepend=0) != 0) & (side != 0)))


def follow(dataset: Dataset, directions: list[int], part: tuple[int, int]) -> float:
    """What directions earn on the rows [a, b), one for each decision."""
    plan = Plan(part[0] + ENVIRONMENT.window - 1, directions)
    return earned(backtest(dataset, np.array([part]), ENVIRONMENT, plan))


def decided_on(dataset: Dataset, part: tuple[int, int]) -> slice:
    """The rows of [a, b) after whose close something is decided."""
    return slice(part[0] + ENVIRONMENT.window - 1, part[1] - 1)


def foresight(dataset: Dataset, part: tuple[int, int]) -> list[int]:
    """The oracle: directions that end richest, by a dynamic programme from the last bar back."""
    decisions = decided_on(dataset, part)
    closes = dataset.close[decisions.start : decisions.stop + 1, 0]
    costs = np.log1p(-COST * np.abs(POSITIONS[:, None] - POSITIONS))  # [from, to]
    value = np.zeros(len(POSITIONS))
    choices = []
    for move in (closes[1:] / closes[:-1] - 1)[::-1]:
        worth = costs + np.log1p(POSITIONS * move) + value
        choices.append(worth.argmax(axis=1))
        value = worth.max(axis=1)
    directions, held = [], 0
    for choice in reversed(choices):
        held = choice[held]
        directions.append(DIRECTIONS[held])
    return directions


def rows_of_test(dataset: Dataset) -> tuple[int, int]:
    ((first, end),) = dataset.folds[0].test.tolist()
    return first, end


def lower_bound(returns_by_market: FloatArray) -> float:
    """Lower one-sided 95 % confidence bound of the mean; float64 [markets, seeds]."""
    by_market = returns_by_market.mean(axis=1)
    error = by_market.std(ddof=1) / np.sqrt(len(by_market))
    return float(by_market.mean() - T_QUANTILE * error)


@pytest.mark.parametrize("number", MARKETS)
def test_no_sequence_of_actions_beats_the_oracle(number: int) -> None:
    dataset = market(number, LEAK)
    first, _ = rows_of_test(dataset)
    part = first, first + ENVIRONMENT.window + 5
    every = product((HOLD, *DIRECTIONS), repeat=5)
    best = max(follow(dataset, list(directions), part) for directions in every)
    assert best > 0
    # To the cost of keeping a short at its weight: on a bar, 6 bp of twice its return.
    assert follow(dataset, foresight(dataset, part), part) >= best - 5 * COST * 0.012


@pytest.mark.parametrize("number", MARKETS)
def test_costs_must_be_learned_to_come_near_the_oracle(number: int) -> None:
    dataset = market(number, LEAK)
    part = rows_of_test(dataset)
    oracle = follow(dataset, foresight(dataset, part), part)
    ahead = dataset.features[decided_on(dataset, part), 0, 0]

    def share(threshold: float) -> float:
        """Of the oracle's return: go with a next return of more than this, otherwise hold."""
        sides = np.where(ahead > 0, LONG, SHORT)
        directions = np.where(abs(ahead) > threshold, sides, HOLD).tolist()
        return follow(dataset, directions, part) / oracle

    assert share(0) < 0.8
    assert 0.95 < share(COST) < 1


@pytest.mark.parametrize("number", MARKETS)
def test_ppo_earns_nine_tenths_of_the_oracle_out_of_sample_where_features_leak_the_future(
    number: int,
) -> None:
    dataset = market(number, LEAK)
    part = rows_of_test(dataset)
    oracle = follow(dataset, foresight(dataset, part), part)
    policy = out_of_sample(number, LEAK, number)
    print(
        f"market {number}: {policy.earned:.1%} in {policy.trades} trades, oracle {oracle:.1%}: "
        f"{policy.earned / oracle:.1%}"
    )
    assert policy.earned >= 0.9 * oracle


@pytest.mark.parametrize(
    ("leak", "far"), [(LEAK, 1.0), (HALF_A_LEAK, 0.1)], ids=["leak", "half_a_leak"]
)
def test_the_bound_is_far_above_zero_where_features_leak_the_future(
    leak: float, far: float
) -> None:
    found = np.array([[out_of_sample(number, leak, number).earned] for number in MARKETS])
    print(
        f"{leak:.0%} of rows leak: mean return {found.mean():.1%}, lower 95 % bound "
        f"{lower_bound(found):.1%}"
    )
    assert lower_bound(found) > far


def test_the_mean_return_out_of_sample_on_pure_noise_is_not_above_zero() -> None:
    found = [[out_of_sample(number, NOISE, seed) for seed in SEEDS] for number in MARKETS]
    earnings = np.array([[policy.earned for policy in one] for one in found])
    counts = np.array([[policy.trades for policy in one] for one in found])
    bound = lower_bound(earnings)
    report = (
        f"mean return {earnings.mean():.2%}, lower 95 % bound {bound:.2%}; of {counts.size} "
        f"policies {np.count_nonzero(counts == 0)} never trade, {np.count_nonzero(counts > 1)} "
        f"trade more than once; trades: median {np.median(counts):g}, most {counts.max()}"
    )
    print(report)
    print("mean return of each market:", *(f"{one:.2%}" for one in earnings.mean(axis=1)))
    print("trades of each policy, a market a line:", counts, sep="\n")
    assert counts.any(), f"no policy ever trades, so nothing was tested: {report}"
    assert bound <= 0, report
