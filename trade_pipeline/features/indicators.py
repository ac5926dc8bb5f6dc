"""The indicators that ship: what each needs, how far back it looks, how it is computed.

Pure functions over arrays of one segment's bars; they know nothing of frames, files, series or
sets. Start at `SHIPPED`; a new indicator is one more `Indicator`.

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
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import polars as pl
import polars_talib
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from trade_pipeline.settings.base import Settings

Array = NDArray[np.float64]
Bars = Mapping[str, Array]
Period = Annotated[int, Field(ge=2, le=10_000, description="In bars.")]
Parameters = TypeVar("Parameters", bound=Settings)

FORGOTTEN_WEIGHT = 1e-6


@dataclass(frozen=True)
class Indicator(Generic[Parameters]):
    """Specification of one indicator.

    Attributes:
        name: what a feature set calls it.
        parameters: closed model of its parameters.
        inputs: columns it reads, of open, high, low, close, volume.
        outputs: names of its columns, holding every parameter that tells two uses apart.
        lookback: bars before a value's own that the value may depend on.
        compute: inputs [T] float64 to outputs [T] float64, NaN during warm-up. Never writes to
            its inputs, accepts any T.
        implementation: raised when the same inputs and parameters give other values.
    """

    name: str
    parameters: type[Parameters]
    inputs: tuple[str, ...]
    outputs: Callable[[Parameters], tuple[str, ...]]
    lookback: Callable[[Parameters], int]
    compute: Callable[[Bars, Parameters], dict[str, Array]]
    implementation: int = 1


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


class ReturnsParameters(Settings):
    """Parameters of `returns`."""

    horizons: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        default=(1,), min_length=1, description="Bars back, one column each."
    )
    kind: Literal["simple", "log"] = "simple"

    @field_validator("horizons")
    @classmethod
    def _unique(cls, horizons: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(horizons)) != len(horizons):
            raise ValueError("horizons must be unique")
        return horizons


class PeriodParameters(Settings):
    """Parameters of `rsi` and `atr`."""

    period: Period = 14


class WindowParameters(Settings):
    """Parameters of `sma_ratio` and `volume_zscore`."""

    period: Period = 20


class MacdParameters(Settings):
    """Parameters of `macd`: periods of its three exponential averages."""

    fast: Period = 12
    slow: Period = 26
    signal: Period = 9

    @model_validator(mode="after")
    def _fast_is_faster(self) -> "MacdParameters":
        # TA-Lib would swap the two silently, and the column's name would be wrong.
        if self.fast >= self.slow:
            raise ValueError(f"fast {self.fast} must be below slow {self.slow}")
        return self


class StochasticParameters(Settings):
    """Parameters of `stochastic`: the range's window and the two smoothing windows."""

    period: Period = 14
    k: int = Field(default=3, ge=1, le=10_000, description="Bars of the mean that gives %K.")
    d: int = Field(default=3, ge=1, le=10_000, description="Bars of the mean that gives %D.")


def _returns(bars: Bars, parameters: ReturnsParameters) -> dict[str, Array]:
    """Change of the close over each horizon, as a fraction; 0 at a constant price."""
    close = bars["close"]
    columns = {}
    for name, horizon in zip(_return_names(parameters), parameters.horizons, strict=True):
        growth = close[horizon:] / close[:-horizon]
        column = np.full(close.size, np.nan)
        column[horizon:] = np.log(growth) if parameters.kind == "log" else growth - 1
        columns[name] = column
    return columns


def _return_names(parameters: ReturnsParameters) -> tuple[str, ...]:
    prefix = "log_return" if parameters.kind == "log" else "return"
    return tuple(f"{prefix}_{horizon}" for horizon in parameters.horizons)


def _rsi(bars: Bars, parameters: PeriodParameters) -> dict[str, Array]:
    """Wilder's relative strength, 0 to 100; 50 once the close stood still for three periods.

    TA-Lib keeps the last ratio as long as nothing moves, though it rests on ever older bars until
    it depends on nothing within the lookback; and it gives 0 where nothing has moved yet.
    """
    close = bars["close"]
    column = _talib(polars_talib.rsi(pl.col("close"), timeperiod=parameters.period), close=close)
    still = 3 * parameters.period
    moves = np.concatenate([[0], np.cumsum(close[1:] != close[:-1])])[: close.size]
    column[still:][moves[still:] == moves[:-still]] = 50.0
    return {f"rsi_{parameters.period}": column}


def _sma_ratio(bars: Bars, parameters: WindowParameters) -> dict[str, Array]:
    """Close over its simple moving average, minus one; 0 at a constant price."""
    mean = _talib(
        polars_talib.sma(pl.col("close"), timeperiod=parameters.period), close=bars["close"]
    )
    return {f"sma_ratio_{parameters.period}": bars["close"] / mean - 1}


def _macd(bars: Bars, parameters: MacdParameters) -> dict[str, Array]:
    """MACD line, signal line and their difference, over the close; 0 at a constant price."""
    expression = polars_talib.macd(
        pl.col("close"),
        fastperiod=parameters.fast,
        slowperiod=parameters.slow,
        signalperiod=parameters.signal,
    )
    parts = ("macd", "macdsignal", "macdhist")
    return {
        name: _talib(expression.struct.field(part), close=bars["close"]) / bars["close"]
        for name, part in zip(_macd_names(parameters), parts, strict=True)
    }


