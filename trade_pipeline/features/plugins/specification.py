"""Whether a plug-in's `Indicator` keeps the form that `features.indicator` asks for.

Asks the indicator's own functions, so whoever calls this must expect anything. Start at
`spec_problem`.
"""

import re
from typing import Any

from pydantic import ValidationError

from trade_pipeline.features.indicator import PRICES_AND_VOLUME, TIMES, Indicator
from trade_pipeline.settings.base import Settings

NAME_PATTERN = r"[a-z][a-z0-9_]*"
COLUMN_PATTERN = r"[A-Za-z][^\s,|@]*"  # "@" stands in the names of other series' columns
MOST_CHARACTERS = 300


def spec_problem(indicator: Indicator[Any]) -> str | None:
    """What is wrong with a specification, with its default parameters where it has any.

    Returns:
        A clause that names the field and the rule; None where all holds.
    """
    return _field_problem(indicator) or _defaults_problem(indicator)


def declaration_problem(indicator: Indicator[Any], parameters: Settings) -> str | None:
    """What is wrong with outputs, lookback or references for these parameters, likewise."""
    outputs = indicator.outputs(parameters)
    if not _strings(outputs) or not outputs:
        return f"its outputs are {_shown(outputs)}; give a tuple of column names"
    for name in outputs:
        if not re.fullmatch(COLUMN_PATTERN, name) or name in TIMES:
            return f"its output {_shown(name)} is no column name; use letters, digits, _, - and ."
    if len(set(outputs)) < len(outputs):
        return f"its outputs {_shown(outputs)} are not unique"
    lookback = indicator.lookback(parameters)
    if not _whole(lookback) or lookback < 0:
        return f"its lookback is {_shown(lookback)}; give a number of bars, 0 or more"
    references = indicator.references(parameters)
    if not _strings(references):
        return f"its references are {_shown(references)}; give a tuple of series keys"
    return None


def defaults(indicator: Indicator[Any]) -> Settings | None:
    """Its default parameters; None where some have no default."""
    if any(field.is_required() for field in indicator.parameters.model_fields.values()):
        return None
    parameters: Settings = indicator.parameters()
    return parameters


def parameters_text(indicator: Indicator[Any]) -> str:
    """Parameters with their defaults, as lists show them."""
    listed = []
    for key, field in indicator.parameters.model_fields.items():
        default = field.get_default(call_default_factory=True)
        listed.append(f"{key}={'required' if field.is_required() else default}")
    return ", ".join(listed) or "no parameters"


def told(error: BaseException) -> str:
    """Type and first words of an error on one line, also of one that cannot be printed."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "whose text cannot be read"
    return f"{type(error).__name__}{': ' if text else ''}{text}"[:MOST_CHARACTERS]


def _field_problem(indicator: Indicator[Any]) -> str | None:
    name, parameters, inputs = indicator.name, indicator.parameters, indicator.inputs
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        return f"its name is {_shown(name)}; use lower case letters, digits and _"
    if not (isinstance(parameters, type) and issubclass(parameters, Settings)):
        return (
            f"its parameters are {_shown(parameters)}; give a class derived from "
            "trade_pipeline.settings.base.Settings"
        )
    config = parameters.model_config
    if config.get("extra") != "forbid" or not config.get("frozen"):
        return "its parameters must stay frozen and closed (extra: forbid), as Settings has it"
    known = (*PRICES_AND_VOLUME, *TIMES)
    if not _strings(inputs) or not inputs or len(set(inputs)) < len(inputs):
        return f"its inputs are {_shown(inputs)}; give a tuple of {', '.join(known)}, each once"
    for column in inputs:
        if column not in known:
            return f"its inputs name {_shown(column)}; known are {', '.join(known)}"
    for field in ("outputs", "lookback", "compute", "references"):
        if not callable(getattr(indicator, field)):
            return f"its {field} must be a function"
    if not _whole(indicator.implementation) or indicator.implementation < 1:
        return f"its implementation is {_shown(indicator.implementation)}; use 1, 2, 3 ..."
    return None


def _defaults_problem(indicator: Indicator[Any]) -> str | None:
    try:
        parameters = defaults(indicator)
    except ValidationError as error:
        return f"its default parameters are refused by its own model ({told(error)})"
    parameters_text(indicator)  # so that a default that cannot be shown is met here
    if parameters is None:
        return None
    try:
        parameters.model_dump_json()
    except ValueError as error:
        return f"its parameters cannot be written as JSON ({told(error)})"
    return declaration_problem(indicator, parameters)


def _strings(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) for one in value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return repr(value)[:80]
