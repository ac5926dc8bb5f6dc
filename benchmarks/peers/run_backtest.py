"""One peer's backtest of a moving average cross; runs in the peers' own environment.

`backtest.py` calls `python run_backtest.py PEER arrays.npz speed|trades` and reads the JSON object
on the last line. One unit, long or flat, decided on a close and filled at the next open, with a fee
on both sides. For speed every choice favours the peer: tables are made and its code is compiled
before the clock runs. Nothing of ours is imported.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

REPEATS = 3
AT_LEAST_S = 3.0
Arrays = dict[str, np.ndarray]


class Peer(NamedTuple):
    """How a peer works.

    Attributes:
        prepare: arrays to what is timed.
        trades: what that gave to closed trades, and where its average was above, as it saw it.
        package: that it comes in.
        note: what is not as with ours.
    """

    prepare: Callable[[Arrays], Callable[[], Any]]
    trades: Callable[[Any, Arrays], tuple[list[tuple[int, int, float, float, float]], np.ndarray]]
    package: str
    note: str


def vectorbt_run(arrays: Arrays) -> Callable[[], Any]:
    import pandas as pd
    import vectorbt

    index = pd.DatetimeIndex(pd.to_datetime(arrays["ts"], unit="ms"), freq="1min")
    close, opened = (pd.Series(arrays[name], index) for name in ("close", "open"))
    fast, slow = int(arrays["fast"]), int(arrays["slow"])

    def run() -> Any:
        quick = vectorbt.MA.run(close, fast).ma.to_numpy()
        above = quick > vectorbt.MA.run(close, slow).ma.to_numpy()
        # What is decided on a close trades at the next bar's open.
        wanted = np.concatenate([[False], above[:-1]])
        result = vectorbt.Portfolio.from_signals(
            close,
            pd.Series(wanted, index),
            pd.Series(~wanted, index),
            price=opened,
            size=1,
            fees=float(arrays["fee"]),
            init_cash=float(arrays["equity"]),
            freq="1min",
        )
        trades = result.trades
        figures = (
            result.total_return(),
            result.sharpe_ratio(),
            result.sortino_ratio(),
            result.max_drawdown(),
            trades.win_rate(),
            trades.profit_factor(),
        )
        return result, above, figures

    return run


def vectorbt_trades(found: Any, arrays: Arrays) -> tuple[Any, np.ndarray]:
    result, above, _ = found
    table = result.trades.records
    table = table[table["status"] == 1]
    names = ("entry_idx", "exit_idx", "entry_price", "exit_price", "pnl")
    return list(zip(*(table[name].tolist() for name in names), strict=True)), above


def backtesting_run(arrays: Arrays) -> Callable[[], Any]:
    import pandas as pd
    from backtesting import Backtest, Strategy

    fast, slow = int(arrays["fast"]), int(arrays["slow"])

    def is_above(close: np.ndarray) -> np.ndarray:
        series = pd.Series(close)
        above = series.rolling(fast).mean() > series.rolling(slow).mean()
        return above.to_numpy(np.float64)  # never NaN, or it would skip a bar

    class Cross(Strategy):
        def init(self) -> None:
            self.above = self.I(is_above, np.asarray(self.data.Close), plot=False)

        def next(self) -> None:
            if self.above[-1] > 0:
                if not self.position:
                    self.buy(size=1)
            elif self.position:
                self.position.close()

    columns = {name.title(): arrays[name] for name in ("open", "high", "low", "close", "volume")}
    table = pd.DataFrame(columns, pd.to_datetime(arrays["ts"], unit="ms"))
    test = Backtest(table, Cross, cash=float(arrays["equity"]), commission=float(arrays["fee"]))
    return lambda: (test.run(), is_above(arrays["close"]) > 0)


def backtesting_trades(found: Any, arrays: Arrays) -> tuple[Any, np.ndarray]:
    table = found[0]["_trades"]
    names = ("EntryBar", "ExitBar", "EntryPrice", "ExitPrice", "PnL")
    return list(zip(*(table[name].tolist() for name in names), strict=True)), found[1]


PEERS = {
    "vectorbt": Peer(
        vectorbt_run,
        vectorbt_trades,
        "vectorbt",
        "six figures, no table of orders; decides by float averages, knows no stop or margin here",
    ),
    "backtesting.py": Peer(
        backtesting_run, backtesting_trades, "backtesting", "its run() always makes all its figures"
    ),
}


def main(name: str, path: Path, what: str) -> None:
    """Measure one peer, or list its trades."""
    peer = PEERS[name]
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    warnings.simplefilter("ignore")
    run = peer.prepare(arrays)
    rows = len(arrays["ts"])
    found: dict[str, Any] = {
        "note": peer.note,
        "versions": {package: version(package) for package in (peer.package, "numpy", "pandas")},
    }
    last = run()  # compiles, too
    if what == "trades":
        trades, above = peer.trades(last, arrays)
        found |= {"trades": trades, "above": np.flatnonzero(above).tolist()}
    else:
        seconds: list[float] = []
        while len(seconds) < REPEATS or sum(seconds) < AT_LEAST_S:
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        found["value"] = rows / min(seconds)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