def _macd_names(parameters: MacdParameters) -> tuple[str, ...]:
    suffix = f"{parameters.fast}_{parameters.slow}_{parameters.signal}"
    return (f"macd_{suffix}", f"macd_signal_{suffix}", f"macd_histogram_{suffix}")


def _stochastic(bars: Bars, parameters: StochasticParameters) -> dict[str, Array]:
    """Where the close lies in the window's range, 0 to 100, smoothed once (%K) and twice (%D).

    A window without range counts as 50, its middle (TA-Lib: 0, its bottom).
    """
    top = _talib(polars_talib.max(pl.col("high"), timeperiod=parameters.period), high=bars["high"])
    bottom = _talib(polars_talib.min(pl.col("low"), timeperiod=parameters.period), low=bars["low"])
    width = (top - bottom) / 100
    ranging = width != 0
    place = np.where(ranging, (bars["close"] - bottom) / np.where(ranging, width, 1.0), 50.0)
    percent_k = _smooth(place, parameters.period - 1, parameters.k)
    percent_d = _smooth(percent_k, parameters.period + parameters.k - 2, parameters.d)
    return dict(zip(_stochastic_names(parameters), (percent_k, percent_d), strict=True))


def _stochastic_names(parameters: StochasticParameters) -> tuple[str, ...]:
    suffix = f"{parameters.period}_{parameters.k}_{parameters.d}"
    return (f"stochastic_k_{suffix}", f"stochastic_d_{suffix}")


def _atr(bars: Bars, parameters: PeriodParameters) -> dict[str, Array]:
    """Wilder's average true range over the close; 0 at a constant price."""
    column = _talib(
        polars_talib.atr(
            pl.col("high"), pl.col("low"), pl.col("close"), timeperiod=parameters.period
        ),
        high=bars["high"],
        low=bars["low"],
        close=bars["close"],
    )
    return {f"atr_{parameters.period}": column / bars["close"]}


def _volume_zscore(bars: Bars, parameters: WindowParameters) -> dict[str, Array]:
    """Volume's distance from its window's mean in standard deviations (ddof 0).

    Between -sqrt(period - 1) and +sqrt(period - 1); 0 where all volumes of the window are equal.
    """
    volume, period = bars["volume"], parameters.period
    rows = max(volume.size - period + 1, 0)
    # Added offset by offset: a running sum keeps the rounding of a spike that has left the
    # window, and a reduction over a sliding view picks its order by the view's shape.
    mean = np.zeros(rows)
    for offset in range(period):
        mean += volume[offset : offset + rows]
    mean /= period
    variance = np.zeros(rows)
    for offset in range(period):
        variance += (volume[offset : offset + rows] - mean) ** 2
    deviation = np.sqrt(variance / period)
    equal = deviation <= 1e-12 * mean
    column = np.full(volume.size, np.nan)
    distance = volume[period - 1 :] - mean
    column[period - 1 :] = np.where(equal, 0.0, distance / np.where(equal, 1.0, deviation))
    return {f"volume_zscore_{period}": column}


def _smooth(values: Array, warm_up: int, window: int) -> Array:
    """Simple moving average that skips the warm-up: TA-Lib lets one NaN poison all that follows."""
    column = np.full(values.size, np.nan)
    column[warm_up:] = _talib(
        polars_talib.sma(pl.col("value"), timeperiod=window) if window > 1 else pl.col("value"),
        value=values[warm_up:],
    )
    return column


def _talib(expression: pl.Expr, **columns: Array) -> Array:
    """Evaluate one polars-talib expression over [T] arrays; gives a writable [T] float64."""
    result = pl.DataFrame(columns).select(expression.alias("result"))["result"]
    return np.array(result.to_numpy(), dtype=np.float64)


def _wilder_lookback(parameters: PeriodParameters) -> int:
    return forgetting(1 / parameters.period)


def _macd_lookback(parameters: MacdParameters) -> int:
    return forgetting(2 / (parameters.slow + 1), 2 / (parameters.signal + 1))


def _stochastic_lookback(parameters: StochasticParameters) -> int:
    return parameters.period + parameters.k + parameters.d - 3


def _window_lookback(parameters: WindowParameters) -> int:
    return parameters.period - 1


def _names(prefix: str) -> Callable[[PeriodParameters | WindowParameters], tuple[str, ...]]:
    return lambda parameters: (f"{prefix}_{parameters.period}",)


_RANGE = ("high", "low", "close")
SHIPPED: tuple[Indicator[Any], ...] = (
    Indicator(
        "returns",
        ReturnsParameters,
        ("close",),
        _return_names,
        lambda parameters: max(parameters.horizons),
        _returns,
    ),
    Indicator("rsi", PeriodParameters, ("close",), _names("rsi"), _wilder_lookback, _rsi),
    Indicator(
        "sma_ratio", WindowParameters, ("close",), _names("sma_ratio"), _window_lookback, _sma_ratio
    ),
    Indicator("macd", MacdParameters, ("close",), _macd_names, _macd_lookback, _macd),
    Indicator(
        "stochastic",
        StochasticParameters,
        _RANGE,
        _stochastic_names,
        _stochastic_lookback,
        _stochastic,
    ),
    Indicator("atr", PeriodParameters, _RANGE, _names("atr"), _wilder_lookback, _atr),
    Indicator(
        "volume_zscore",
        WindowParameters,
        ("volume",),
        _names("volume_zscore"),
        _window_lookback,
        _volume_zscore,
    ),
)
