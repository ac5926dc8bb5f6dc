"""`trade-pipeline indicators`: what a feature set may name, and whether a plug-in is sound.

Start at `indicators`.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Annotated, Any

import typer
import yaml

from trade_pipeline.settings.base import parse_yaml
from trade_pipeline.settings.project import Places

indicators = typer.Typer(no_args_is_help=True, help="Indicators that a feature set may name.")


@indicators.command("list")
def list_indicators() -> None:
    """Name, origin, inputs and parameters with defaults; then what is broken, and why."""
    from trade_pipeline.features.plugins.loading import load_plugins
    from trade_pipeline.features.plugins.specification import parameters_text

    with redirect_stdout(sys.stderr):  # a plug-in may print when it is imported
        plugins = load_plugins(Places.from_environment(os.environ).indicator_files)
    for name, one in sorted(plugins.known.items()):
        inputs = ", ".join(one.indicator.inputs)
        print(f"{name} ({one.origin}): of {inputs}; {parameters_text(one.indicator)}")
    for broken in plugins.broken:
        print(f"broken: {broken}")


@indicators.command()
def check(
    target: Annotated[str, typer.Argument(help="Name of a module, or a .py file.")],
    param: Annotated[
        list[str] | None, typer.Option(help="key=value in place of a default; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Indicator to check; default: all.")] = None,
    limit: Annotated[
        float, typer.Option(min=1, help="Seconds after which a process of it is stopped.")
    ] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Try a plug-in in processes of its own: is it causal, repeatable, finite, honest?

    Exit code 0 only if all holds; warnings are no failures.
    """
    from trade_pipeline.features.plugins.check import check_plugin, passed

    lines = check_plugin(target, _parameters(param or []), name, limit)
    if as_json:
        findings = [asdict(line) for line in lines]
        print(json.dumps({"target": target, "passed": passed(lines), "lines": findings}))
    else:
        for line in lines:
            print(line)
        print(f"{target}: {'all holds' if passed(lines) else 'not sound'}")
    if not passed(lines):
        raise typer.Exit(code=1)


def _parameters(given: list[str]) -> dict[str, Any]:
    """`key=value` with values as YAML reads them."""
    parameters = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{one!r} is not of the form key=value")
        try:
            parameters[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"{one!r}: the value is no YAML") from error
    return parameters
