"""Backtests: bars per second of a rule and of policies, seconds to write and to open a report.

Prints one JSON object a line, one for each peer; a ratio above 1 means that ours is better. The
rule is a cross of two moving averages that holds one unit or nothing; ours finds the signals, steps
the simulator with its costs, levels and margin, makes the tables of orders and fills and all of
`metrics.json`. Figures are the best of several runs in a process of its own. Peers run in a virtual
environment of their own, which is made when it is missing; they are never dependencies. Run it with
`make bench`, or name cases: `python benchmarks/backtest.py rule`.

`python benchmarks/backtest.py --compare` lists the trades of the rule on real minute bars that are
not those of a peer, and fails if the averages of one of them did not tie in whole ticks.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from env_speed import MINUTE_MS, PEERS, START_MS, in_own_process, last_line, main, python_of

ROWS = 500_000
FEW_ROWS = 20_000  # for what goes bar by bar
COMPARED_ROWS = 100_000  # to compare trades on
FAST, SLOW = 20, 50
FEE = 0.0026
FREE = 1e-6  # chance pays more than it has
EQUITY = 1e7
FEATURES, WINDOW, HIDDEN = 6, 64, 64
REPEATS = 7
AT_LEAST_S = 3.0  # of repeating, as for peers: a machine that is disturbed is so for moments
TOLERANCE = 1e-6
PEER_TIMEOUT_S = 900
PACKAGES = ("numba", "numpy", "polars")
PRICES = ("open", "high", "low", "close", "volume")
DATA = Path(
    os.environ.get("TRADE_PIPELINE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
)
REAL = DATA / "crypto_1m" / "ftx_btc_perp_1m_20211231_20220201.csv.gz"

Arrays = dict[str, Any]
Trade = tuple[int, int, float, float, float]  # entry row, exit row, their prices, net result


class Found(NamedTuple):
    """A figure, or None and in `note` why there is none."""

    value: float | None
    note: str = ""
    versions: dict[str, str] | None = None


class Case(NamedTuple):
    """How ours is measured, and beside whom."""

    ours: Callable[..., Found]
    arguments: tuple[Any, ...]
    peers: tuple[str, ...] = ()
    own_peer: tuple[str, Callable[..., Found], tuple[Any, ...]] | None = None
    unit: str = "bars/s"


def walk(rows: int) -> Arrays:
    """One-minute bars without a gap: a seeded random walk in whole cents, with noise to look at."""
    rng = np.random.default_rng(0)
    close = np.round(100 * np.exp(np.cumsum(rng.normal(0, 5e-4, rows))), 2)
    opened = np.concatenate([[100.0], close[:-1]])
    spread = np.round(rng.exponential(0.02, (2, rows)), 2)
    return {
        "ts": START_MS + MINUTE_MS * np.arange(rows),
        "open": opened,
        "high": np.maximum(opened, close) + spread[0],
        "low": np.minimum(opened, close) - spread[1],
        "close": close,
        "volume": np.round(rng.exponential(1e4, rows), 2),
        "features": rng.normal(size=(rows, FEATURES)).astype(np.float32),
    }


def real_bars() -> Arrays:
    """A month of real minute bars."""
    table = pl.read_csv(REAL, try_parse_dates=True)
    times = table["timestamp"].dt.epoch("ms").to_numpy()
    features = np.zeros((len(times), FEATURES), np.float32)
    return {"ts": times, **{name: table[name].to_numpy() for name in PRICES}, "features": features}


def dataset_of(bars: Arrays) -> Any:
    """The bars as the engine takes them."""
    from trade_pipeline.training.dataset import Dataset
    from trade_pipeline.training.splits import Fold

    whole = np.array([[0, len(bars["ts"])]])
    columns = {name: np.ascontiguousarray(bars[name])[:, None] for name in PRICES}
    return Dataset(
        ts=bars["ts"],
        close_ts=bars["ts"] + MINUTE_MS,
        **columns,
        traded=np.ones_like(columns["close"], np.bool_),
        features=bars["features"][:, None],
        segments=whole,
        instruments=("walk",),
        feature_names=tuple(f"noise_{k}" for k in range(FEATURES)),
        folds=(Fold(whole, whole, whole),),
        final=whole[:0],
        lookback=0,
        scaling="none",
        timeframe="1m",
        bars_per_year=525_600.0,
        days_per_year=365.0,
        input_versions={},
    )


def environment_of(fee: float = FEE, **changes: Any) -> Any:
    """One unit at least, the fee on both sides, no slippage: what the peers do."""
    from trade_pipeline.settings.environment import EnvironmentSettings

    costs = {
        "fee": {"kind": "flat", "bps": fee * 1e4},
        "slippage": {"kind": "fixed", "bps": 0.0},
        "lot_size": 1.0,
    }
    content = {"window": 1, "initial_equity": EQUITY, "costs": costs}
    return EnvironmentSettings.model_validate({**content, "actions": {"kind": "weights"}} | changes)


def one_unit() -> Any:
    """The rule, always of one unit: a weight that is worth one and a half, in lots of one."""
    from trade_pipeline.backtest.rules import SmaCross
    from trade_pipeline.settings.baselines import SmaCrossBaseline

    class OneUnit(SmaCross):
        def decide(self, dataset: Any, environment: Any) -> Any:
            plan = super().decide(dataset, environment)
            weights = dataset.close * (1.5 / environment.initial_equity)
            return plan._replace(weights=np.where(plan.weights > 0, weights, 0.0))

    return OneUnit(SmaCrossBaseline(kind="sma_cross", fast=FAST, slow=SLOW))


def best(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of the fastest run; the first one, which compiles, does not count."""
    run()
    seconds: list[float] = []
    while len(seconds) < repeats or sum(seconds) < AT_LEAST_S:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def rule(rows: int, with_metrics: bool) -> Found:
    """Signals, steps, tables and, if wanted, all metrics."""
    from trade_pipeline.backtest.bundle import figures
    from trade_pipeline.backtest.engine import backtest

    dataset, environment, strategy = dataset_of(walk(rows)), environment_of(), one_unit()

    def run() -> Any:
        result = backtest(dataset, dataset.segments, environment, strategy)
        return result, figures(result, dataset) if with_metrics else None

    result, _ = run()
    assert set(result.fills["quantity"].abs()) == {1.0}
    seconds = best(run)
    fills = f"{result.fills.height} fills"
    if not with_metrics:
        return Found(rows / seconds, f"signals, steps and tables; {fills}")
    metrics = best(lambda: figures(result, dataset))
    return Found(rows / seconds, f"{fills}; metrics take {metrics:.3f} of {seconds:.3f} s")


