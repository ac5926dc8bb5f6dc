"""What `baselines` of an experiment may name: rules that ship, and what is installed.

A strategy of a plug-in is imported in a process of its own. Start at `list_strategies`.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.metadata import version as package_version
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

from trade_pipeline.backtest.plugins.importing import load_content, parameters_model
from trade_pipeline.backtest.plugins.installed import (
    InstalledStrategy,
    StrategyError,
    find_strategy,
    installed_strategies,
)
from trade_pipeline.backtest.plugins.loading import LIMIT_S, problem_of
from trade_pipeline.features.plugins.process import run_child
from trade_pipeline.settings.baselines import BaselineSettings, PluginBaseline

DESCRIBE = "trade_pipeline.backtest.plugins.listing:describe"
PACKAGE = "trade_pipeline"


class ListedStrategy(NamedTuple):
    """One that can be named.

    Attributes:
        name: the kind of a rule, or the name of an entry point.
        distribution: name and version of what it is of.
        parameters: with their defaults; empty where it is broken.
        problem: why it cannot be used; None where it can.
    """

    name: str
    distribution: str
    parameters: str
    problem: str | None = None

    def __str__(self) -> str:
        """One line."""
        if self.problem is not None:
            return f"broken: {self.problem}"
        return f"{self.name} ({self.distribution}): {self.parameters}"


def list_strategies() -> Iterator[ListedStrategy]:
    """Rules that ship, in the order of the settings, then entry points by name.

    Raises:
        StrategyError: what is installed cannot be listed.
    """
    ours = f"{PACKAGE} {package_version(PACKAGE)}"
    for model in get_args(get_args(BaselineSettings)[0]):
        if model is not PluginBaseline:
            yield ListedStrategy(
                get_args(model.model_fields["kind"].annotation)[0], ours, _fields(model, ["kind"])
            )
    for found in installed_strategies():
        yield _described(found)


def describe(job: Mapping[str, Any], report: Callable[[Any], None]) -> None:
    """The child's side: import a strategy and report its parameters, or why that fails.

    Args:
        job: `found`, the entry point.
        report: takes `{"error": sentence or None, "parameters": text}`.
    """
    found = InstalledStrategy(*job["found"])
    try:
        report({"error": None, "parameters": _parameters(load_content(found), str(found))})
    except StrategyError as error:
        report({"error": str(error)})


def _described(found: InstalledStrategy) -> ListedStrategy:
    try:
        find_strategy(found.name)
    except StrategyError as error:  # several have the name
        return ListedStrategy(found.name, found.distribution, "", str(error))
    ended = run_child(DESCRIBE, {"found": found}, LIMIT_S)
    problem = problem_of(ended, found, "importing it", LIMIT_S)
    if problem is not None:
        return ListedStrategy(found.name, found.distribution, "", problem)
    return ListedStrategy(found.name, found.distribution, ended.reports[0]["parameters"])


def _parameters(content: Any, origin: str) -> str:
    """Of a model `Parameters`, or of the signature where there is none."""
    model = parameters_model(content, origin)
    if model is not None:
        return _fields(model)
    try:
        taken = inspect.signature(content).parameters.values()
    except (TypeError, ValueError):
        return "parameters unknown: it has no signature"
    return ", ".join(_argument(one) for one in taken) or "no parameters"


def _fields(model: type[BaseModel], without: Collection[str] = ()) -> str:
    """Fields of a model with their defaults."""
    listed = [
        f"{field.alias or name}="
        f"{'required' if field.is_required() else field.get_default(call_default_factory=True)}"
        for name, field in model.model_fields.items()
        if name not in without
    ]
    return ", ".join(listed) or "no parameters"


def _argument(one: inspect.Parameter) -> str:
    if one.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return str(one)
    return f"{one.name}={'required' if one.default is inspect.Parameter.empty else one.default}"
