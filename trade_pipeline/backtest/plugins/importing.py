"""Imports a strategy of a plug-in and makes it with the parameters of an experiment.

What it runs may do anything, so `plugins` calls it in a process of its own first. Loads nothing
heavy itself. Start at `make_strategy`.
"""

import inspect
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

from pydantic import BaseModel

from trade_pipeline.backtest.plugins.installed import GROUP, InstalledStrategy, StrategyError
from trade_pipeline.features.plugins.specification import told
from trade_pipeline.settings.base import SettingsError, closest, parse_settings

# Not a cancelled run's, nor Ctrl-C.
FAILURES = (Exception, SystemExit)
METHODS = {
    "start": "start(self, dataset, environment)",
    "orders": "orders(self, row, account)",
}


def make_strategy(found: InstalledStrategy, parameters: Mapping[str, Any]) -> Any:
    """What the entry point makes of the parameters; it offers what `protocol.Strategy` asks for.

    Args:
        found: names a class, or a function that makes a strategy. Parameters are checked against
            its attribute `Parameters`, a pydantic model, if it has one.
        parameters: keyword arguments.

    Raises:
        StrategyError: it cannot be imported or made, or what it makes is no strategy.
        SettingsError: its `Parameters` refuse the parameters.
    """
    content = load_content(found)
    arguments = _validated(content, parameters, str(found))
    try:
        strategy = content(**arguments)
    except FAILURES as error:
        takes = _signature(content)
        raise StrategyError(
            f"{found}: it cannot be made with parameters {dict(parameters)}: {said(error)}.{takes}"
        ) from error
    name = getattr(strategy, "name", None)
    if not isinstance(name, str) or not name.strip():
        raise StrategyError(f"{found}: its name is {name!r}; a strategy has a text for a name.")
    for method, form in METHODS.items():
        if not callable(getattr(strategy, method, None)):
            raise StrategyError(
                f"{found}: it has no method {method}; write `{form}`, see docs/strategies.md."
            )
    return strategy


def load_content(found: InstalledStrategy) -> Any:
    """What an entry point names: a class, or a function that makes a strategy.

    Raises:
        StrategyError: it cannot be imported, or is neither.
    """
    try:
        content = EntryPoint(found.name, found.value, GROUP).load()
    except FAILURES as error:
        raise StrategyError(f"{found}: importing it fails: {said(error)}.") from error
    if not callable(content):
        raise StrategyError(
            f"{found}: it is {type(content).__name__}; let the entry point name a class, or a "
            "function that makes a strategy."
        )
    return content


def parameters_model(content: Any, origin: str) -> type[BaseModel] | None:
    """The model `Parameters` of a class or function, None where it has none.

    Raises:
        StrategyError: it is no pydantic model.
    """
    model = getattr(content, "Parameters", None)
    if model is None or (isinstance(model, type) and issubclass(model, BaseModel)):
        return model
    raise StrategyError(f"{origin}: its Parameters are {model!r}; give a pydantic model.")


def said(error: BaseException) -> str:
    """An error in few words, with the file and line that it came from."""
    frames = [
        one
        for one in traceback.extract_tb(error.__traceback__)
        if not one.filename.startswith("<") and "importlib" not in one.filename
        if not one.filename.startswith(__file__.rpartition("/")[0])
    ]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{told(error)}{where}"


def try_strategy(job: Mapping[str, Any], report: Callable[[Any], None]) -> None:
    """The child's side: make it and report why it cannot be, else nothing.

    Parameters that are refused are reported as `refused`: they are an error of the experiment.
    """
    try:
        make_strategy(InstalledStrategy(*job["found"]), job["parameters"])
    except StrategyError as error:
        report({"error": str(error)})
    except SettingsError as error:
        report({"error": None, "refused": str(error)})
    else:
        report({"error": None})


def _validated(content: Any, parameters: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The keyword arguments, through the model `Parameters` where there is one."""
    model = parameters_model(content, origin)
    if model is None:
        try:
            inspect.signature(content).bind(**parameters)
        except TypeError as error:
            raise SettingsError(
                f"{origin}: wrong parameters {dict(parameters)}: {error}.{_signature(content)}"
            ) from error
        except ValueError:
            pass  # it says nothing of its parameters: making it shows what it takes
        return dict(parameters)
    fields = model.model_fields
    known = {*fields, *(field.alias for field in fields.values() if field.alias)}
    for key in parameters:
        if key not in known:
            raise SettingsError(f"{origin}: unknown parameter {key!r}.{closest(key, list(fields))}")
    chosen = parse_settings(dict(parameters), model, f"{origin}, parameters")
    return {name: getattr(chosen, name) for name in fields}


def _signature(content: Any) -> str:
    try:
        return f" It takes {inspect.signature(content)}."
    except (TypeError, ValueError):
        return ""
