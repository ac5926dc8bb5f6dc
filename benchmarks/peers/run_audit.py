"""Audits of one peer for look-ahead; runs in the peers' own virtual environment.

`audit.py` calls `python run_audit.py PEER prices.npz ROOT` and reads a JSON object a line. Features
are those that the peer's documentation shows, and ways to spoil them that are common in its users'
code. Of ours, only `features/audit` is imported, from ROOT; it needs numpy and pandas alone.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, sys.argv[3])
from trade_pipeline.features.audit import Audit, audit_environment, audit_function

STOCKS = ("AAA", "BBB", "CCC")


class Audited(NamedTuple):
    """What was audited, what should come out, and what came out."""

    case: str
    expected: str
    audit: Audit


def hourly(prices: dict[str, np.ndarray]) -> pd.DataFrame:
    """One stock's bars, labelled by hours."""
    index = pd.date_range("2020-01-01", periods=len(prices["ts"]), freq="1h", name="date")
    names = ("open", "high", "low", "close", "volume")
    return pd.DataFrame({name: prices[name][:, 0] for name in names}, index=index)


def documented(frame: pd.DataFrame) -> pd.DataFrame:
    """The features of gym-trading-env's tutorial."""
    frame = frame.copy()
    frame["feature_close"] = frame["close"].pct_change()
    frame["feature_open"] = frame["close"] / frame["open"]
    frame["feature_high"] = frame["high"] / frame["close"]
    frame["feature_low"] = frame["low"] / frame["close"]
    frame["feature_volume"] = frame["volume"] / frame["volume"].rolling(7 * 24).max()
    return frame.dropna()


def scaled(frame: pd.DataFrame) -> pd.DataFrame:
    """The same, standardised over the whole sample."""
    frame = documented(frame)
    columns = [name for name in frame if "feature" in name]
    frame[columns] = (frame[columns] - frame[columns].mean()) / frame[columns].std()
    return frame


def centred(frame: pd.DataFrame) -> pd.DataFrame:
    """A smoothed trend beside them, its window centred."""
    frame = documented(frame)
    frame["feature_trend"] = frame["close"] / frame["close"].rolling(5, center=True).mean()
    return frame.dropna()


def daily_labelled_at_start(frame: pd.DataFrame) -> pd.DataFrame:
    """The day's return beside them, joined by the day's date: known from its first hour on."""
    features = documented(frame)
    daily = frame["close"].resample("1D").last().pct_change().rename("feature_day")
    return features.join(daily.reindex(features.index, method="ffill")).dropna()


def gym_trading_env(prices: dict[str, np.ndarray]) -> Iterator[Audited]:
    """`TradingEnv` with features as in its tutorial, and spoilt."""
    from gym_trading_env.environments import TradingEnv

    bars = hourly(prices)

    def made(features: Callable[[pd.DataFrame], pd.DataFrame], **others: Any) -> Any:
        def make(frame: pd.DataFrame) -> Any:
            return TradingEnv(features(frame), positions=[-1, 0, 1], verbose=0, **others)

        make.__qualname__ = f"gym_trading_env.TradingEnv({features.__name__})"
        return make

    def seen_rows(env: Any) -> int:
        # `dropna` has taken rows away: the bar's time tells its row in the frame.
        return int(bars.index.get_loc(env.df.index[env._idx])) + 1

    for features, expected in (
        (documented, "clean"),
        (scaled, "looks ahead"),
        (centred, "looks ahead"),
        (daily_labelled_at_start, "looks ahead"),
    ):
        case = f"TradingEnv, features {features.__name__}"
        yield Audited(case, expected, audit_environment(made(features), bars, seen_rows, 200))
    windows = audit_environment(made(documented, windows=10), bars, seen_rows, 200)
    yield Audited("TradingEnv, features documented, windows of 10", "clean", windows)
    for features, expected in ((documented, "clean"), (scaled, "looks ahead")):
        yield Audited(f"function {features.__name__}", expected, audit_function(features, bars))


