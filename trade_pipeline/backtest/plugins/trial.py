"""The child's side of a trial on data: audits a strategy of a plug-in and runs it over all rows.

What it runs may end the process or never leave it. Start at `try_on_data`.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.plugins.audit import audit_strategy
from trade_pipeline.backtest.plugins.checked import CheckedStrategy
from trade_pipeline.backtest.plugins.importing import make_strategy
from trade_pipeline.backtest.plugins.installed import InstalledStrategy, StrategyError
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import load_dataset
from trade_pipeline.training.splits import SplitError


def try_on_data(job: Mapping[str, Any], report: Callable[[Any], None]) -> None:
    """Report why it cannot decide on a dataset, None where it can.

    Args:
        job: `found` and `parameters` of the strategy, `name` as reports call it, `store` that
            holds the bundle `dataset`, and `environment`.
        report: takes `{"error": sentence or None}`.
    """
    found = InstalledStrategy(*job["found"])
    dataset = load_dataset(ArtifactLocation(Path(job["store"]), "dataset"), check=False)
    environment = EnvironmentSettings.model_validate(job["environment"])
    try:
        made = make_strategy(found, job["parameters"])
        strategy = CheckedStrategy(job["name"], str(found), made)
        ahead = audit_strategy(strategy, dataset, environment)
        if not ahead:
            with suppress(SplitError):  # no slice is as long as the window: nothing will be asked
                backtest(dataset, dataset.segments, environment, strategy)
    except StrategyError as error:
        report({"error": str(error)})
    else:
        report({"error": f"{found}: it looks ahead: {ahead[0]}." if ahead else None})
