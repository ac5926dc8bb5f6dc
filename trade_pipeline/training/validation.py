"""What a policy earns on rows it was not trained on: the evaluation episodes.

Steps the environments, as training does; `backtest.engine` gives the same equity, bit for bit.
Start at `evaluation_equity`.
"""

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.settings.environment import (
    EnvironmentSettings,
    PlainTerm,
    UniformStarts,
)
from trade_pipeline.simulator.actions import BracketMapping
from trade_pipeline.simulator.env import PortfolioEnv, TradingEnv
from trade_pipeline.simulator.kernel import Account, Market
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline.training.splits import Rows, long_enough


def evaluation_equity(
    runner: PolicyRunner,
    market: Market,
    features: NDArray[np.float32],
    segments: Rows,
    environment: EnvironmentSettings,
) -> NDArray[np.float64]:
    """Run each slice as one episode, equity carried over; ruin ends the run.

    Args:
        runner: the policy.
        market: T bars.
        features: float32 [T, N * F], scaled by the policy's normalizer.
        segments: int64 [K, 2] slices; those too short for the window are left out.
        environment: window, costs, limits, initial equity.

    Returns:
        float64 [n + 1] equity before the first step and after each.
    """
    slices = [(int(a), int(b)) for a, b in long_enough(segments, environment.window)]
    kind = TradingEnv if environment.actions.kind == "brackets" else PortfolioEnv
    # Neither where training episodes begin nor what they are rewarded for matters here.
    plain = {"starts": UniformStarts(), "reward": (PlainTerm(term="log_return"),)}
    evaluated = environment.model_copy(update=plain)
    episodes = kind(market, features, np.array(slices), evaluated)
    equity = [environment.initial_equity]
    account: Account | None = None
    for segment in slices:
        seen, _ = episodes.reset(options={"segment": segment, "account": account})
        ended = False
        while not ended:
            action = runner.act(seen)
            mapping = episodes.mapping
            seen, _, ruined, truncated, info = episodes.step(
                mapping.to_dict(action) if isinstance(mapping, BracketMapping) else action
            )
            equity.append(info["equity"])
            ended = ruined or truncated
        if ruined:
            break
        if segment != slices[-1]:
            episodes.close_out()
            equity[-1] = float(episodes.account.equity[0])
            if equity[-1] == 0.0:
                break
        account = episodes.account
    return np.array(equity)