def policy_strategy(kind: str) -> tuple[Any, Any]:
    """An untrained policy that holds most of the time, and its environment."""
    from pydantic import TypeAdapter

    from trade_pipeline.backtest.strategies import PolicyStrategy
    from trade_pipeline.settings.algorithm import NetworkSettings
    from trade_pipeline.training.compiled_network import weight_shapes
    from trade_pipeline.training.networks import network_specification
    from trade_pipeline.training.policy import Normalizer, PolicyRunner

    actions = {"kind": "brackets", "sizes": [0.5, 1.0], "stops": [None, 0.01]}
    environment = environment_of(FREE, window=WINDOW, actions=actions)
    nvec = [4, 2, 2, 1]
    sizes = {"mlp": {"hidden": [HIDDEN, HIDDEN]}, "lstm": {"hidden": [HIDDEN], "size": HIDDEN}}
    network = TypeAdapter(NetworkSettings).validate_python({"kind": kind, **sizes[kind]})
    specification = {
        "observation": {
            "window": WINDOW,
            "instruments": ["walk"],
            "feature_names": [f"noise_{k}" for k in range(FEATURES)],
            "scaling": "none",
            "lookback": 0,
        },
        "action": {"kind": "multi_discrete", "nvec": nvec},
        "network": network_specification(network, WINDOW, FEATURES, 1, sum(nvec)),
        "configuration": {"environment": environment.model_dump(mode="json")},
    }
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in weight_shapes(specification["network"]).items()
    }
    weights["action.bias"][0] += 1.0  # hold
    normalizer = Normalizer(np.zeros((1, FEATURES), np.float32), np.ones((1, FEATURES), np.float32))
    return PolicyStrategy(PolicyRunner(specification, normalizer, weights)), environment


def policy(kind: str, rows: int, asked: bool = False) -> Found:
    """A network's decisions and what comes of them, on one core; or asked bar by bar."""
    from trade_pipeline.backtest.engine import backtest

    dataset = dataset_of(walk(rows))
    strategy, environment = policy_strategy(kind)

    class Asked:
        name, start, orders = strategy.name, strategy.start, strategy.orders

    asking = Asked()
    result = backtest(dataset, dataset.segments, environment, strategy)
    assert result.fills.height > rows // 1000, result.fills.height
    seconds = best(
        lambda: backtest(dataset, dataset.segments, environment, asking if asked else strategy),
        2 if asked else 3,
    )
    return Found(rows / seconds, f"{rows} bars, {result.fills.height} fills")


