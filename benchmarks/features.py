"""Features: seconds and memory of indicators, of the causality check and of the regime filter.

Prints one JSON object a line, one for each peer; a ratio above 1 means that ours is better. Figures
are the best of several runs in a process of its own, whose peak memory (input included) stands
beside them. Peers run in virtual environments of their own, which are made when they are missing.
Run it with `make bench`, or name cases: `python benchmarks/features.py "full set"`.
"""

import json
import resource
import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from env_speed import MINUTE_MS, PEERS, START_MS, in_own_process, last_line, main, python_of

MINUTES = 2_629_440  # 5 years
YEAR_MINUTES = 525_600
FILTERED = 500_000
REPEATS = 3
PEER_TIMEOUT_S = 900
PACKAGES = ("numba", "numpy", "polars", "polars-talib")
BARS = ("open", "high", "low", "close", "volume")

FULL_SET = [
    {"name": "returns", "params": {"horizons": [1, 5, 15, 60]}},
    {"name": "returns", "params": {"horizons": [1], "kind": "log"}},
    {"name": "rsi"},
    {"name": "sma_ratio", "params": {"period": 60}},
    {"name": "ema_ratio", "params": {"period": 60}},
    {"name": "macd"},
    {"name": "stochastic"},
    {"name": "atr"},
    {"name": "bollinger"},
    {"name": "realised_volatility", "params": {"period": 60}},
    {"name": "volume_zscore", "params": {"period": 60}},
    {"name": "vwap_distance", "params": {"period": 60}},
    {"name": "time_of_day"},
    {"name": "day_of_week"},
    {"name": "session"},
]
CLOCKS = ("time_of_day", "day_of_week", "session")
MINUTE_SET = Path(__file__).parents[1] / "configs" / "features" / "minute.yaml"
STATES = 3


class Measured(NamedTuple):
    """Seconds, what they took of memory at most, and what to say about it."""

    seconds: float | None
    peak_memory_mb: int | None = None
    note: str = ""
    versions: dict[str, str] | None = None


class Case(NamedTuple):
    """What is written for all, how ours is measured, and beside whom."""

    write: Callable[[Path], None]
    ours: Callable[..., Measured]
    arguments: tuple[Any, ...]
    peers: tuple[str, ...]
    own_peer: Callable[[Path], tuple[str, Measured]] | None = None


def write_minutes(path: Path, rows: int = MINUTES) -> None:
    """One-minute bars without a gap: a seeded random walk, rounded as prices are."""
    rng = np.random.default_rng(0)
    close = np.round(30_000 * np.exp(np.cumsum(rng.normal(0, 1e-3, rows))), 1)
    opened = np.concatenate([[30_000.0], close[:-1]])
    spread = np.round(rng.exponential(5, (2, rows)), 1)
    np.savez(
        path,
        ts=START_MS + MINUTE_MS * np.arange(rows),
        open=opened,
        high=np.maximum(opened, close) + spread[0],
        low=np.maximum(np.minimum(opened, close) - spread[1], 0.1),
        close=close,
        volume=np.round(rng.exponential(2, rows), 8),
    )


def write_year(path: Path) -> None:
    """The first year of them."""
    write_minutes(path, YEAR_MINUTES)


def write_observations(path: Path) -> None:
    """Returns drawn from three states of different variance, and the model that they come from."""
    rng = np.random.default_rng(0)
    transition = np.array([[0.98, 0.015, 0.005], [0.02, 0.96, 0.02], [0.01, 0.04, 0.95]])
    deviations = np.array([0.5, 1.0, 2.5])
    state, states = 0, np.empty(FILTERED, np.int64)
    thresholds = np.cumsum(transition, axis=1)
    for row, draw in enumerate(rng.random(FILTERED)):
        state = min(int(np.searchsorted(thresholds[state], draw)), STATES - 1)
        states[row] = state
    np.savez(
        path,
        observations=(rng.normal(size=FILTERED) * deviations[states])[:, None],
        start=np.full(STATES, 1 / STATES),
        transition=transition,
        means=np.array([[0.02], [0.0], [-0.05]]),
        covariances=(deviations**2)[:, None, None],
    )


def load_bars(path: Path) -> pl.DataFrame:
    """The bars as tables are made of them."""
    moment = pl.Datetime("ms", "UTC")
    with np.load(path) as file:
        times = file["ts"]
        return pl.DataFrame(
            {
                "ts": pl.Series(times).cast(moment),
                "close_ts": pl.Series(times + MINUTE_MS).cast(moment),
                **{name: file[name] for name in BARS},
            }
        )


def feature_set(entries: list[dict[str, Any]], timeframe: str | None = None) -> Any:
    """These indicators, ready to compute."""
    from trade_pipeline.features.registry import resolve
    from trade_pipeline.settings.features import FeatureSetSettings

    content = {"indicators": entries, "scaling": "none", "timeframe": timeframe}
    return resolve(FeatureSetSettings.model_validate(content), "benchmark")


