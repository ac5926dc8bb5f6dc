"""Tries plug-ins in a process that they may well end: their import, and what sets make of them.

Start at `failures`.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trade_pipeline.features.plugins.importing import (
    Found,
    PluginError,
    Source,
    import_indicators,
)
from trade_pipeline.features.plugins.memory import recall, remember
from trade_pipeline.features.plugins.process import Ended, run_child
from trade_pipeline.features.plugins.specification import declaration_problem, told
from trade_pipeline.settings.base import SettingsError, parse_settings

LIMIT_S = 20.0
ALL_LIMIT_S = 60.0  # a code location has minutes to load
TRY = "trade_pipeline.features.plugins.trying:try_each"


class Attempt(NamedTuple):
    """What is tried: the import of a source, or one of its indicators at some parameters.

    Attributes:
        source: of it.
        name: of the indicator; empty: the import alone.
        parameters: as JSON.
    """

    source: Source
    name: str = ""
    parameters: str = ""

    @property
    def doing(self) -> str:
        """Opens the sentence of how it ended."""
        return "its specification" if self.name else "importing it"


def failures(attempts: Sequence[Attempt], limit_s: float) -> dict[Attempt, str]:
    """What is wrong with those that fail, as a clause.

    A process serves for all that follow each other without ending it.

    Args:
        attempts: in order.
        limit_s: most seconds for one.
    """
    found: dict[Attempt, str] = {}
    left = []
    for attempt in attempts:
        when = recall(attempt, limit_s) if attempt.source.digest else None
        if when is None:
            left.append(attempt)
        else:
            found[attempt] = (
                f"{attempt.doing} does not end within {limit_s:.0f} s (seen at "
                f"{time.strftime('%H:%M', time.gmtime(when))} UTC; tried again after an hour, or "
                "when the file changes)"
            )
    remaining_s = ALL_LIMIT_S  # for plug-ins; that processes start may take as long as it takes
    while left:
        if remaining_s <= 0:
            late = f"was not tried: other plug-ins took {ALL_LIMIT_S:.0f} s already"
            return {**found, **dict.fromkeys(left, late)}
        allowed_s = min(limit_s, remaining_s)
        ended = run_child(TRY, left, remaining_s, allowed_s)
        remaining_s -= ended.took_s
        results = [said["error"] for said in ended.reports if "error" in said]
        found.update(
            (attempt, error)
            for attempt, error in zip(left, results, strict=False)
            if error is not None
        )
        left = left[len(results) :]
        if left:
            attempt = left.pop(0)
            found[attempt] = _ended_early(attempt, ended, allowed_s)
            if ended.out_of_time and attempt.source.digest and allowed_s == limit_s:
                remember(attempt, limit_s)
    return found


def try_each(job: Sequence[Any], report: Callable[[Any], None]) -> None:
    """The child's side: try one by one, and report what is wrong with each."""
    imported: dict[Source, list[Found]] = {}
    for fields, name, parameters in job:
        source = Source(*fields)
        try:
            if source not in imported:
                imported[source] = import_indicators(source)
                report({})  # a sign of life: what follows has its own time
            report({"error": _problem(imported[source], name, parameters) if name else None})
        except PluginError as error:
            report({"error": str(error)})


def _problem(found: Sequence[Found], name: str, parameters: str) -> str | None:
    """All that loading asks of an indicator in a set, asked once."""
    try:
        indicator = next(one.indicator for one in found if one.indicator.name == name)
        chosen = parse_settings(json.loads(parameters), indicator.parameters, name)
    except SettingsError:
        return None  # whoever asks for them says so, with file and entry
    except BaseException as error:
        return f"its parameters fail: {told(error)}"
    try:
        problem = declaration_problem(indicator, chosen)
        chosen.model_dump(mode="json")
    except BaseException as error:
        return f"its specification fails: {told(error)}"
    return problem


def _ended_early(attempt: Attempt, ended: Ended, limit_s: float) -> str:
    if not ended.ready:
        return f"could not be tried ({ended}: {ended.printed[-300:].strip()})"
    if ended.out_of_time:
        return f"{attempt.doing} does not end within {limit_s:.0f} s"
    return f"{attempt.doing} {ended}"