def report(rows: int) -> Found:
    """Seconds of the whole bundle: tables as parquet and CSV, metrics, report.html."""
    from trade_pipeline.backtest.bundle import write_backtest
    from trade_pipeline.backtest.engine import backtest
    from trade_pipeline.storage.location import ArtifactLocation

    dataset, environment = dataset_of(walk(rows)), environment_of()
    result = backtest(dataset, dataset.segments, environment, one_unit())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def run() -> None:
            staging = ArtifactLocation(place, str(time.monotonic_ns()))
            write_backtest(result, dataset, staging, "A walk", {})

        seconds = best(run, 2)
        size = max(path.stat().st_size for path in place.rglob("report.html"))
    return Found(seconds, f"whole bundle; report.html has {size / 1e6:.1f} MB")


def open_report(rows: int) -> Found:
    """Seconds until a browser that was given report.html has drawn what is in sight, and all."""
    from playwright.sync_api import sync_playwright

    from trade_pipeline.backtest.bundle import write_backtest
    from trade_pipeline.backtest.engine import backtest
    from trade_pipeline.storage.location import ArtifactLocation

    chromium = shutil.which("chromium")
    if chromium is None:
        return Found(None, "there is no chromium here")
    dataset, environment = dataset_of(walk(rows)), environment_of()
    result = backtest(dataset, dataset.segments, environment, one_unit())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        staging = ArtifactLocation(Path(folder), "report")
        write_backtest(result, dataset, staging, "A walk", {})
        page = staging.child("report.html").path
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=chromium, args=options)
        seconds = []
        for _ in range(4):
            context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
            tab = context.new_page()
            started = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_selector('html[data-charts="in sight"], html[data-charts="drawn"]')
            sight = time.perf_counter() - started
            tab.wait_for_selector('html[data-charts="drawn"]')
            seconds.append((sight, time.perf_counter() - started))
            context.close()
        browser.close()
        size = page.stat().st_size / 1e6
    sight, everything = (min(column) for column in zip(*seconds, strict=True))
    return Found(sight, f"all charts after {everything:.2f} s; the page has {size:.1f} MB")


CASES: dict[str, Case] = {
    "rule": Case(rule, (ROWS, True), ("vectorbt", "backtesting.py")),
    "rule without metrics": Case(rule, (ROWS, False), ("vectorbt", "backtesting.py")),
    **{
        f"policy {kind}": Case(
            policy,
            (kind, ROWS),
            own_peer=("ours, asked bar by bar", policy, (kind, FEW_ROWS, True)),
        )
        for kind in ("mlp", "lstm")
    },
    "report": Case(report, (ROWS,), unit="s"),
    "open report": Case(open_report, (ROWS,), unit="s"),
}


def write_arrays(path: Path, bars: Arrays) -> Path:
    """What the peers read."""
    arrays = {name: bars[name] for name in ("ts", *PRICES)}
    np.savez(path, **arrays, fast=FAST, slow=SLOW, fee=FEE, equity=EQUITY)
    return path


def ask_peer(peer: str, path: Path, what: str) -> dict[str, Any]:
    """What a peer in its own process says; without a value or trades, `note` says why."""
    python, reason = python_of("backtest")
    if reason:
        return {"note": reason}
    command = [str(python), "-I", str(PEERS / "run_backtest.py"), peer, str(path), what]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PEER_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {"note": f"nothing within {PEER_TIMEOUT_S} s"}
    if done.returncode:
        return {"note": f"failed: {last_line(done.stderr)}"}
    said: dict[str, Any] = json.loads(last_line(done.stdout))
    return said


@cache
def peer_figure(folder: Path, peer: str) -> Found:
    """A peer's bars per second."""
    path = folder / "bars.npz"
    if not path.exists():
        write_arrays(path, walk(ROWS))
    return Found(**{"value": None, **ask_peer(peer, path, "speed")})


def rounded(value: float | None, unit: str) -> float | None:
    """A figure as it is printed."""
    return None if value is None else round(value, 2 if unit == "s" else None)


def measure(name: str, folder: Path) -> None:
    """Run one case and print its lines."""
    case = CASES[name]
    ours: Found = in_own_process(case.ours, *case.arguments)
    peers: list[tuple[str | None, Found]] = [
        (peer, peer_figure(folder, peer)) for peer in case.peers
    ]
    if case.own_peer:
        label, function, arguments = case.own_peer
        peers.append((label, in_own_process(function, *arguments)))
    for peer, found in peers or [(None, Found(None))]:
        line = {
            "benchmark": "backtest",
            "case": name,
            "value": rounded(ours.value, case.unit),
            "unit": case.unit,
            "peer": peer,
            "peer_value": rounded(found.value, case.unit),
            "ratio": round(ours.value / found.value, 2) if ours.value and found.value else None,
            "versions": {package: version(package) for package in PACKAGES}
            | (found.versions or {}),
            "note": "; ".join(filter(None, (ours.note, found.note))),
        }
        print(json.dumps(line), flush=True)


