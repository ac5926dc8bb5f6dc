"""What a policy earns on rows it was not trained on: the evaluation episodes.

The kernel and the policy run in one compiled loop; `backtest.engine` goes bar by bar and gives the
same equity, bit for bit.
Start at `evaluate`.
"""

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.simulator.kernel import Account, Fills, Market, Rules, close_out
from trade_pipeline.training.policy import PolicyRunner, Traded
from trade_pipeline.training.splits import Rows, long_enough


def evaluate(
    runner: PolicyRunner,
    market: Market,
    features: NDArray[np.float32],
    segments: Rows,
    environment: EnvironmentSettings,
) -> Traded:
    """Run each slice as one episode, equity carried over; ruin ends the run.

    Args:
        runner: the policy.
        market: T bars.
        features: float32 [T, N * F], scaled by the policy's normalizer.
        segments: int64 [K, 2] slices; those too short for the window are left out.
        environment: window, costs, limits, initial equity.

    Returns:
        Equity [n + 1] before the first step and after each, and how many fills.
    """
    rules = Rules.of(environment, market.instruments)
    mapping = mapping_for(environment, market.instruments)
    account = Account.start(1, market.instruments, environment.initial_equity)
    fills = Fills.empty(1, market.instruments)
    slices = long_enough(segments, environment.window).tolist()
    equity, filled = [np.array([environment.initial_equity])], 0
    for number, (a, b) in enumerate(slices):
        runner.reset()
        rows = (a + environment.window - 1, b - 1)
        traded = runner.trade(account, market, features, rows, rules, mapping)
        equity.append(traded.equity)
        filled += traded.fills
        if not account.terminated[0] and number < len(slices) - 1:
            close_out(account, market, np.array([b - 1]), rules, fills)
            equity[-1][-1] = account.equity[0]
            filled += int(fills.count[0])
        if account.terminated[0]:
            break
    return Traded(np.concatenate(equity), filled)
