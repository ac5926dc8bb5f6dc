"""Accounts side by side: room for a block of them, field by field, and the way there and back.

A processor does the same to eight numbers at once if they lie next to each other and no branch
tells them apart; and what agents do is too random for branches to be guessed. So the kernel copies
up to LANES accounts into a BLOCK and a HOLDING an instrument, whose fields are arrays over the
accounts, steps those, and copies them back. Who changes a loop over lanes keeps to this, or it is
compiled for one lane at a time: read every number before a condition chooses between numbers,
compute both sides of a choice for every lane, and let a lane that is not concerned write what it
had. Nothing that is computed for such a lane can raise. Start at `read_accounts`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.costs import fee_tier, fundings_between, remember_volume
from trade_pipeline.simulator.market import FloatArray, IntArray
from trade_pipeline.simulator.rules import Rules

LANES = 64
CACHE_LINE = 64

# Prices of a HOLDING: at the last close, then the next bar's, and its worst for the position.
NOW, OPEN, HIGH, LOW, CLOSE, EXTREME = range(6)


def _lanes(*names: str) -> list[tuple[str, Any, tuple[int, ...]]]:
    return [(name, np.float64, (LANES,)) for name in names]


# Most are those of BALANCE, the rates those of the fee tier; yes and no are 1 and 0.
BLOCK = np.dtype(
    [
        *_lanes("cash", "equity", "peak_equity", "fees", "slippage", "financing"),
        *_lanes("traded_notional", "fee_scale", "slippage_scale", "price_scale"),
        *_lanes("maker_rate", "taker_rate"),
        *_lanes("before"),  # equity before the step
        *_lanes("ambiguous"),  # how many more this step
        *_lanes("elapsed_ms", "fundings"),  # from close to close
        *_lanes("worth", "gross"),  # at the prices asked for last
        *_lanes("paid", "short", "wanted", "part", "flag"),  # sums and shares of a rule at work
        ("fills", np.int64, (LANES,)),  # how many so far
        ("chosen", np.int64, (LANES,)),  # lanes that a rule concerns, as many as it says
    ],
    align=True,
)
HOLDING = np.dtype(
    [
        *_lanes("quantity", "entry_price", "stop_price", "take_price"),  # those of POSITION
        ("price", np.float64, (6, LANES)),  # NOW to EXTREME
        *_lanes("volume", "funding", "traded"),  # of the next bar
        *_lanes("target_weight", "hold", "stop_fraction", "take_fraction"),  # of Orders
        *_lanes("target", "increase"),  # quantities
        *_lanes("set_now"),  # whether this bar's order set the levels
        *_lanes("trade", "at", "resting", "reason"),  # what `fill` is to trade; 0 is nothing
        *_lanes("fill_price", "fee", "slippage"),  # what came of it
        ("seen", np.float64, (5, LANES)),  # columns of the account vector
    ],
    align=True,
)


def room(threads: int, instruments: int) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """BLOCK [threads] and HOLDING [threads, N] to step in, each lane field in cache lines."""
    return _aligned((threads,), BLOCK), _aligned((threads, instruments), HOLDING)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[np.void]:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + size].view(dtype).reshape(shape)


@compiled
def clear(balance: Any) -> None:
    """Forget what the last step cost and traded."""
    balance.fees = 0.0
    balance.slippage = 0.0
    balance.financing = 0.0
    balance.traded_notional = 0.0


@compiled
def read_accounts(
    block: Any,
    holdings: Any,
    balances: Any,
    positions: Any,
    daily_volume: FloatArray,
    rules: Rules,
    bars: Any,
    row: IntArray,
    ahead: int,
) -> None:
    """Accounts into the lanes, with the bars that they step through.

    Args:
        block: BLOCK.
        holdings: HOLDING [N].
        balances: BALANCE of the block's accounts; fee tiers are chosen there.
        positions: POSITION [.., N] of those accounts.
        daily_volume: likewise.
        rules: costs and limits.
        bars: BAR [T, N].
        row: int64, the last closed row of each account.
        ahead: how many rows later the bar to trade on is: 1, or 0 to close out.
    """
    lanes = row.shape[0]
    # Little else in this loop, so that the processor waits for many accounts' bars at once.
    for k in range(lanes):
        block.elapsed_ms[k] = bars[row[k] + ahead, 0].close_ts - bars[row[k], 0].close_ts
    if rules.funding_rate != 0.0:
        for k in range(lanes):
            start_ms = bars[row[k], 0].close_ts
            end_ms = bars[row[k] + ahead, 0].close_ts
            block.fundings[k] = fundings_between(start_ms, end_ms, rules.funding_ms)
    maker_rate = rules.fee_tiers[0, 1]
    taker_rate = rules.fee_tiers[0, 2]
    for k in range(lanes):
        block.maker_rate[k] = maker_rate
        block.taker_rate[k] = taker_rate
    if rules.fee_tiers.shape[0] > 1:
        for k in range(lanes):
            if not balances[k].terminated:
                end_ms = bars[row[k] + ahead, 0].close_ts
                tier = fee_tier(balances[k], daily_volume, k, rules, end_ms)
                block.maker_rate[k] = rules.fee_tiers[tier, 1]
                block.taker_rate[k] = rules.fee_tiers[tier, 2]
    for k in range(lanes):
        balance = balances[k]
        block.before[k] = balance.equity
        block.cash[k] = balance.cash
        block.peak_equity[k] = balance.peak_equity
        block.fee_scale[k] = balance.fee_scale
        block.slippage_scale[k] = balance.slippage_scale
        block.price_scale[k] = balance.price_scale
    for k in range(lanes):
        block.fees[k] = 0.0
        block.slippage[k] = 0.0
        block.financing[k] = 0.0
        block.traded_notional[k] = 0.0
        block.ambiguous[k] = 0.0
        block.fills[k] = 0
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        for k in range(lanes):
            position = positions[k, n]
            holding.quantity[k] = position.quantity
            holding.entry_price[k] = position.entry_price
            holding.stop_price[k] = position.stop_price
            holding.take_price[k] = position.take_price
        for k in range(lanes):
            bar = bars[row[k] + ahead, n]
            holding.price[NOW, k] = bars[row[k], n].close
            holding.price[OPEN, k] = bar.open
            holding.price[HIGH, k] = bar.high
            holding.price[LOW, k] = bar.low
            holding.price[CLOSE, k] = bar.close
            holding.volume[k] = bar.volume
            holding.funding[k] = bar.funding
            holding.traded[k] = bar.traded
        for kind in range(NOW, CLOSE + 1):
            for k in range(lanes):
                holding.price[kind, k] *= block.price_scale[k]
        for k in range(lanes):
            holding.volume[k] /= block.price_scale[k]


@compiled
def write_accounts(
    block: Any,
    holdings: Any,
    balances: Any,
    positions: Any,
    daily_volume: FloatArray,
    counts: IntArray,
    rules: Rules,
) -> None:
    """The lanes back into their accounts, but for those that were ruined before.

    Args:
        block: BLOCK.
        holdings: HOLDING [N].
        balances: BALANCE of the block's accounts.
        positions: POSITION [.., N] of those accounts.
        daily_volume: likewise.
        counts: int64, becomes how many fills each account has.
        rules: costs and limits.
    """
    for k in range(counts.shape[0]):
        balance = balances[k]
        if balance.terminated:
            clear(balance)
            counts[k] = 0
            continue
        counts[k] = block.fills[k]
        balance.cash = block.cash[k]
        balance.equity = block.equity[k]
        balance.peak_equity = block.peak_equity[k]
        balance.fees = block.fees[k]
        balance.slippage = block.slippage[k]
        balance.financing = block.financing[k]
        balance.traded_notional = block.traded_notional[k]
        balance.ambiguous += int(block.ambiguous[k])
        remember_volume(balance, daily_volume, k, rules)
        for n in range(holdings.shape[0]):
            position = positions[k, n]
            holding = holdings[n]
            position.quantity = holding.quantity[k]
            position.entry_price = holding.entry_price[k]
            position.stop_price = holding.stop_price[k]
            position.take_price = holding.take_price[k]
        # No equity is ruin (5): the account is left as it is from now on.
        balance.terminated = block.equity[k] == 0.0
