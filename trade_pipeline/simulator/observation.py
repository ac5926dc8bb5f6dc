"""What an agent sees: the window of features and the account vector.

Knows nothing of actions or rewards. Start at `observe`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from trade_pipeline.simulator.kernel import Account, FloatArray, IntArray, Market, compiled

Float32Array = npt.NDArray[np.float32]

SMALL_FRACTION_SCALE = 10.0  # brings returns, distances and drawdown to order one
COLUMNS_PER_INSTRUMENT = 5


def observation_space(window: int, columns: int, instruments: int) -> spaces.Space[dict[str, Any]]:
    """The space of `observe`: window float32 [W, N*F] and account float32 [5N+1]."""
    return spaces.Dict(
        {
            "window": spaces.Box(-np.inf, np.inf, (window, columns), np.float32),
            "account": spaces.Box(
                -np.inf, np.inf, (COLUMNS_PER_INSTRUMENT * instruments + 1,), np.float32
            ),
        }
    )


def observe(
    account: Account, market: Market, features: Float32Array, row: IntArray, window: int
) -> dict[str, Float32Array]:
    """Observations of E accounts after their rows have closed, in fresh arrays."""
    return {
        "window": windows(features, row, window),
        "account": account_vector(account, market, row),
    }


def checked_features(features: npt.NDArray[Any], market: Market) -> Float32Array:
    """The features as float32 [T, N*F] in C order.

    Raises:
        ValueError: naming the row and column of the first value that is not finite.
    """
    checked: Float32Array = np.ascontiguousarray(features, np.float32).view(np.ndarray)
    if checked.ndim != 2 or checked.shape[0] != market.rows:
        raise ValueError(
            f"features have shape {checked.shape}; [T, N*F] with T = {market.rows} is expected"
        )
    finite = np.isfinite(checked)
    if not finite.all():
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        raise ValueError(
            f"features row {row} (ts {market.ts[row]}), column {column} is "
            f"{checked[row, column]}; features must be finite"
        )
    return checked


def windows(features: Float32Array, row: IntArray, window: int) -> Float32Array:
    """The last `window` rows of features up to and including each row.

    Args:
        features: float32 [T, N*F].
        row: int64 [E], at least `window` - 1.
        window: W, bars.

    Returns:
        float32 [E, W, N*F].

    Raises:
        ValueError: if a window begins before the first row or ends after the last.
    """
    if row.size and (row.min() < window - 1 or row.max() >= features.shape[0]):
        raise ValueError(
            f"rows {row.min()} to {row.max()} must lie in [{window - 1}, {features.shape[0]}) "
            f"for windows of {window}"
        )
    out = np.empty((row.shape[0], window, features.shape[1]), np.float32)
    for_each = out.reshape(row.shape[0], -1)
    _copy_windows(features.reshape(-1), row, window, features.shape[1], for_each)
    return out


def account_vector(account: Account, market: Market, row: IntArray) -> Float32Array:
    """Each account in numbers of order one; columns in docs/simulator.md.

    Args:
        account: E accounts marked at the close of `row`.
        market: the bars.
        row: int64 [E].

    Returns:
        float32 [E, 5N+1], all finite.
    """
    environments, instruments = account.positions.shape
    out = np.empty((environments, COLUMNS_PER_INSTRUMENT * instruments + 1), np.float32)
    _account_vectors(account.balances, account.positions, market.close, row, out)
    return out


@compiled
def _copy_windows(
    flat: Float32Array, row: IntArray, window: int, columns: int, out: Float32Array
) -> None:
    """A window is one contiguous run of the flattened features."""
    for e in range(row.shape[0]):
        start = (row[e] + 1 - window) * columns
        for k in range(window * columns):
            out[e, k] = flat[start + k]


@compiled
def _account_vectors(
    balances: Any, positions: Any, close: FloatArray, row: IntArray, out: Float32Array
) -> None:
    """Columns of docs/simulator.md, account by account."""
    for e in range(row.shape[0]):
        equity = balances[e].equity
        for n in range(close.shape[1]):
            position = positions[e, n]
            price = close[row[e], n]
            k = COLUMNS_PER_INSTRUMENT * n
            out[e, k : k + COLUMNS_PER_INSTRUMENT] = 0.0
            if position.quantity == 0.0 or equity <= 0.0:
                continue
            out[e, k] = position.quantity * price / equity
            out[e, k + 1] = abs(out[e, k])
            gain = position.quantity * (price - position.entry_price)
            out[e, k + 2] = SMALL_FRACTION_SCALE * gain / equity
            if not np.isnan(position.stop_price):
                out[e, k + 3] = SMALL_FRACTION_SCALE * abs(position.stop_price / price - 1.0)
            if not np.isnan(position.take_price):
                out[e, k + 4] = SMALL_FRACTION_SCALE * abs(position.take_price / price - 1.0)
        out[e, COLUMNS_PER_INSTRUMENT * close.shape[1]] = SMALL_FRACTION_SCALE * (
            equity / balances[e].peak_equity - 1.0
        )
