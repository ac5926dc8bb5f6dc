"""What an agent sees: the window of features, or its row, and the account vector.

Knows nothing of actions or rewards. Start at `observe`.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.lanes import CLOSE
from trade_pipeline.simulator.market import IntArray, Market
from trade_pipeline.simulator.state import Account

Float32Array = npt.NDArray[np.float32]
View = Literal["window", "index"]

SMALL_FRACTION_SCALE = 10.0  # brings returns, distances and drawdown to order one
COLUMNS_PER_INSTRUMENT = 5
MOST_ROWS = 2**24  # a policy turns a row into a float32, which holds no larger whole numbers


def account_columns(instruments: int) -> int:
    """Length of the account vector, 5 N + 1."""
    return COLUMNS_PER_INSTRUMENT * instruments + 1


def observation_space(
    window: int, columns: int, instruments: int, rows: int = 0
) -> spaces.Space[dict[str, Any]]:
    """The space of `observe`: window float32 [W, N*F] and account float32 [5N+1].

    Args:
        window: W, bars.
        columns: N*F, features of all instruments.
        instruments: N.
        rows: if not 0, `row` int32 [1] below it stands for the window that ends there.
    """
    seen: dict[str, spaces.Space[Any]] = {
        "window": spaces.Box(-np.inf, np.inf, (window, columns), np.float32)
    }
    if rows:
        seen = {"row": spaces.Box(0, rows - 1, (1,), np.int32)}
    account = spaces.Box(-np.inf, np.inf, (account_columns(instruments),), np.float32)
    return spaces.Dict({**seen, "account": account})


def observe(
    account: Account, market: Market, features: Float32Array, row: IntArray, window: int
) -> dict[str, Float32Array]:
    """Observations of E accounts after their rows have closed, in fresh arrays."""
    return {
        "window": windows(features, row, window),
        "account": account_vector(account, market, row),
    }


def checked_features(features: npt.NDArray[Any], market: Market) -> Float32Array:
    """The features as read-only float32 [T, N*F] in C order, not copied where they are that.

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
    locked = checked.view()
    locked.flags.writeable = False
    return locked


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
    _copy_windows(features.reshape(-1), row, features.shape[1], out.reshape(row.shape[0], -1))
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
    out = np.empty((environments, account_columns(instruments)), np.float32)
    _account_vectors(account.balances, account.positions, market.bars, row, out)
    return out


@compiled
def window_of(flat: Float32Array, row: int, columns: int, out: Float32Array, e: int) -> None:
    """A window is one contiguous run of the flattened features; out is [E, W * N*F]."""
    length = out.shape[1]
    end = (row + 1) * columns
    source = flat[end - length : end]
    target = out[e]  # indices that cannot be negative let the loop become one fast copy
    for k in range(length):
        target[k] = source[k]


@compiled
def columns_of(
    quantity: float, entry: float, stop: float, take: float, price: float, equity: float
) -> tuple[float, float, float, float]:
    """Exposure, unrealised return and distances to stop and take of one position."""
    holds = (quantity != 0.0) & (equity > 0.0)
    exposure = quantity * price / equity
    gained = SMALL_FRACTION_SCALE * (quantity * (price - entry)) / equity
    stop_away = SMALL_FRACTION_SCALE * abs(stop / price - 1.0)
    take_away = SMALL_FRACTION_SCALE * abs(take / price - 1.0)
    return (
        exposure if holds else 0.0,
        gained if holds else 0.0,
        stop_away if holds & (stop == stop) else 0.0,  # NaN is no level
        take_away if holds & (take == take) else 0.0,
    )


@compiled
def account_vector_of(
    balance: Any, positions: Any, bars: Any, row: int, out: Float32Array, e: int
) -> None:
    """Columns of docs/simulator.md for one account, into `out[e]`."""
    equity = balance.equity
    instruments = positions.shape[0]
    for n in range(instruments):
        held = positions[n]
        price = bars[row, n].close * balance.price_scale
        exposure, gained, stop, take = columns_of(
            held.quantity, held.entry_price, held.stop_price, held.take_price, price, equity
        )
        k = COLUMNS_PER_INSTRUMENT * n
        out[e, k] = exposure
        out[e, k + 1] = abs(exposure)
        out[e, k + 2] = gained
        out[e, k + 3] = stop
        out[e, k + 4] = take
    drawdown = equity / balance.peak_equity - 1.0
    out[e, COLUMNS_PER_INSTRUMENT * instruments] = SMALL_FRACTION_SCALE * drawdown


@compiled
def account_vectors_of(block: Any, holdings: Any, out: Float32Array) -> None:
    """The same for the accounts of a block, see `lanes`, whose bar has just been stepped."""
    lanes = out.shape[0]
    instruments = holdings.shape[0]
    for n in range(instruments):
        held = holdings[n]
        for k in range(lanes):
            exposure, gained, stop, take = columns_of(
                held.quantity[k],
                held.entry_price[k],
                held.stop_price[k],
                held.take_price[k],
                held.price[CLOSE, k],
                block.equity[k],
            )
            held.seen[0, k] = exposure
            held.seen[1, k] = abs(exposure)
            held.seen[2, k] = gained
            held.seen[3, k] = stop
            held.seen[4, k] = take
        first = COLUMNS_PER_INSTRUMENT * n
        for k in range(lanes):
            for column in range(COLUMNS_PER_INSTRUMENT):
                out[k, first + column] = held.seen[column, k]
    for k in range(lanes):
        drawdown = block.equity[k] / block.peak_equity[k] - 1.0
        out[k, COLUMNS_PER_INSTRUMENT * instruments] = SMALL_FRACTION_SCALE * drawdown


@compiled
def _copy_windows(flat: Float32Array, row: IntArray, columns: int, out: Float32Array) -> None:
    for e in range(row.shape[0]):
        window_of(flat, row[e], columns, out, e)


@compiled
def _account_vectors(
    balances: Any, positions: Any, bars: Any, row: IntArray, out: Float32Array
) -> None:
    for e in range(row.shape[0]):
        account_vector_of(balances[e], positions[e], bars, row[e], out, e)
