"""Distributions with strategies that tests install into a folder."""

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MODULE = "made_up_strategies"
HEAD = """
import numpy as np

from trade_pipeline.backtest.strategies import Plan, PlannedRule
from trade_pipeline.settings.base import Settings
from trade_pipeline.simulator.kernel import Orders


def plan_of(weights):
    return Plan(weights, weights > 0)


class Asked:
    name = "asked"

    def start(self, dataset, environment):
        self.close = np.array(dataset.close)

    def wanted(self, row):
        return 0.0

    def orders(self, row, account):
        none = np.full((1, self.close.shape[1]), np.nan)
        return Orders(np.full(none.shape, float(self.wanted(row))), none == 0, none, none)

"""
SMA = """
class Average(PlannedRule):
    class Parameters(Settings):
        period: int = 9

    name = "average"

    def __init__(self, period):
        self.period = period

    def decide(self, dataset, environment):
        above = np.zeros(dataset.close.shape)
        for a, b in dataset.segments.tolist():
            for row in range(a + self.period - 1, b):
                slow = dataset.close[row - self.period + 1 : row + 1].mean()
                above[row] = dataset.close[row - 2 : row + 1].mean() > slow * (1 + 1e-12)
        return plan_of(above)
"""
Install = Callable[..., None]


@contextmanager
def installing(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """A function that installs a module and its entry points; another version takes its place."""
    before = set(sys.modules)

    def forget() -> None:
        for module in set(sys.modules) - before:
            if module.startswith("made_up"):
                del sys.modules[module]
        importlib.invalidate_caches()

    def install(
        text: str,
        points: dict[str, str],
        name: str = "made-up",
        version: str = "1.2.3",
        module: str = MODULE,
    ) -> None:
        site = root / name
        shutil.rmtree(site, ignore_errors=True)
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(text, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        listed = "".join(f"{key} = {module}:{value}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[trade_pipeline.strategies]\n{listed}")
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))
        forget()

    yield install
    forget()