def loaded(name: str, path: str) -> ModuleType:
    """A module of FinRL by its file: `import finrl` itself needs brokers' clients and keys."""
    file = Path(str(distribution("finrl").locate_file(path)))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def feature_engineer(**settings: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """FinRL's own preprocessing, without its indicators.

    What its module imports for indicators and downloads is not installed and not called here.
    """
    config = loaded("finrl.config", "finrl/config.py")
    for name, holds in {
        "stockstats": {"StockDataFrame": None},
        "finrl": {"config": config},
        "finrl.meta": {},
        "finrl.meta.preprocessor": {},
        "finrl.meta.preprocessor.yahoodownloader": {"YahooDownloader": None},
    }.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(holds)
    module = loaded("preprocessors", "finrl/meta/preprocessor/preprocessors.py")
    engineer = module.FeatureEngineer(use_technical_indicator=False, **settings)
    function: Callable[[pd.DataFrame], pd.DataFrame] = engineer.preprocess_data
    return function


def table(prices: dict[str, np.ndarray], stocks: tuple[str, ...]) -> pd.DataFrame:
    """FinRL's long table: a row a day and stock, days counted in the index."""
    days = len(prices["ts"])
    dates = pd.date_range("2020-01-01", periods=days, freq="1D").strftime("%Y-%m-%d")
    names = ("open", "high", "low", "close", "volume")
    return pd.DataFrame(
        {
            "date": np.repeat(dates, len(stocks)),
            "tic": list(stocks) * days,
            **{name: prices[name][:, : len(stocks)].reshape(-1) for name in names},
        },
        index=np.repeat(np.arange(days), len(stocks)),
    )


def momentum(frame: pd.DataFrame) -> pd.Series:
    """Each stock's return of five days."""
    return frame.groupby("tic")["close"].pct_change(5)


def honest_indicator(frame: pd.DataFrame) -> pd.DataFrame:
    """Momentum, its warm-up filled with zeros."""
    return frame.assign(indicator=momentum(frame).fillna(0.0))


def filled_backwards(frame: pd.DataFrame) -> pd.DataFrame:
    """Momentum, filled as the last line of FinRL's FeatureEngineer fills."""
    return frame.assign(indicator=momentum(frame)).ffill().bfill()


def standardised(frame: pd.DataFrame) -> pd.DataFrame:
    """Momentum, standardised over the whole sample."""
    values = momentum(frame).fillna(0.0)
    return frame.assign(indicator=(values - values.mean()) / values.std())


def finrl(prices: dict[str, np.ndarray]) -> Iterator[Audited]:
    """`StockTradingEnv` of three stocks, and FinRL's own preprocessing."""
    module = loaded("env_stocktrading", "finrl/meta/env_stock_trading/env_stocktrading.py")
    stocks = len(STOCKS)

    def made(features: Callable[[pd.DataFrame], pd.DataFrame]) -> Any:
        def make(frame: pd.DataFrame) -> Any:
            return module.StockTradingEnv(
                df=features(frame),
                stock_dim=stocks,
                hmax=100,
                initial_amount=1_000_000,
                num_stock_shares=[0] * stocks,
                buy_cost_pct=[0.001] * stocks,
                sell_cost_pct=[0.001] * stocks,
                reward_scaling=1e-4,
                state_space=1 + 3 * stocks,
                action_space=stocks,
                tech_indicator_list=["indicator"],
                print_verbosity=1_000_000,
            )

        make.__qualname__ = f"finrl StockTradingEnv({features.__name__})"
        return make

    frame = table(prices, STOCKS)
    for features, expected in (
        (honest_indicator, "clean"),
        (filled_backwards, "looks ahead"),
        (standardised, "looks ahead"),
    ):
        audit = audit_environment(made(features), frame, lambda env: (env.day + 1) * stocks, 200)
        yield Audited(f"StockTradingEnv, features {features.__name__}", expected, audit)
    one = table(prices, STOCKS[:1]).head(200)
    yield Audited(
        "FeatureEngineer.preprocess_data, one stock, user_defined_feature",
        "looks ahead",
        audit_function(feature_engineer(user_defined_feature=True), one, range(1, 100), "date"),
    )
    # The last stock is delisted after day 150.
    delisted = frame[(frame["tic"] != STOCKS[-1]) | (frame.index < 150)].loc[:199]
    yield Audited(
        "FeatureEngineer.preprocess_data, a stock that is delisted",
        "looks ahead",
        audit_function(feature_engineer(), delisted, time="date"),
    )


PEERS = {"gym-trading-env": ("gym-trading-env", gym_trading_env), "FinRL": ("finrl", finrl)}


def main(peer: str, path: str, _root: str) -> None:
    """Audit one peer and print what was found."""
    package, audits = PEERS[peer]
    with np.load(path) as file:
        prices = {name: file[name] for name in file.files}
    for case, expected, audit in audits(prices):
        line = {
            "case": case,
            "verdict": audit.verdict,
            "expected": expected,
            "findings": len(audit.findings),
            "report": audit.report(),
            "versions": {package: distribution(package).version},
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