def our_trades(bars: Arrays) -> tuple[list[Trade], Any]:
    """Closed trades of the rule, and where the fast average is above, by whole ticks."""
    from trade_pipeline.backtest.engine import backtest
    from trade_pipeline.evaluation.trades import match_fills

    dataset, environment, strategy = dataset_of(bars), environment_of(), one_unit()
    result = backtest(dataset, dataset.segments, environment, strategy)
    names = ("entry_row", "exit_row", "entry_price", "exit_price", "net")
    trips = match_fills(result.fills).trips
    return list(trips.select(names).iter_rows()), strategy.plan(dataset, environment).hold[:, 0]


def tie(bars: Arrays, row: int) -> dict[str, int]:
    """Sums of the last closes in ticks, times the other's length: equal where averages tie."""
    ticks = np.rint(bars["close"] * 1e8).astype(np.int64)
    fast, slow = (int(ticks[row + 1 - bars_ : row + 1].sum()) for bars_ in (FAST, SLOW))
    return {"row": row, "slow_x_fast_sum": SLOW * fast, "fast_x_slow_sum": FAST * slow}


def agree(ours: Trade, theirs: Trade) -> bool:
    """The same bars, prices and result."""
    return ours[:2] == tuple(theirs[:2]) and bool(
        np.allclose(ours[2:], theirs[2:], rtol=0, atol=TOLERANCE)
    )


def compare_with(peer: str, name: str, bars: Arrays, path: Path) -> bool:
    """Print each trade that differs with the ties behind it; whether all have one."""
    trades, above = our_trades(bars)
    said = ask_peer(peer, path, "trades")
    if "trades" not in said:
        print(
            json.dumps({"benchmark": "backtest", "case": f"compare {name}", "peer": peer, **said})
        )
        return False
    theirs: list[Trade] = [tuple(trade) for trade in said["trades"]]  # type: ignore[misc]
    seen = np.zeros(len(above), np.bool_)
    seen[said["above"]] = True
    # A rule decides on the bar before it trades; what it saw there is what may differ.
    others = [tie(bars, int(row)) for row in np.flatnonzero(seen != above)]
    tied = all(one["slow_x_fast_sum"] == one["fast_x_slow_sum"] for one in others)
    by_rows = {trade[:2]: trade for trade in theirs}
    same = {trade[:2] for trade in trades if agree(trade, by_rows.get(trade[:2], (0,) * 5))}
    explained = tied
    for whose, listed in (("ours", trades), (peer, theirs)):
        for trade in listed:
            if trade[:2] in same:
                continue
            behind = [one for one in others if trade[0] - 2 <= one["row"] <= trade[1]]
            explained &= bool(behind)
            line = {
                "case": f"compare {name}: differs",
                "whose": whose,
                "trade": trade,
                "ties": behind,
            }
            print(json.dumps({"benchmark": "backtest", **line}))
    summary = {
        "benchmark": "backtest",
        "case": f"compare {name}",
        "peer": peer,
        "bars": len(above),
        "value": len(trades),
        "unit": "trades",
        "peer_value": len(theirs),
        "same_to_1e-6": len(same),
        "rows_seen_otherwise": len(others),
        "all_of_them_ties": tied,
        "explained": explained,
        "versions": said["versions"],
    }
    print(json.dumps(summary), flush=True)
    return explained


def compare() -> None:
    """Both peers on real bars, and on a walk in cents, whose sums floats do not hold exactly."""
    if not REAL.exists():
        sys.exit(f"{REAL} is missing; set TRADE_PIPELINE_TEST_DATA to the folder of shared data")
    fine = True
    with tempfile.TemporaryDirectory() as folder:
        for name, bars in (("real", real_bars()), ("walk", walk(COMPARED_ROWS))):
            path = write_arrays(Path(folder) / f"{name}.npz", bars)
            for peer in ("vectorbt", "backtesting.py"):
                fine &= compare_with(peer, name, bars, path)
    sys.exit(0 if fine else "some trades differ without a tie of the averages")


if __name__ == "__main__":
    if sys.argv[1:] == ["--compare"]:
        compare()
    main(sys.argv[1:], CASES, measure)