def best(run: Callable[[], object], note: str = "") -> Measured:
    """Least seconds of several runs."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return Measured(min(seconds), peak_mb, note)


def table(path: Path, with_clocks: bool) -> Measured:
    """A checked table of the set over the bars as one segment."""
    from trade_pipeline.features.table import feature_table

    entries = [one for one in FULL_SET if with_clocks or one["name"] not in CLOCKS]
    chosen, bars = feature_set(entries), load_bars(path)
    feature_table([bars.head(5_000)], chosen)  # compiled once, before the clock runs
    rows = bars.height - chosen.lookback
    assert feature_table([bars], chosen).shape == (rows, 1 + len(chosen.names))
    return best(
        lambda: feature_table([bars], chosen),
        f"{len(entries)} indicators, {len(chosen.names)} columns, {bars.height} bars",
    )


def checked_set() -> Any:
    """The shipped set for minutes and one indicator on hours."""
    import yaml

    entries = yaml.safe_load(MINUTE_SET.read_text())["indicators"]
    return feature_set([*entries, {"name": "rsi", "timeframe": "1h"}], "1m")


def check(path: Path) -> Measured:
    """The causality check of a year, as the asset check runs it."""
    from trade_pipeline.features.causality_check import check_feature_set

    chosen, bars = checked_set(), load_bars(path)
    # A set of clean columns: what the check finds elsewhere is in the tests.
    found = check_feature_set([bars], chosen)
    assert found.passed, found.violations
    return best(
        lambda: check_feature_set([bars], chosen),
        f"the minute set and a 1h RSI, {found.cuts} prefixes and excerpts",
    )


def whole_prefixes(path: Path) -> Measured:
    """The same number of prefixes, each of whole tables: a few are timed and scaled."""
    from trade_pipeline.features.causality import prefix_violations
    from trade_pipeline.features.causality_check import check_feature_set
    from trade_pipeline.features.table import feature_table

    chosen, bars = checked_set(), load_bars(path)
    cuts = check_feature_set([bars], chosen).cuts / len(chosen.members)
    places = [YEAR_MINUTES // 4, YEAR_MINUTES // 2, 3 * YEAR_MINUTES // 4]
    timed = best(
        lambda: prefix_violations(lambda rows: feature_table([rows], chosen), bars, places)
    )
    assert timed.seconds is not None
    note = f"timed on {len(places)} prefixes and scaled to {cuts:.0f} a member"
    return timed._replace(seconds=timed.seconds / len(places) * cuts, note=note)


def naive_check(path: Path) -> tuple[str, Measured]:
    """No other project has such a check for arbitrary features."""
    return "ours, on prefixes of the whole table", in_own_process(whole_prefixes, path)


def filtering(path: Path) -> Measured:
    """Causal probabilities of three states."""
    from trade_pipeline.features.regimes.filtering import filter_regimes
    from trade_pipeline.features.regimes.model import RegimeModel

    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    model = RegimeModel(
        inputs=("return_1",),
        center=np.zeros(1),
        scale=np.ones(1),
        **{name: arrays[name] for name in ("start", "transition", "means", "covariances")},
    )
    observations, segments = arrays["observations"], np.array([[0, FILTERED]])
    filter_regimes(model, observations[:100], np.array([[0, 100]]))
    return best(
        lambda: filter_regimes(model, observations, segments), f"{FILTERED} rows, {STATES} states"
    )


@cache
def peer_figure(path: Path, peer: str) -> Measured:
    """Measure a peer in its own process."""
    python, reason = python_of("features")
    if reason:
        return Measured(None, note=reason)
    command = [str(python), "-I", str(PEERS / "run_features.py"), peer, str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PEER_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return Measured(None, note=f"no figure within {PEER_TIMEOUT_S} s")
    if done.returncode:
        return Measured(None, note=f"failed: {last_line(done.stderr)}")
    return Measured(**json.loads(last_line(done.stdout)))


OF_INDICATORS = ("pandas-ta-classic", "TA-Lib")
CASES: dict[str, Case] = {
    "full set": Case(write_minutes, table, (True,), OF_INDICATORS),
    "full set as far as peers have it": Case(write_minutes, table, (False,), OF_INDICATORS),
    "causality check": Case(write_year, check, (), (), naive_check),
    "forward filter": Case(write_observations, filtering, (), ("hmmlearn", "statsmodels")),
}


def measure(name: str, folder: Path) -> None:
    """Run one case and print its lines."""
    case = CASES[name]
    path = folder / f"{case.write.__name__}.npz"
    if not path.exists():
        # In a process of its own: a child's peak memory begins at its parent's.
        in_own_process(case.write, path)
    ours: Measured = in_own_process(case.ours, path, *case.arguments)
    peers = [(peer, peer_figure(path, peer)) for peer in case.peers]
    if case.own_peer:
        peers.append(case.own_peer(path))
    assert ours.seconds is not None
    for peer, found in peers:
        known = found.seconds is not None
        line = {
            "benchmark": "features",
            "case": name,
            "value": round(ours.seconds, 4),
            "unit": "s",
            "peer": peer,
            "peer_value": round(found.seconds, 4) if known else None,
            "ratio": round(found.seconds / ours.seconds, 2) if known else None,
            "peak_memory_mb": ours.peak_memory_mb,
            "peer_peak_memory_mb": found.peak_memory_mb,
            "versions": {package: version(package) for package in PACKAGES}
            | (found.versions or {}),
            "note": "; ".join(filter(None, (ours.note, found.note))),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:], CASES, measure)
