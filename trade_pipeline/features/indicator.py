"""What an indicator is: what it reads, how far back it looks, how it is computed.

Pure functions over arrays of one segment's bars; they know nothing of frames, files or sets. The
ones that ship are in `features.indicators`; others come as plug-ins. Start at `Indicator`.

Two rules keep them honest. **Causal:** value `i` reads bars up to `i` only, to the last bit.
**Lookback:** a value computed from the `lookback` bars before its own agrees with one computed
from all history. Windows forget exactly (rounding aside). A recursive average never forgets
wholly: its lookback is where older bars weigh 1e-6 (EMA 26: 180 bars, Wilder 14: 187). On real
daily and minute bars that comes to less than 1e-4 of a column's standard deviation.

Outputs do not depend on the price level. Warm-up is NaN; whatever follows is finite, also where
the price stands still or nothing trades (each function says what it gives there).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from trade_pipeline.settings.base import Settings

Array = NDArray[np.float64]
Bars = Mapping[str, Array]
Period = Annotated[int, Field(strict=True, ge=2, le=10_000, description="In bars.")]
Parameters = TypeVar("Parameters", bound=Settings)

PRICES_AND_VOLUME = ("open", "high", "low", "close", "volume")
TIMES = ("ts", "close_ts")
FORGOTTEN_WEIGHT = 1e-6


def no_references(_parameters: Any) -> tuple[str, ...]:
    """Other series that most indicators read: none."""
    return ()


@dataclass(frozen=True)
class Indicator(Generic[Parameters]):
    """Specification of one indicator.

    Attributes:
        name: what a feature set calls it.
        parameters: closed model of its parameters.
        inputs: columns it reads: open, high, low, close and volume (adjusted), ts and close_ts (ms
            since 1970 UTC: when the bar opens, and when it is known).
        outputs: names of its columns, holding every parameter that tells two uses apart.
        lookback: bars before a value's own that the value may depend on, 0 or more.
        compute: inputs [T] float64 to outputs [T] float64, NaN during warm-up. Never writes to
            its inputs, accepts any T.
        implementation: raised when the same inputs and parameters give other values.
        references: keys of other series it reads; their prices and volume, as far as they are
            among the inputs, come beside its own under `reference_column`.
    """

    name: str
    parameters: type[Parameters]
    inputs: tuple[str, ...]
    outputs: Callable[[Parameters], tuple[str, ...]]
    lookback: Callable[[Parameters], int]
    compute: Callable[[Bars, Parameters], dict[str, Array]]
    implementation: int = 1
    references: Callable[[Parameters], tuple[str, ...]] = no_references


def reference_column(column: str, series: str) -> str:
    """Name among the inputs of another series' column: its latest bar that has closed by then.

    >>> reference_column("close", "sample.MSFT.1d")
    'close@sample.MSFT.1d'
    """
    return f"{column}@{series}"


def forgetting(*alphas: float) -> int:
    """Bars after which a chain of exponential averages weighs older bars at most 1e-6.

    For one average this is ceil(ln 1e-6 / ln(1 - alpha)).

    Args:
        alphas: smoothing factors between 0 and 1; each average reads the one before it.

    >>> forgetting(2 / 27), forgetting(1 / 14), forgetting(2 / 27, 2 / 10)
    (180, 187, 185)
    """
    weights = [1.0] * len(alphas)
    bars = 0
    while max(weights) > FORGOTTEN_WEIGHT:
        bars += 1
        older = 0.0
        for position, alpha in enumerate(alphas):
            weights[position] = (1 - alpha) * weights[position] + alpha * older
            older = weights[position]
    return bars


def talib(expression: pl.Expr, **columns: Array) -> Array:
    """Evaluate one polars-talib expression over [T] arrays; gives a writable [T] float64."""
    result = pl.DataFrame(columns).select(expression.alias("result"))["result"]
    return np.array(result.to_numpy(), dtype=np.float64)
