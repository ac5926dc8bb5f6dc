"""Jobs for the serverless handler, and what this machine makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.compute.runpod.endpoint import Endpoint
from trade_pipeline.features.registry import resolve
from trade_pipeline.features.table import feature_table
from trade_pipeline.settings.features import FeatureSetSettings
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline_tests.compute.runpod.serverless.platform import KEY
from trade_pipeline_tests.training import policies

INDICATORS = [
    {"name": "returns", "params": {"horizons": [1, 5]}},
    {"name": "rsi"},
    {"name": "macd"},
    {"name": "stochastic"},
    {"name": "atr", "params": {"period": 5}},
    {"name": "volume_zscore"},
]
BAR_COLUMNS = ("ts", "open", "high", "low", "close", "volume")
KINDS = {
    "choices": ("ppo", "mlp", policies.ONE),
    "memory": ("recurrent_ppo", "lstm", policies.ONE),
    "weights": ("ppo", "cnn", policies.TWO),
}


def silent(_: dict[str, Any]) -> None: ...


def made_bars(rows: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(4)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, rows)))
    opened = np.concatenate([[100.0], close[:-1]])
    times = 1_704_067_200_000 + np.arange(rows) * 60_000
    return pl.DataFrame(
        {
            "ts": pl.Series(times).cast(pl.Datetime("ms", "UTC")),
            "open": opened,
            "high": np.maximum(opened, close) * 1.001,
            "low": np.minimum(opened, close) * 0.999,
            "close": close,
            "volume": rng.exponential(5.0, rows),
        }
    )


def inline(bars: pl.DataFrame) -> dict[str, Any]:
    return {name: bars[name].to_physical().to_list() for name in BAR_COLUMNS}


def sweep(bars: Any, **others: Any) -> dict[str, Any]:
    return {"kind": "indicators", "bars": bars, "indicators": INDICATORS, **others}


def local_sweep(bars: pl.DataFrame) -> pl.DataFrame:
    settings = FeatureSetSettings.model_validate({"indicators": INDICATORS})
    return feature_table([bars], resolve(settings, "test"))


def reference(root: Path, name: str) -> dict[str, str]:
    pointer = root / "store" / "demo" / "policy" / name / "current.json"
    version = json.loads(pointer.read_text(encoding="utf-8"))["version"]
    return {"key": f"demo/policy/{name}", "version": version}


def seen(name: str, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Unscaled rows float32 [count + 3, N, 2], and account vectors."""
    rng, instruments = np.random.default_rng(8), len(KINDS[name][2])
    rows = rng.normal(0, 0.02, (count + 3, instruments, 2)).astype(np.float32)
    return rows, rng.normal(size=(count, 5 * instruments + 1)).astype(np.float32)


def infer(root: Path, name: str, by: str = "rows", **others: Any) -> dict[str, Any]:
    rows, accounts = seen(name)
    flat = rows.reshape(len(rows), -1).tolist()
    windows = [flat[k : k + 4] for k in range(len(accounts))]
    given = {"rows": flat} if by == "rows" else {"windows": windows}
    asked = {"kind": "infer", "policy": reference(root, name), "accounts": accounts.tolist()}
    return {**asked, **given, **others}


def local_actions(root: Path, name: str) -> np.ndarray:
    where = reference(root, name)
    location = ArtifactLocation(root / "store", f"{where['key']}/{where['version']}")
    runner = PolicyRunner.load(location)
    rows, accounts = seen(name)
    scaled = runner.normalizer.transform(rows)
    acted = [
        runner.act({"window": scaled[k : k + 4], "account": account})
        for k, account in enumerate(accounts)
    ]
    return np.stack(acted)


def endpoint(url: str, **options: Any) -> Endpoint:
    return Endpoint(url, options.pop("key", KEY), **{"poll_s": 0.01, "timeout_s": 60.0, **options})


BARS = inline(made_bars(30))
ACCOUNTS = seen("choices")[1].tolist()
