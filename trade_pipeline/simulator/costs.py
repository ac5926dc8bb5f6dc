"""What a fill costs: slippage, fees and the tier that past volume has earned.

Compiled functions on plain numbers, which serve any number of accounts side by side, and on one
account's BALANCE record. Numbers in comments are sections of docs/simulator.md. Start at `fee_of`.
"""

import math
from typing import Any

import numpy as np

from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.market import FloatArray
from trade_pipeline.simulator.rules import Rules
from trade_pipeline.simulator.state import VOLUME_DAYS

DAY_MS = 86_400_000


@compiled
def to_lot(quantity: float, lot_size: float) -> float:
    """Rounded toward zero to a multiple of the lot; lot 0 leaves it."""
    return np.trunc(quantity / lot_size) * lot_size if lot_size > 0 else quantity


@compiled
def slippage_fraction(scale: float, rules: Rules, size: float, volume: float) -> float:
    """How much worse than the market's price a trade of that size fills (2)."""
    fraction = rules.slippage
    if rules.impact > 0:
        share = size / volume if size < volume else 1.0
        fraction += rules.impact * math.sqrt(share)
    return scale * fraction


@compiled
def fee_of(scale: float, rate: float, rules: Rules, size: float, notional: float) -> float:
    """What a fill pays at that rate (2)."""
    fee = rate * notional
    if rules.fee_per_share > 0:
        fee += rules.fee_per_share * size
    if rules.fee_minimum > 0:
        fee = max(fee, rules.fee_minimum)
    if rules.fee_maximum_fraction < np.inf:
        fee = min(fee, rules.fee_maximum_fraction * notional)
    return scale * fee


@compiled
def fundings_between(start_ms: int, end_ms: int, every_ms: int) -> int:
    """How many multiples of `every_ms` lie in [start, end)."""
    return (end_ms - 1) // every_ms - (start_ms - 1) // every_ms


@compiled
def fee_tier(balance: Any, daily_volume: FloatArray, e: int, rules: Rules, close_ts: int) -> int:
    """Which tier the volume of the last 30 days has earned (2), where there are several."""
    tiers = rules.fee_tiers
    day = close_ts // DAY_MS
    passed = min(day - balance.volume_day, VOLUME_DAYS)
    for k in range(passed):
        daily_volume[e, (day - k) % VOLUME_DAYS] = 0.0
    balance.volume_day = day
    volume = 0.0
    for k in range(VOLUME_DAYS):
        volume += daily_volume[e, k]
    tier = 0
    while tier + 1 < tiers.shape[0] and tiers[tier + 1, 0] <= volume:
        tier += 1
    return tier


@compiled
def remember_volume(balance: Any, daily_volume: FloatArray, e: int, rules: Rules) -> None:
    """Count what the step traded towards its day."""
    if rules.fee_tiers.shape[0] > 1:
        daily_volume[e, balance.volume_day % VOLUME_DAYS] += balance.traded_notional
