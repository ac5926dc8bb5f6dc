"""Strategies of plug-ins: imported when they are to decide, and not trusted.

One is made in a process of its own first, which it may end or never leave. There it is audited for
look-ahead and decides on all of a dataset, too, before it does so here. Every failure is a sentence
that names its distribution and entry point. Start at `load_strategy`.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from trade_pipeline.backtest.plugins.checked import CheckedStrategy
from trade_pipeline.backtest.plugins.importing import make_strategy
from trade_pipeline.backtest.plugins.installed import (
    InstalledStrategy,
    StrategyError,
    find_strategy,
)
from trade_pipeline.backtest.protocol import Strategy
from trade_pipeline.features.plugins.process import Ended, run_child
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.baselines import BaselineSettings, PluginBaseline
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import Dataset, write_dataset

LIMIT_S = 60.0
DATA_LIMIT_S = 600.0
TRY = "trade_pipeline.backtest.plugins.importing:try_strategy"
TRY_ON_DATA = "trade_pipeline.backtest.plugins.trial:try_on_data"

_TRIED: dict[tuple[InstalledStrategy, str], str | None] = {}
_TRIED_ON: set[tuple[InstalledStrategy, str, str, str]] = set()


class TriedStrategy(CheckedStrategy):
    """One that has decided on all of the data elsewhere, and is refused when it looks ahead."""

    def __init__(
        self, name: str, found: InstalledStrategy, parameters: dict[str, Any], strategy: Strategy
    ) -> None:
        super().__init__(name, str(found), strategy)
        self._found, self._parameters = found, parameters

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Try it, once for each environment and version of a dataset, and start it.

        Raises:
            StrategyError: it looks ahead, fails, ends its process or does not end.
        """
        rules = environment.model_dump_json()
        key = (self._found, json.dumps(self._parameters, default=str), dataset.version, rules)
        if not dataset.version or key not in _TRIED_ON:
            problem = self._failure(dataset, environment)
            if problem is not None:
                raise StrategyError(problem)
            _TRIED_ON.add(key)
        super().start(dataset, environment)

    def _failure(self, dataset: Dataset, environment: EnvironmentSettings) -> str | None:
        """What happens when it decides on the data in a process of its own; None: all is well."""
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(dataset, ArtifactLocation(Path(folder), "dataset"))
            job = {
                "found": self._found,
                "parameters": self._parameters,
                "name": self.name,
                "store": folder,
                "environment": environment.model_dump(mode="json"),
            }
            ended = run_child(TRY_ON_DATA, job, DATA_LIMIT_S)
        return problem_of(ended, self._found, "deciding on the data", DATA_LIMIT_S)


def load_strategy(settings: PluginBaseline) -> TriedStrategy:
    """The strategy of an entry of an experiment's `baselines`.

    Raises:
        SettingsError: there is no such entry point, or it refuses the parameters.
        StrategyError: several have its name, or it cannot be imported or made.
    """
    found = try_to_make(settings)
    # What it prints would stand among what our commands print.
    with redirect_stdout(sys.stderr):
        strategy = make_strategy(found, settings.parameters)
    return TriedStrategy(settings.label, found, settings.parameters, strategy)


def check_parameters(baselines: Iterable[BaselineSettings], origin: str) -> list[str]:
    """Make each plug-in strategy in a process of its own, to refuse wrong parameters early.

    Args:
        baselines: of an experiment.
        origin: its file, as errors name it.

    Returns:
        Why others could not be made: sentences. Whoever runs them fails with these.

    Raises:
        SettingsError: a strategy refuses its parameters, or is not installed.
    """
    problems = []
    for one in baselines:
        if isinstance(one, PluginBaseline):
            try:
                try_to_make(one)
            except StrategyError as error:
                problems.append(str(error))
            except SettingsError as error:
                raise SettingsError(f"{origin}: key 'baselines': {error}") from error
    return problems


def try_to_make(settings: PluginBaseline) -> InstalledStrategy:
    """Which strategy an entry names, once it could be made in a process of its own.

    Raises:
        SettingsError: there is no such entry point, or it refuses the parameters.
        StrategyError: several have its name, or it cannot be imported or made.
    """
    found = find_strategy(settings.name)
    attempt = (found, json.dumps(settings.parameters, default=str))
    if attempt not in _TRIED:
        _TRIED[attempt] = _failure(found, settings.parameters)
    problem = _TRIED[attempt]
    if problem is not None:
        raise StrategyError(problem)
    return found


def _failure(found: InstalledStrategy, parameters: dict[str, Any]) -> str | None:
    """Why it cannot be made in a process of its own; None where it can.

    Raises:
        SettingsError: it refuses the parameters.
    """
    ended = run_child(TRY, {"found": found, "parameters": parameters}, LIMIT_S)
    refused = ended.reports[0].get("refused") if ended.reports else None
    if refused is not None:
        raise SettingsError(refused)
    return problem_of(ended, found, "importing and making it", LIMIT_S)


def problem_of(ended: Ended, found: InstalledStrategy, doing: str, limit_s: float) -> str | None:
    """What a child reported, or how it ended without a report."""
    if ended.reports:
        problem: str | None = ended.reports[0]["error"]
        return problem
    if not ended.ready:
        return f"{found}: it could not be tried ({ended}: {ended.printed[-300:].strip()})."
    if ended.out_of_time:
        return f"{found}: {doing} does not end within {limit_s:.0f} s."
    return f"{found}: {doing} {ended}."
