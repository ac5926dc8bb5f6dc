"""Seconds and memory of one peer's features or regimes; runs in the peers' own environment.

`features.py` calls `python run_features.py PEER arrays.npz` and reads the JSON object on the last
line. Every choice here favours the peer: what it lacks is left out, its columns are neither checked
nor put into a table, and input is laid out as it likes best. Nothing of ours is imported.
"""

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

REPEATS = 3
WARM_UP_ROWS = 5_000

Arrays = dict[str, np.ndarray]


class Peer(NamedTuple):
    """How a peer works.

    Attributes:
        prepare: arrays, and how many of their rows, to what is timed.
        package: that it comes in.
        note: what is not as with ours.
    """

    prepare: Callable[[Arrays, int], Callable[[], object]]
    package: str
    note: str


def talib_set(arrays: Arrays, rows: int) -> Callable[[], object]:
    import talib

    names = ("high", "low", "close", "volume")
    high, low, close, volume = (np.ascontiguousarray(arrays[name][:rows]) for name in names)

    def run() -> list[np.ndarray]:
        growth = talib.LN(talib.ROCR(close, 1))
        upper, middle, lower = talib.BBANDS(close, 20, 2, 2)
        typical = talib.TYPPRICE(high, low, close)
        columns = [
            *(talib.ROCP(close, horizon) for horizon in (1, 5, 15, 60)),
            growth,
            talib.RSI(close, 14),
            close / talib.SMA(close, 60) - 1,
            close / talib.EMA(close, 60) - 1,
            *(part / close for part in talib.MACD(close, 12, 26, 9)),
            *talib.STOCH(high, low, close, 14, 3, 0, 3, 0),
            talib.ATR(high, low, close, 14) / close,
            2 * (close - lower) / (upper - lower) - 1,
            (upper - lower) / middle,
            np.sqrt(talib.SMA(growth[1:] ** 2, 60)),
            (volume - talib.SMA(volume, 60)) / talib.STDDEV(volume, 60),
            close * talib.SUM(volume, 60) / talib.SUM(typical * volume, 60) - 1,
        ]
        return [column.astype(np.float32) for column in columns]

    return run


def pandas_set(arrays: Arrays, rows: int) -> Callable[[], object]:
    import pandas as pd
    import pandas_ta_classic as ta

    names = ("high", "low", "close", "volume")
    high, low, close, volume = (pd.Series(arrays[name][:rows]) for name in names)

    def run() -> list[np.ndarray]:
        growth = ta.log_return(close, length=1)
        bands = ta.bbands(close, length=20, std=2.0)
        macd = ta.macd(close, fast=12, slow=26, signal=9)
        stochastic = ta.stoch(high, low, close, k=14, d=3, smooth_k=3)
        columns = [
            *(ta.percent_return(close, length=horizon) for horizon in (1, 5, 15, 60)),
            growth,
            ta.rsi(close, length=14),
            close / ta.sma(close, length=60) - 1,
            close / ta.ema(close, length=60) - 1,
            *(macd[name] / close for name in macd.columns),
            *(stochastic[name] for name in stochastic.columns),
            ta.atr(high, low, close, length=14) / close,
            bands["BBP_20_2.0"],
            bands["BBB_20_2.0"],
            np.sqrt(ta.sma(growth**2, length=60)),
            ta.zscore(volume, length=60),
            close / ta.vwma(ta.hlc3(high, low, close), volume, length=60) - 1,
        ]
        return [column.to_numpy(np.float32) for column in columns]

    return run


def hmmlearn_filter(arrays: Arrays, rows: int) -> Callable[[], object]:
    from hmmlearn.hmm import GaussianHMM

    model = GaussianHMM(len(arrays["start"]), covariance_type="full")
    model.startprob_, model.transmat_ = arrays["start"], arrays["transition"]
    model.means_, model.covars_ = arrays["means"], arrays["covariances"]
    observations = arrays["observations"][:rows]
    return lambda: model.predict_proba(observations)


def statsmodels_filter(arrays: Arrays, rows: int) -> Callable[[], object]:
    from statsmodels.tsa.regime_switching.markov_regression import MarkovRegression

    states = len(arrays["start"])
    model = MarkovRegression(
        arrays["observations"][:rows, 0], k_regimes=states, switching_variance=True
    )
    # Chances of going to each state but the last, from each state; then means and variances.
    transition = arrays["transition"][:, :-1].T.ravel()
    parameters = np.concatenate([transition, arrays["means"][:, 0], arrays["covariances"][:, 0, 0]])
    return lambda: model.filter(parameters, return_raw=True).filtered_marginal_probabilities


LACKS = "lacks time_of_day, day_of_week and session; gives no table and checks nothing"
PEERS = {
    "TA-Lib": Peer(talib_set, "TA-Lib", f"its Python wheel on arrays; {LACKS}"),
    "pandas-ta-classic": Peer(
        pandas_set, "pandas-ta-classic", f"its own arithmetic, as it does by default; {LACKS}"
    ),
    "hmmlearn": Peer(hmmlearn_filter, "hmmlearn", "smooths, that is, looks ahead: has no filter"),
    "statsmodels": Peer(statsmodels_filter, "statsmodels", "MarkovRegression.filter"),
}


def main(name: str, path: Path) -> None:
    """Measure one peer and print its figures."""
    peer = PEERS[name]
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    warnings.simplefilter("ignore")
    peer.prepare(arrays, WARM_UP_ROWS)()
    run = peer.prepare(arrays, sys.maxsize)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    found = {
        "seconds": min(seconds),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "note": peer.note,
        "versions": {package: version(package) for package in (peer.package, "numpy")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
